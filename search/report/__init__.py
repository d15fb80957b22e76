"""What people see of a sweep: the live table and report.html."""
