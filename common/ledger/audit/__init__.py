"""Whether a ledger can be believed, and what it says."""
