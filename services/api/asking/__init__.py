"""Requests: their callers, their contents."""
