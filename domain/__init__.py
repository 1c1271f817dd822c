"""The domain: pure decisions and events, no I/O, no clock."""
