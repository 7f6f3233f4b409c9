"""Whether what a run states follows from its ledgers."""
