"""The demo: a simulated day at five gateways, reported and checked as it happens."""
