"""What ledger, edges and readers share."""
