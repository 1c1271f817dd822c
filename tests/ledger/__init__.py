"""Use cases on memory adapters."""
