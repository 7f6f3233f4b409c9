"""Predictions of a model as rows of tables."""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from common.data.decoding import BadImage
from common.inference.classifier import Classifier, probabilities
from common.inference.inputs import NamedImages
from common.system.console import printable
from common.system.progress import ProgressFactory, no_progress


@dataclass(frozen=True)
class Prediction:
    """Most likely classes of one image with their probabilities.

    A bad image has none, and its fault says why.
    """

    image: str
    top: tuple[tuple[str, float], ...]
    fault: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        name, probability = self.top[0] if self.top else (None, None)
        top = [{"class": name, "probability": value} for name, value in self.top]
        return {"image": self.image, "class": name, "probability": probability, "top": top, "fault": self.fault or None}

    def cells(self, top_k: int) -> list[Any]:
        """Return the row of a table with `columns`."""
        ranked: list[Any] = [value for pair in self.top for value in pair]
        return [printable(self.image, keep=""), *ranked, *[None] * (2 * top_k - len(ranked)), self.fault or None]


def columns(top_k: int) -> list[str]:
    """Return the names of a table's columns.

    >>> columns(2)
    ['image', 'class', 'probability', 'class_2', 'probability_2', 'fault']
    """
    ranks = [
        f"{name}{f'_{rank}' if rank > 1 else ''}" for rank in range(1, top_k + 1) for name in ("class", "probability")
    ]
    return ["image", *ranks, "fault"]


def predict_images(
    model: Classifier, images: NamedImages, top_k: int, progress: ProgressFactory = no_progress
) -> Iterator[Prediction]:
    """Yield a prediction for each image in order.

    A bad image has one with its fault.
    """
    names: list[str] = []

    def cells() -> Iterator[Any]:
        for name, cell in images:
            names.append(name)
            yield cell

    advance = progress(images.number, "Classifying")
    for number, row in enumerate(model.scores(cells(), advance)):
        if isinstance(row, BadImage):
            yield Prediction(names[number], (), str(row))
            continue
        shares = probabilities(row[None])[0]
        # A stable sort, so that classes of equal probability stand in the order of the card.
        order = np.argsort(-shares, kind="stable")[:top_k]
        yield Prediction(names[number], tuple((model.classes[at], float(shares[at])) for at in order.tolist()))


def as_csv(rows: Sequence[Prediction], top_k: int) -> bytes:
    """Return predictions as a CSV file in UTF-8."""
    stream = io.StringIO(newline="")
    writer = csv.writer(stream)
    writer.writerow(columns(top_k))
    writer.writerows(row.cells(top_k) for row in rows)
    return stream.getvalue().encode()


def as_parquet(rows: Sequence[Prediction], top_k: int) -> bytes:
    """Return predictions as a Parquet file."""
    import pyarrow as pa
    from pyarrow import parquet

    names = columns(top_k)
    kinds = [pa.float64() if name.startswith("probability") else pa.string() for name in names]
    cells = [row.cells(top_k) for row in rows]
    arrays = [pa.array([line[at] for line in cells], type=kind) for at, kind in enumerate(kinds)]
    stream = io.BytesIO()
    parquet.write_table(pa.Table.from_arrays(arrays, names=names), stream)
    return stream.getvalue()
