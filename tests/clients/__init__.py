"""Clients that others generate from the API description."""
