"""Propose, run, rank and promote trials, independently of images, models and torch."""
