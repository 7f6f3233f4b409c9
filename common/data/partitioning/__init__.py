"""Assignment of images to clients."""
