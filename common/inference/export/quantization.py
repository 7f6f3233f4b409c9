"""Numbers of 8 bits in an ONNX model, calibrated on images."""

import platform
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from common.inference.export.metadata import INPUT, OUTPUT
from common.inference.export.onnx_file import quiet

if TYPE_CHECKING:
    from onnx import ModelProto

_BATCH = 32
# Layers that are computed in 8 bits. ONNX Runtime fuses Clip and Relu into the layer before them.
_LAYERS = ["Conv", "MatMul", "Gemm", "Add", "Clip", "Relu"]
_WEIGHTED = ("Conv", "MatMul", "Gemm")


def needs_reduced_range() -> bool:
    """Return True on an x86 processor without VNNI.

    Its sums of two products of 8 bits saturate at 16 bits, and weights of 7 bits do not reach that.
    """
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    return x86 and not getattr(torch.cpu, "_is_vnni_supported", lambda: False)()


def quantise(model: "ModelProto", pixels: np.ndarray, *, reduce_range: bool) -> "ModelProto":
    """Convert a model's layers to 8 bits.

    Ranges are static, and weights have a scale for each channel. The head and the normalisation of pixels stay in
    float32.

    Args:
        model: The model in float32.
        pixels: Images whose activations give the ranges, (n, side, side, 3) uint8. These ranges are in the result.
        reduce_range: Whether weights get 7 bits.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_static

    # ONNX Runtime moves the weights of what it is given to a file of its own.
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    with tempfile.TemporaryDirectory() as folder, quiet():
        file = Path(folder) / "model.onnx"
        quantize_static(
            copy,
            str(file),
            _Batches(pixels),
            op_types_to_quantize=_LAYERS,
            per_channel=True,
            reduce_range=reduce_range,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=_kept(model),
        )
        quantised: ModelProto = onnx.load(str(file))
    return quantised


def _kept(model: "ModelProto") -> list[str]:
    """Return the names of the nodes that stay in float32."""
    nodes = list(model.graph.node)
    first = next((at for at, node in enumerate(nodes) if node.op_type in _WEIGHTED), len(nodes))
    return [node.name for at, node in enumerate(nodes) if at < first or OUTPUT in node.output]


class _Batches:
    """Calibration images, as ONNX Runtime asks for them."""

    def __init__(self, pixels: np.ndarray) -> None:
        self._parts: Iterator[np.ndarray] = (pixels[at : at + _BATCH] for at in range(0, len(pixels), _BATCH))

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the next images, None after the last."""
        part = next(self._parts, None)
        return None if part is None else {INPUT: part}
