"""What is derived from the log: each file has its tables, how events change them, and their queries."""
