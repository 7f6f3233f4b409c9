"""Folders of images, their tree, their layout and what is not read."""
