"""From a named source of images to one client's rows."""
