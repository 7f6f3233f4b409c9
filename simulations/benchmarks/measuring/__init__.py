"""Processes that are measured, with the arithmetic and display of their figures."""
