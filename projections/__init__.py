"""What we derive from the log: one file holds a table, how events change it, and its questions."""
