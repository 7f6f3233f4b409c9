"""The benchmark of the pass through a frozen backbone, beside PyTorch's own layers."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from simulations.benchmarks.contract import Benchmark, Case, Figure, Options, Variant
from simulations.benchmarks.stopwatch import Stopwatch, seconds_of

if TYPE_CHECKING:
    import torch

_HERE = "simulations.benchmarks.features"
_SIDE = 128
# Side of the JPEG files of the second case.
_FILE_SIDE = 256


def _cases(options: Options) -> list[Case]:
    seconds, number = (0.3, 96) if options.quick else (5.0, 2000)
    eager = [
        (f"timm, {layout}, {dtype}", {"channels_last": layout == "channels_last", "dtype": dtype})
        for dtype in ("float32", "bfloat16")
        for layout in ("NCHW", "channels_last")
    ]
    passes = [Variant("Bract", f"{_HERE}:pass_of_bract", {"seconds": seconds})]
    passes += [Variant(name, f"{_HERE}:pass_of_timm", {"seconds": seconds, **chosen}) for name, chosen in eager]
    files = [
        Variant("Bract", f"{_HERE}:files_of_bract", {"number": number}),
        Variant("timm and torchvision, channels_last, float32", f"{_HERE}:files_of_torchvision", {"number": number}),
    ]
    return [
        Case(f"batches of 32 at {_SIDE} px, one core", tuple(passes)),
        Case(f"{number:,} JPEG files of {_FILE_SIDE} px, all cores", tuple(files), prepare=f"{_HERE}:write_files"),
    ]


def pass_of_bract(*, seconds: float) -> dict[str, float]:
    """Time the engine that Bract chooses for its default backbone.

    Args:
        seconds: How long to measure.
    """
    import torch

    from common.models.engines.acceleration import accelerated

    network, dtype = accelerated(_network(), "cpu")
    return _timed(network.features, dtype, torch.channels_last, seconds)


def pass_of_timm(*, seconds: float, channels_last: bool, dtype: str) -> dict[str, float]:
    """Time the same network with PyTorch's own layers.

    Args:
        seconds: How long to measure.
        channels_last: Layout of images and weights.
        dtype: float32, or bfloat16 under autocast.
    """
    import torch

    layout = torch.channels_last if channels_last else torch.contiguous_format
    return _timed(_timm_model().to(memory_format=layout), dtype, layout, seconds)


def _network() -> Any:
    from common.config.loading import defaults, parse
    from common.models.classifier import feature_network

    config = parse(defaults())
    return feature_network(config.model, config.backbone_spec)


def _timm_model() -> Any:
    """Return timm's own model, with random weights."""
    import timm

    return timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=0).eval()


def _timed(
    network: Callable[["torch.Tensor"], "torch.Tensor"], dtype: str, layout: "torch.memory_format", seconds: float
) -> dict[str, float]:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    torch.set_num_threads(1)
    images = torch.randn(32, 3, _SIDE, _SIDE).contiguous(memory_format=layout)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        _timm_model()(images)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bfloat16"):
        wall, cpu = seconds_of(lambda: network(images), least=seconds, warm_up=3)
    peak = _matmul_peak(getattr(torch, dtype), seconds / 5)
    return {
        "images_a_second": 32 / wall,
        "images_a_cpu_second": 32 / cpu,
        "share_of_peak": 100 * counter.get_total_flops() / wall / peak,
        "peak_gflops": peak / 1e9,
    }


def _matmul_peak(dtype: "torch.dtype", seconds: float) -> float:
    """Return the floating-point operations a second of a large matrix product."""
    import torch

    size = 1024
    left, right = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    wall, _ = seconds_of(lambda: left @ right, least=seconds)
    return 2 * size**3 / wall


def write_files(*, number: int, scratch: str) -> None:
    """Write JPEG files of smooth colours with some noise, in ten folders.

    Args:
        number: Number of files.
        scratch: Their parent.
    """
    from PIL import Image

    rng = np.random.default_rng(0)
    for row in range(number):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((_FILE_SIDE, _FILE_SIDE), Image.Resampling.BICUBIC), np.int16)
        pixels = (smooth + rng.integers(-12, 13, smooth.shape)).clip(0, 255).astype(np.uint8)
        folder = Path(scratch) / "images" / f"class{row % 10}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{row}.jpg", quality=90)


def files_of_bract(*, number: int, repeat: int, scratch: str) -> dict[str, float]:
    """Prepare the files with an empty cache, fingerprints included.

    Args:
        number: Number of files.
        repeat: Number of the pair.
        scratch: Parent of the files.

    Raises:
        RuntimeError: Features are missing.
    """
    import os

    os.environ["BRACT_HOME"] = str(Path(scratch) / f"empty-{repeat}")
    with Stopwatch() as watch:
        from common.config.loading import defaults, override, parse
        from common.data.preprocessing import prepare

        found = prepare(parse(override(defaults(), {"data.source": str(Path(scratch) / "images")})))
    if found.inputs.shape[0] != number:
        raise RuntimeError("files are missing")
    return {"images_a_second": number / watch.wall, "images_a_cpu_second": number / watch.cpu}


def files_of_torchvision(*, number: int, scratch: str) -> dict[str, float]:
    """Compute features of the files with a data loader of a process a core.

    Args:
        number: Number of files.
        scratch: Parent of the files.
    """
    with Stopwatch() as watch:
        _features_of_files(Path(scratch) / "images", number)
    return {"images_a_second": number / watch.wall, "images_a_cpu_second": number / watch.cpu}


def _features_of_files(source: Path, number: int) -> None:
    import torch
    from torch.utils.data import DataLoader
    from torchvision import datasets, transforms

    from common.system.threads import num_cores

    steps = [transforms.Resize(_SIDE, transforms.InterpolationMode.BICUBIC), transforms.ToTensor()]
    folder = datasets.ImageFolder(str(source), transforms.Compose(steps))
    model = _timm_model().to(memory_format=torch.channels_last)
    rows = []
    with torch.inference_mode():
        for images, _ in DataLoader(folder, batch_size=32, num_workers=num_cores()):
            rows.append(model(images.contiguous(memory_format=torch.channels_last)))
    if len(torch.cat(rows)) != number:
        raise RuntimeError("files are missing")


BENCHMARK = Benchmark(
    "features",
    "Images a second through EfficientNet-Lite0 beside timm with PyTorch's own layers, and from files to features.",
    "10 minutes",
    (
        Figure("images_a_second", "images/s", larger_is_better=True),
        Figure("images_a_cpu_second", "images/CPU s", larger_is_better=True),
        Figure("share_of_peak", "% of matmul peak", larger_is_better=True, compared=False),
        Figure("peak_gflops", "peak GFLOP/s", larger_is_better=True, compared=False),
    ),
    _cases,
    notes=(
        "The peak is that of a product of matrices of 1,024 rows in the same number format. Files: imports "
        "included; Bract decodes in full, takes fingerprints and stores the features; the other side stores nothing.",
    ),
)
