"""Privacy plans, events, accounting, clipping and noise, without Flower or torch."""
