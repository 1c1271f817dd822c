"""Decisions: a command and the state in, events or a refusal out."""
