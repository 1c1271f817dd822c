"""Routes on memory adapters."""
