"""Answers, problems, views, and their counters."""
