"""A data holder's ledger, keys and signed heads."""
