"""The command line, without a ledger."""
