"""Providers of per-example gradients and the check of a provider."""
