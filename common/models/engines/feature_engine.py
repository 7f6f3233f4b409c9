"""Choice of the engine that computes features, held against PyTorch's own layers.

An engine's name says what its layers are and their number format, as in `fused-bfloat16`. It belongs to the key of
cached features, because engines round differently.
"""

import copy
import logging
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING

from common.system.threads import one_thread

if TYPE_CHECKING:
    import torch

    from common.models.backbone import Backbone

# Images that pass a network at once. The last ones of a source are padded to it.
CHUNK = 32
# Largest difference to PyTorch's own layers in float32, relative to the features' length.
_TOLERANCE = 1e-3
# In a shorter format an engine may round at other places, but not much more.
_MORE_ROUNDING = 3.0
_FEW = 4
_logger = logging.getLogger("bract")


def fast_dtype(device: str) -> str:
    """Return the fastest type that the device computes natively, bfloat16 or float32."""
    import torch

    if device == "cpu":
        flags = torch.backends.cpu.get_cpu_capability()
        native = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
        return "bfloat16" if native and "AVX512" in flags else "float32"
    if device == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    return "float32"


def processor() -> tuple[str, ...]:
    """Return what the choice of an engine depends on besides libraries, without importing them."""
    limits = (os.environ.get(name, "") for name in ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA"))
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    return platform.machine(), flags, *limits


def choose_engine(body: "Backbone", side: int) -> str:
    """Return the fastest engine that gives a frozen backbone's features on this CPU.

    Guarantee: in float32 it agrees with PyTorch's own layers to a thousandth, and an image's features are the same bits
    at every place of a chunk, whatever the other images are.
    """
    import torch

    dtype = fast_dtype("cpu")
    # The fallback is checked by tests only. It is what PyTorch defines as right.
    fallback = f"eager-{dtype}"
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return fallback
    try:
        with one_thread(), torch.no_grad():
            problem = _problem(body, side, dtype)
    except (AttributeError, RuntimeError) as error:
        problem = str(error).partition("\n")[0]
    if problem:
        _logger.warning("The fast engine cannot be used for this backbone, PyTorch's own layers are: %s", problem)
    return fallback if problem else f"fused-{dtype}"


def _problem(body: "Backbone", side: int, dtype: str) -> str:
    """Return the reason against fused convolutions for a backbone.

    It is empty where they compute the right features.
    """
    import torch

    chunk = _smooth_images(side)
    few, others = chunk[:_FEW].clone(memory_format=torch.channels_last), chunk.flip(0)
    others[: CHUNK // 2] = 0
    right = _features(body, few)
    exact = _distance(_features(_fused(body, side, _FEW, "float32"), few), right)
    fast = _fused(body, side, CHUNK, dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bfloat16"):
        allowed = _MORE_ROUNDING * _distance(_features(body, few), right) + _TOLERANCE
        rows, moved = _features(fast, chunk), _features(fast, others).flip(0)
    rounding = _distance(rows[:_FEW], right)
    # Not-a-number fails each comparison, so all ask for what is right.
    if not exact <= _TOLERANCE:
        return f"in float32 it differs by {exact:.2g}"
    if not rounding <= allowed:
        return f"in {dtype} it differs by {rounding:.2g}"
    if not torch.equal(rows[: CHUNK // 2], moved[: CHUNK // 2]):
        return "an image's features depend on the other images"
    return ""


def _smooth_images(side: int) -> "torch.Tensor":
    """Return smooth normalised images (CHUNK, 3, side, side)."""
    import torch

    coarse = torch.randn(CHUNK, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    images = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear")
    return images.contiguous(memory_format=torch.channels_last)


def _features(body: "Backbone", images: "torch.Tensor") -> "torch.Tensor":
    return body.pooled(body.feature_maps(images)).float()


def _distance(rows: "torch.Tensor", right: "torch.Tensor") -> float:
    """Return the relative distance of rows to the right ones."""
    return float((rows - right).norm() / right.norm().clamp_min(1e-30))


def _fused(body: "Backbone", side: int, batch_size: int, dtype: str) -> "Backbone":
    import torch

    from common.models.engines.fused_convolutions import fuse_convolutions

    fused = copy.deepcopy(body)
    fuse_convolutions(fused, side, batch_size, getattr(torch, dtype))
    return fused
