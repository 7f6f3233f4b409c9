"""Benchmarks that compare ways to do one job, pair by pair."""
