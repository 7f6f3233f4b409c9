"""Libraries that backbones come from, one module each."""
