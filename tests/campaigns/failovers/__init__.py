"""Ledgers, workers and edges on a replicated PostgreSQL that fails over, splits, lags and is restored."""
