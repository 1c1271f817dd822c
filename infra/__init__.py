"""Access to everything outside the ledger: one package for each system."""
