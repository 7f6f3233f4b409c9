"""Figures of a model on labelled images, each with an interval."""
