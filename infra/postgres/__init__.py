"""The log and the projections' checkpoints, on PostgreSQL."""
