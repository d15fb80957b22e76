"""Propose, run, rank and promote trials. Knows no images, models or torch."""
