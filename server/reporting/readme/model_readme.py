"""README of a model in the form of the Hugging Face hub."""

import json
from collections.abc import Mapping
from typing import Any

from common.data.sources.base_source import OWN_IMAGES
from common.data.sources.registry import names_a_place
from common.inference.evaluation.intervals import wilson
from common.models.loading import PACKAGE_ORIGIN, RECORDED
from common.models.names import resolve_name
from common.models.weight_files import RANDOM
from server.reporting.readme.load_examples import library_of, onnx_example, torch_example

_MAX_CLASSES = 100
# About 95 % of a normal distribution lie within so many standard deviations.
_NORMAL = 1.96
# What the README repeats of a privacy statement.
_STATED = {"Accountant": "accountant", "Charged": "charged", "Scope": "scope"}


def model_readme(
    card: Mapping[str, Any], summary: Mapping[str, Any], statement: Mapping[str, Any], *, simulated: bool
) -> str:
    """Return the text for people who get the model.

    It has no times and no paths. Figures that the privacy statement does not cover are left out, except exact counts
    that clients sent.

    Args:
        card: Content of `card.json`.
        summary: Content of `summary.json`.
        statement: Content of `privacy.json`.
        simulated: Whether the clients are a simulation's.
    """
    figure = _accuracy(summary)
    parts = [
        _head(card, figure),
        f"# {card['backbone']}, {len(card['classes'])} classes",
        f"A classifier of images, trained by federated learning with [Bract](https://pypi.org/project/bract/) "
        f"({_model_words(card)}). {_classes(card)}",
        *(f"**Warning:** {warning}" for warning in card["warnings"]),
        "## Data and clients",
        _data(summary, simulated=simulated),
        "## Accuracy",
        _accuracy_words(summary, figure),
        "## Privacy",
        _privacy(statement),
        "## Limits",
        _limits(card),
        "## Licence",
        _licence(card),
        *_uses(card),
    ]
    return "\n\n".join(parts) + "\n"


def _uses(card: Mapping[str, Any]) -> list[str]:
    """Return the sections on how to use the model."""
    if card["personal"] == "head":
        return ["## Use", "The head stays at each client, so this model alone classifies nothing."]
    return [
        "## Use it with Bract",
        "`bract predict FOLDER photo.jpg`, where FOLDER holds this file. It checks that weights, backbone and classes "
        "belong together; the examples below do not.",
        "## Use it with ONNX Runtime alone",
        "`bract export FOLDER --out model.onnx` writes the whole network as one file. Then, with the packages "
        "`onnxruntime` and `pillow`:",
        f"```python\n{onnx_example(card)}```",
        *_values(card),
        *_without_onnx(card),
    ]


def _head(card: Mapping[str, Any], figure: "tuple[float, float, float] | None") -> str:
    """Return the YAML head that the hub reads."""
    tags = ["federated-learning", "bract", "flower", *(["differential-privacy"] if _is_private(card) else [])]
    lines = ["license: other", "license_name: not-chosen-yet", "pipeline_tag: image-classification"]
    lines += [] if card["personal"] == "head" else [f"library_name: {_library(card)}"]
    lines.append(f"tags: {json.dumps(tags)}")
    if _library(card) == "timm":
        lines.append(f"base_model: timm/{resolve_name(card['backbone']).architecture}")
    if figure is not None:
        task = {"type": "image-classification"}
        metrics = [{"type": "accuracy", "value": round(figure[0], 4)}]
        data = {"name": "held-out images of the clients", "type": "private"}
        results = [{"task": task, "dataset": data, "metrics": metrics}]
        lines.append(
            f"metrics: [accuracy]\nmodel-index: {json.dumps([{'name': card['backbone'], 'results': results}])}"
        )
    return "\n".join(["---", *lines, "---"])


def _is_private(card: Mapping[str, Any]) -> bool:
    """Return whether the run and those that it started from were private."""
    return bool(card["private"] and card.get("started_from", card)["private"])


def _library(card: Mapping[str, Any]) -> str:
    # The hub knows torchvision as PyTorch.
    library = library_of(card)
    return "pytorch" if library in ("torch", "torchvision") else library


def _model_words(card: Mapping[str, Any]) -> str:
    trained = "head alone" if card["tuning"] == "head" else card["tuning"]
    return f"`{card['backbone']}`, head `{card['head']}`, trained: {trained}"


def _classes(card: Mapping[str, Any]) -> str:
    # Clients named the classes. Inside a code span only a backtick has a meaning.
    listed = (json.dumps(name, ensure_ascii=False).replace("`", "\\u0060") for name in card["classes"][:_MAX_CLASSES])
    shown = ", ".join(f"`{name}`" for name in listed)
    more = len(card["classes"]) - _MAX_CLASSES
    return f"Classes: {shown}{f' and {more} more, see card.json' if more > 0 else ''}."


def _data(summary: Mapping[str, Any], *, simulated: bool) -> str:
    source = summary["config"]["data.source"]
    if source == OWN_IMAGES:
        words = "Each client trained on images of its own, which never left it."
    # A path can name a person, a ward or a machine.
    elif names_a_place(source):
        words = "Images of a folder or a table, which this file does not name."
    else:
        words = f"Images of `{source}`."
    kind = "simulated clients on one machine" if simulated else "clients"
    early = ", stopped early" if summary["stopped_early"] else ""
    rounds = f"{summary['clients']} {kind}, {summary['rounds']} of {summary['rounds_planned']} rounds{early}"
    status = "" if summary["status"] == "complete" else " **The run was interrupted.**"
    return f"{words} {rounds}, strategy {summary['config']['strategy.name']}.{status}"


def _accuracy(summary: Mapping[str, Any]) -> tuple[float, float, float] | None:
    """Return the accuracy that may be told with its interval of 95 %."""
    noised, final = summary["private_metrics"], summary["final_model"]
    # An interrupted run has figures of an earlier model only.
    if noised is not None and noised["accuracy_stddev"] is not None and noised["evaluated_model"] == final:
        value, spread = noised["accuracy"], _NORMAL * noised["accuracy_stddev"]
        return value, max(0.0, value - spread), min(1.0, value + spread)
    # Exact figures of a private simulation are about its images, and nothing accounts for them.
    if summary["accuracy"] is None or summary["simulation_only"] or summary["evaluated_model"] != final:
        return None
    count = summary["evaluated_examples"]
    low, high = wilson(round(summary["accuracy"] * count), count)
    return summary["accuracy"], low, high


def _accuracy_words(summary: Mapping[str, Any], figure: tuple[float, float, float] | None) -> str:
    if figure is None:
        return (
            "Not stated: no figure of this model left the clients that may be told. `bract evaluate` measures it on "
            "images of your own."
        )
    value, low, high = figure
    text = f"{value:.4f} on held-out images of the clients (95 %: {low:.4f} to {high:.4f}"
    if summary["private_metrics"] is not None:
        return f"{text}, of the privacy noise alone). The counts carry noise, and the privacy statement covers them."
    text += f", Wilson, {summary['evaluated_examples']:,} images)."
    return text + (" **These counts are exact, and no privacy statement covers them.**" if summary["private"] else "")


def _privacy(statement: Mapping[str, Any]) -> str:
    lines = [f"**{statement['statement']}.**"]
    if statement["private"]:
        rows = [f"- {name}: {statement[key]}" for name, key in _STATED.items()]
        lines += ["\n".join(rows), "Not protected:", "\n".join(f"- {gap}" for gap in statement["not_protected"])]
    return "\n\n".join(lines)


def _limits(card: Mapping[str, Any]) -> str:
    lines = [
        "- It was measured on images like those that it was trained on. On others it can be wrong and sure.",
        "- Every image gets one of its classes, also an image of something else. Probabilities are not calibrated.",
        "- It is not a medical device, and nobody has tested it as one.",
    ]
    if card["personal"]:
        lines.append(f"- A part stays at each client ({card['personal']}): this is the model without it.")
    return "\n".join(lines)


def _licence(card: Mapping[str, Any]) -> str:
    text = "Whoever passes this model on chooses the licence of its trained weights, and writes it here and above."
    if card["backbone"] == "cnn" or card["weights"] == RANDOM:
        return f"{text} It contains no weights of others."
    packaged = card["backbone"] in RECORDED and not card["weights"]
    origin = f" ({PACKAGE_ORIGIN})" if packaged else ""
    return f"{text} The backbone's weights{origin} have a licence of their own, which holds too."


def _values(card: Mapping[str, Any]) -> list[str]:
    """Return a warning about images that the examples read in another way."""
    values = card["preprocessing"].get("values")
    if not values:
        return []
    return [
        "**The examples read images as Pillow does.** This model was trained on images that were first converted to 8 "
        f"bits by `{json.dumps(values)}` (`preprocessing.values` in card.json), which `bract predict` does."
    ]


def _without_onnx(card: Mapping[str, Any]) -> list[str]:
    example = torch_example(card)
    if example is None or card["personal"]:
        return []
    library = library_of(card)
    needs = {"torch": "`torch`, `numpy`", "timm": "`timm`", "torchvision": "`torchvision`, `numpy`"}[library]
    weights = (
        ""
        if library == "torch"
        else " The backbone must have the weights of the training. Their SHA-256, as Bract counts it: "
        f"`{card['backbone_sha256']}`."
    )
    return [
        f"## Use it with {'PyTorch' if library == 'torch' else library} alone",
        f"In this folder, with the packages {needs}, `safetensors` and `pillow`.{weights}",
        f"```python\n{example}```",
    ]
