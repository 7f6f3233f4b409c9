"""Engines that run the same apps on one machine."""
