"""Labelled image files and drawn images, decoded once, split by content, batched on the device."""
