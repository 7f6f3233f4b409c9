"""Folder of a run or a federation for a live page."""
