"""Formats to which a model can be exported."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from common.errors import ModelError
from common.inference.card import ModelCard
from common.inference.classifier import Classifier
from common.inference.export.comparison import Runner, check_equal, relative_error, torch_runner, trial_pixels
from common.inference.export.metadata import Format, metadata_of
from common.inference.export.onnx_file import check_packages, onnx_runner, to_onnx, with_metadata
from common.inference.export.pixel_network import PixelNetwork
from common.inference.export.pruning import Part, check_package, prune


@dataclass(frozen=True)
class Stage:
    """Form of the model with its size in bytes."""

    name: str
    size: int
    run: Runner


@dataclass(frozen=True)
class Pruning:
    """Wish for a smaller model.

    Attributes:
        fraction: Share of the channels or weights to remove.
        part: `channels`, `weights`, or None for channels where the backbone allows it.
    """

    fraction: float
    part: Part | None = None


@dataclass(frozen=True)
class Export:
    """An exported file.

    Attributes:
        content: The file.
        error: Largest difference from the network that was exported, as a share of its largest logit, on trial images.
        stages: The original, what lies between, and the file.
        pruned: What was removed from the original, empty if nothing was.
        part: The kind of what was removed.
    """

    content: bytes
    error: float
    stages: tuple[Stage, ...]
    pruned: str = ""
    part: Part | None = None


def check_format(kind: Format, pruning: Pruning | None = None) -> None:
    """Refuse a format or a pruning whose packages are not installed.

    Raises:
        ConfigError: A package is missing.
    """
    if kind != "torch-export":
        check_packages()
    if pruning is not None:
        check_package(pruning.part)


def export_model(
    model: Classifier,
    kind: Format,
    *,
    calibration: np.ndarray | None = None,
    reduce_range: bool = False,
    pruning: Pruning | None = None,
) -> Export:
    """Export a model on the CPU and compare the file with the original.

    Args:
        model: The model, on the CPU.
        kind: The format.
        calibration: Public images for `onnx-int8`, (n, side, side, 3) uint8. The file tells their activations' ranges.
        reduce_range: Whether weights of 8 bits get 7 bits only.
        pruning: What to remove before the conversion.

    Raises:
        ModelError: The file does not give the logits of the network that was converted.
        ConfigError: A package is missing, or the pruning does not fit the backbone.
    """
    check_format(kind, pruning)
    network = PixelNetwork(model.module, model.card.channels).eval()
    first = _torch_stage("PyTorch", network)
    if pruning is None:
        return _convert(model.card, network, kind, (first,), {}, calibration, reduce_range=reduce_range)
    pruned = prune(network, model.card.side, pruning.fraction, pruning.part)
    stages = (first, _torch_stage("PyTorch, pruned", pruned.network))
    facts = {"pruned": pruned.text}
    export = _convert(model.card, pruned.network, kind, stages, facts, calibration, reduce_range=reduce_range)
    return replace(export, pruned=pruned.text, part=pruned.part)


def _torch_stage(name: str, network: PixelNetwork) -> Stage:
    tensors = [*network.parameters(), *network.buffers()]
    return Stage(name, sum(tensor.nbytes for tensor in tensors), torch_runner(network))


def _convert(
    card: ModelCard,
    network: PixelNetwork,
    kind: Format,
    before: tuple[Stage, ...],
    facts: Mapping[str, str],
    calibration: np.ndarray | None,
    *,
    reduce_range: bool,
) -> Export:
    """Convert a network and compare the file with the last stage before."""
    side, original = card.side, before[-1].run
    if kind == "torch-export":
        from common.inference.export.torch_program import program_runner, to_program

        content = to_program(network, side, metadata_of(card, **facts))
        run = program_runner(content)
        return Export(content, check_equal(run, original, side), (*before, Stage(kind, len(content), run)))
    plain = to_onnx(network, side)
    content = with_metadata(plain, metadata_of(card, **facts))
    run = onnx_runner(content)
    error = check_equal(run, original, side)
    second = Stage("onnx", len(content), run)
    if kind == "onnx":
        return Export(content, error, (*before, second))
    if calibration is None:
        raise ModelError("onnx-int8 needs images for its calibration")
    from common.inference.export.quantization import quantise

    said = f"static, {len(calibration)} images that were declared public" + (", 7-bit weights" if reduce_range else "")
    said_of = metadata_of(card, calibration=said, **facts)
    small = with_metadata(quantise(plain, calibration, reduce_range=reduce_range), said_of)
    run = onnx_runner(small)
    error = relative_error(run(trial_pixels(side)), original(trial_pixels(side)))
    if not np.isfinite(error):
        raise ModelError("the model in 8 bits gives logits that are not finite: nothing was written")
    return Export(small, error, (*before, second, Stage(kind, len(small), run)))


def agreement(export: Export, pixels: np.ndarray) -> float:
    """Return the share of images (n, side, side, 3) that keep their class."""
    first, last = (_predict(stage.run, pixels) for stage in (export.stages[0], export.stages[-1]))
    return float((first == last).mean())


def _predict(run: Runner, pixels: np.ndarray) -> np.ndarray:
    return np.concatenate([run(pixels[at : at + 32]).argmax(axis=1) for at in range(0, len(pixels), 32)])
