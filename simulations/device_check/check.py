"""The checks of one device in order."""

from collections.abc import Iterator

import torch

from common.data.feature_extraction import choose_device
from common.errors import ConfigError
from simulations.device_check.examined import config_of, networks
from simulations.device_check.features import check_features
from simulations.device_check.findings import Finding, Sizes
from simulations.device_check.gradients import check_gradients
from simulations.device_check.steps import check_steps
from simulations.device_check.whole_run import check_whole_runs


def find_device(wanted: str) -> str:
    """Return the device to check.

    Raises:
        ConfigError: `wanted` is `auto` and PyTorch sees no GPU, so that nothing can be checked.
        DataError: The named device is not present.
    """
    device = choose_device(wanted)
    if wanted == "auto" and device == "cpu":
        built = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "is built without CUDA"
        raise ConfigError(
            f"PyTorch sees no GPU on this machine, so nothing was checked. PyTorch {torch.__version__} {built}: "
            "install the build and the driver for your card. --device cpu tries the check itself, on the processor"
        )
    return device


def name_of(device: str) -> str:
    """Return the name of the device's hardware."""
    return torch.cuda.get_device_name() if device == "cuda" else device


def check_device(device: str, sizes: Sizes) -> Iterator[Finding]:
    """Yield the findings of each part."""
    yield from check_features({}, device, sizes)
    for part, settings, shape in networks(sizes):
        # A linear head has no gradients in slots. NumPy computes it, whatever the device is.
        if not config_of(settings, batch=sizes.batch, device=device).needs_no_torch:
            yield from check_gradients(part, settings, device, shape=shape, number=sizes.examples)
        yield from check_steps(part, settings, device, shape=shape, batch=sizes.batch)
    yield from check_whole_runs(device, sizes)
