"""The check of a GPU, run by `make gpu-check` or `python -m simulations.device_check`."""
