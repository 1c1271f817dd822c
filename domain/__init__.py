"""What is true: pure decisions and events, no I/O, no clock."""
