"""The audit of a ledger's integrity and costs."""
