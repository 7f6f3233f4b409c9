"""Engines that run the apps of a federation on one machine."""
