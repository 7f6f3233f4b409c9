"""Harness in which privacy tests and attacks run real client code."""
