"""Export of a network to ONNX."""

import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from common.errors import ConfigError
from common.inference.export.comparison import Runner
from common.inference.export.metadata import INPUT, OUTPUT
from common.inference.export.pixel_network import PixelNetwork
from common.system.extras import install_hint

if TYPE_CHECKING:
    from onnx import ModelProto

_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def check_packages() -> None:
    """Refuse an export to ONNX without its packages.

    Raises:
        ConfigError: One of them is not installed.
    """
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise ConfigError(f"an export to ONNX needs {', '.join(missing)}: {install_hint('export')}")


def to_onnx(network: PixelNetwork, side: int) -> "ModelProto":
    """Convert a network to ONNX for any number of images.

    Guarantee: the model names no file, no line of code and no folder of this machine.

    Raises:
        ConfigError: The installed torch does not export in memory.
    """
    example = torch.zeros(2, side, side, 3, dtype=torch.uint8)
    with quiet():
        program = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes={INPUT: {0: torch.export.Dim.DYNAMIC}},
            external_data=False,
            verbose=False,
        )
    if program is None:
        raise ConfigError("this version of torch does not export to ONNX in memory")
    model: ModelProto = program.model_proto
    _forget_origin(model)
    return model


def _forget_origin(model: "ModelProto") -> None:
    """Remove all comments of the exporter, in place."""
    # Each node holds the stack of calls that made it, with the folders and the user's name of this machine.
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")
    for function in model.functions:
        function.ClearField("doc_string")
        for node in function.node:
            node.ClearField("doc_string")
            node.ClearField("metadata_props")


def with_metadata(model: "ModelProto", facts: Mapping[str, str]) -> bytes:
    """Return the file of a model with metadata."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    onnx.helper.set_model_props(copy, dict(facts))
    copy.producer_name = "bract"
    onnx.checker.check_model(copy)
    return bytes(copy.SerializeToString())


def onnx_runner(content: bytes) -> Runner:
    """Return a runner of an ONNX file on the CPU."""
    import onnxruntime

    session: Any = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def run(pixels: np.ndarray) -> np.ndarray:
        return np.asarray(session.run([OUTPUT], {INPUT: pixels})[0])

    return run


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress the lines that torch and ONNX Runtime print."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
