"""Engines that compute the features of a frozen backbone."""
