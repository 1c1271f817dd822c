"""Honest fakes of the ports, for tests and simulations."""
