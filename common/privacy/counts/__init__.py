"""Counts of held-out units and labels: their plan and their exact noise."""
