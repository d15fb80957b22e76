"""Evaluate the trials of a study: ranking, statistics, confirmation."""
