"""Layers T1 to T8: the real client, put on a bench and asked through real messages."""
