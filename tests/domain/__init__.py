"""Decisions and events, without I/O."""
