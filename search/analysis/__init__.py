"""What the trials of a study show: ranking, statistics, confirmation."""
