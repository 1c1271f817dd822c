"""The use cases: load, ask the domain, append."""
