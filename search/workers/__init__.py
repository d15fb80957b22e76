"""The processes that train trials, and the supervisor that keeps them running."""
