"""Deployment of a federation's server for real clients."""
