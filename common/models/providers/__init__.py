"""Libraries that backbones come from, one file each."""
