"""Formats to which a model can be exported."""

from dataclasses import dataclass

import numpy as np

from common.errors import ModelError
from common.inference.classifier import Classifier
from common.inference.export.comparison import Runner, check_equal, relative_error, torch_runner, trial_pixels
from common.inference.export.metadata import Format, metadata_of
from common.inference.export.onnx_file import check_packages, onnx_runner, to_onnx, with_metadata
from common.inference.export.pixel_network import PixelNetwork


@dataclass(frozen=True)
class Stage:
    """Form of the model with its size in bytes."""

    name: str
    size: int
    run: Runner


@dataclass(frozen=True)
class Export:
    """An exported file.

    Attributes:
        content: The file.
        error: Largest difference from the original as a share of its largest logit, on trial images.
        stages: The original, what lies between, and the file.
    """

    content: bytes
    error: float
    stages: tuple[Stage, ...]


def check_format(kind: Format) -> None:
    """Refuse a format whose packages are not installed.

    Raises:
        ConfigError: A package is missing.
    """
    if kind != "torch-export":
        check_packages()


def export_model(
    model: Classifier, kind: Format, *, calibration: np.ndarray | None = None, reduce_range: bool = False
) -> Export:
    """Export a model on the CPU and compare the file with the original.

    Args:
        model: The model, on the CPU.
        kind: The format.
        calibration: Public images for `onnx-int8`, (n, side, side, 3) uint8. The file tells their activations' ranges.
        reduce_range: Whether weights of 8 bits get 7 bits only.

    Raises:
        ModelError: The file does not give the original's logits.
        ConfigError: A package is missing.
    """
    check_format(kind)
    card, side = model.card, model.card.side
    network = PixelNetwork(model.module, card.channels).eval()
    original = torch_runner(network)
    tensors = [*network.parameters(), *network.buffers()]
    first = Stage("PyTorch", sum(tensor.nbytes for tensor in tensors), original)
    if kind == "torch-export":
        from common.inference.export.torch_program import program_runner, to_program

        content = to_program(network, side, metadata_of(card))
        run = program_runner(content)
        return Export(content, check_equal(run, original, side), (first, Stage(kind, len(content), run)))
    plain = to_onnx(network, side)
    content = with_metadata(plain, metadata_of(card))
    run = onnx_runner(content)
    error = check_equal(run, original, side)
    second = Stage("onnx", len(content), run)
    if kind == "onnx":
        return Export(content, error, (first, second))
    if calibration is None:
        raise ModelError("onnx-int8 needs images for its calibration")
    from common.inference.export.quantization import quantise

    said = f"static, {len(calibration)} images that were declared public" + (", 7-bit weights" if reduce_range else "")
    small = with_metadata(quantise(plain, calibration, reduce_range=reduce_range), metadata_of(card, calibration=said))
    run = onnx_runner(small)
    error = relative_error(run(trial_pixels(side)), original(trial_pixels(side)))
    if not np.isfinite(error):
        raise ModelError("the model in 8 bits gives logits that are not finite: nothing was written")
    return Export(small, error, (first, second, Stage(kind, len(small), run)))


def agreement(export: Export, pixels: np.ndarray) -> float:
    """Return the share of images (n, side, side, 3) that keep their class."""
    first, last = (_predict(stage.run, pixels) for stage in (export.stages[0], export.stages[-1]))
    return float((first == last).mean())


def _predict(run: Runner, pixels: np.ndarray) -> np.ndarray:
    return np.concatenate([run(pixels[at : at + 32]).argmax(axis=1) for at in range(0, len(pixels), 32)])
