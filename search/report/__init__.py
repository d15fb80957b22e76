"""Show a sweep: the live table and report.html."""
