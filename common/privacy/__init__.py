"""Plans, events, accounting, clipping and noise; no Flower, no torch."""
