"""Conversion of stored values to the 8 bits that models see."""
