"""Facts that an exported file carries about itself."""

import json
from importlib.metadata import version
from typing import Literal

from common.inference.card import ModelCard

Format = Literal["onnx", "onnx-int8", "torch-export"]
SUFFIXES: dict[Format, str] = {"onnx": ".onnx", "onnx-int8": ".onnx", "torch-export": ".pt2"}
# Names of the file's input and output.
INPUT, OUTPUT = "pixels", "logits"


def metadata_of(card: ModelCard, **more: str) -> dict[str, str]:
    """Return the metadata of an exported file, each value a text.

    `classes` and `preprocessing` are JSON. It has no times and no paths, so that equal models have equal metadata.
    """
    side = card.side
    preprocessing = {
        "input": INPUT,
        "pixels": f"RGB, 8 bits a channel, (n, {side}, {side}, 3)",
        "image_size": side,
        # Conversion to 8 bits comes before everything else, and is not inside.
        **({"values": card.preprocessing["values"]} if "values" in card.preprocessing else {}),
        # The small network takes what the scan of a source made: the same for every model.
        "resize": card.preprocessing.get("resize", "shorter side, bicubic, centre square"),
        "inside": "everything after that: conversion to numbers, normalisation"
        + (", conversion to grey" if card.channels == 1 else ""),
        "output": f"{OUTPUT}, (n, {len(card.classes)}); softmax gives probabilities",
    }
    return {
        "classes": json.dumps(card.classes),
        "preprocessing": json.dumps(preprocessing),
        "privacy": card.privacy_text,
        "backbone": card.backbone,
        "backbone_sha256": card.backbone_sha256,
        "model_sha256": card.model_sha256,
        "producer": f"bract {version('bract')}",
        **more,
    }
