"""The record of a sweep: one Optuna study that all workers share."""
