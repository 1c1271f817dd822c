"""HTTP in, verdicts out, on real PostgreSQL and NATS."""
