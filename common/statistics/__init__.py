"""Sums over features and the linear head that follows from them."""
