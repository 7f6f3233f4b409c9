"""Audit of a run's privacy statement against its ledgers."""
