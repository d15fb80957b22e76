"""Predict the duration of a sweep: simulate it before it starts, estimate the time left while it runs."""
