"""The edge library, without a network."""
