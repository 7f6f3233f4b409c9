"""Small patches that break the guarantee, each as somebody once did, and the layer that must notice."""
