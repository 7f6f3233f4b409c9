"""Export of a network as a program of torch.export."""

import io
from collections.abc import Mapping

import numpy as np
import torch

from common.inference.export.comparison import Runner
from common.inference.export.metadata import INPUT
from common.inference.export.onnx_file import quiet
from common.inference.export.pixel_network import PixelNetwork


def to_program(network: PixelNetwork, side: int, facts: Mapping[str, str]) -> bytes:
    """Return a .pt2 file for any number of images, with metadata as extra files.

    Guarantee: it holds no pickle, and names no file, no line of code and no folder of this machine.
    """
    example = torch.zeros(2, side, side, 3, dtype=torch.uint8)
    with quiet():
        program = torch.export.export(network, (example,), dynamic_shapes={INPUT: {0: torch.export.Dim.DYNAMIC}})
        # torch pickles the example, and would run what a pickle says when it loads the file.
        program.example_inputs = None
        for module in program.graph_module.modules():
            for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
                node.meta.pop("stack_trace", None)
        file = io.BytesIO()
        torch.export.save(program, file, extra_files=dict(facts))
    return file.getvalue()


def program_runner(content: bytes) -> Runner:
    """Return a runner of a file of `to_program`."""
    with quiet():
        module = torch.export.load(io.BytesIO(content)).module()

    def run(pixels: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return np.asarray(module(torch.from_numpy(pixels)).numpy())

    return run
