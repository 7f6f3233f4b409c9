"""Classifier of images with the model of a run."""

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from torch import nn

from common.data.decoding import BadImage
from common.data.feature_extraction import FeatureExtractor, Progress, choose_device
from common.errors import DataError
from common.inference.card import WEIGHTS_FILE, ModelCard, find_model, read_card
from common.inference.images import AnyImage, Cell, as_list, name_of_image, read_squares
from common.inference.network import build_from_card
from common.inference.weights import read_weights
from common.models.classifier import AnyNetwork, Network
from common.models.engines.acceleration import accelerated

if TYPE_CHECKING:
    from PIL.Image import Image

    from common.inference.explanation.explainer import Explainer, Explanation
    from common.inference.explanation.method_names import MethodChoice

_Result = TypeVar("_Result")


class Classifier:
    """Trained model that classifies images as paths, images of Pillow or arrays.

    Images are decoded and scaled as in training. An image's scores do not depend on the images that came with it. All
    methods take one image or several, and return one row an image, in their order.

    Args:
        card: The model's card.
        network: Its network, on the CPU.
        device: `auto`, `cpu`, `cuda` or `mps`.

    Raises:
        DataError: This machine lacks the device.
    """

    def __init__(self, card: ModelCard, network: AnyNetwork, device: str = "auto") -> None:
        self.card = card
        self._network = network
        self._device = choose_device(device)
        self._network.to(self._device)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of the scores."""
        return self.card.classes

    @property
    def module(self) -> AnyNetwork:
        """Network as a `torch.nn.Module`, from normalised (n, channels, side, side) to logits.

        Its method `prepare` makes such an input of `pixels`.
        """
        return self._network

    @property
    def interpolation(self) -> str:
        """Interpolation of scaled images, `bicubic` or `bilinear`."""
        body = self._network.body if isinstance(self._network, Network) else None
        return "bicubic" if body is None else body.preprocessing.interpolation

    def predict(self, images: AnyImage | Iterable[AnyImage]) -> list[str]:
        """Return the most likely class of each image.

        Raises:
            DataError: An image cannot be used.
        """
        return [self.classes[number] for number in self.logits(images).argmax(axis=1)]

    def predict_proba(self, images: AnyImage | Iterable[AnyImage]) -> np.ndarray:
        """Return the probabilities of all classes, (n, classes) float64.

        Raises:
            DataError: An image cannot be used.
        """
        return probabilities(self.logits(images))

    def logits(self, images: AnyImage | Iterable[AnyImage]) -> np.ndarray:
        """Return the scores of all classes, (n, classes) float32.

        Raises:
            DataError: An image cannot be used.
        """
        rows = self._rows(as_list(images), self._head)
        return np.stack(rows) if rows else np.zeros((0, len(self.classes)), np.float32)

    def features(self, images: AnyImage | Iterable[AnyImage]) -> np.ndarray:
        """Return what the head sees of each image, (n, features) float32.

        Raises:
            DataError: An image cannot be used.
        """
        rows = self._rows(as_list(images), None)
        first = next(layer for layer in self._head.modules() if isinstance(layer, nn.Linear))
        return np.stack(rows) if rows else np.zeros((0, first.in_features), np.float32)

    def pixels(self, images: AnyImage | Iterable[AnyImage]) -> np.ndarray:
        """Return the scaled squares that the network sees, (n, side, side, channels) uint8.

        Raises:
            DataError: An image cannot be used.
        """
        listed = as_list(images)
        squares = [
            np.asarray(_good(image, listed, number).convert("L" if self.card.channels == 1 else "RGB"))
            for number, image in enumerate(self._squares(listed))
        ]
        return np.reshape(squares, (len(squares), self.card.side, self.card.side, self.card.channels)).astype(np.uint8)

    def explain(
        self,
        images: AnyImage | Iterable[AnyImage],
        *,
        class_name: str | None = None,
        method: "MethodChoice" = "auto",
    ) -> "list[Explanation]":
        """Return for each image which parts of it speak for a class.

        Args:
            images: The images.
            class_name: The class; None for the most likely one of each image.
            method: `grad-cam`, `integrated-gradients`, `occlusion`, or `auto` for what suits the backbone.

        Raises:
            ConfigError: Captum is not installed, the class is unknown, or the method does not go with the backbone.
            DataError: An image cannot be used.
        """
        listed, explainer = as_list(images), self.explainer(method)
        number = None if class_name is None else explainer.class_number(class_name)
        found = explainer.explain(listed, repeat(number))
        return [_good(each, listed, at) for at, each in enumerate(found)]

    def explainer(self, method: "MethodChoice" = "auto") -> "Explainer":
        """Return what explains this model's classes by a method.

        Raises:
            ConfigError: Captum is not installed, or the method does not go with the backbone.
        """
        from common.inference.explanation.explainer import Explainer

        return Explainer(self.card, self._network, self._device, self.interpolation, method)

    def scores(self, cells: Iterable[Cell], progress: Progress = lambda _: None) -> "Iterator[np.ndarray | BadImage]":
        """Yield the logits (classes,) float32 of each cell.

        For a bad image the reason is yielded.

        Cells are read as they are needed, so there may be any number.
        """
        return self._passed(cells, self._head, progress)

    @property
    def _head(self) -> nn.Module:
        return self._network.head

    @cached_property
    def _fast(self) -> tuple[AnyNetwork, str]:
        """Network that computes what training stored, with its number format."""
        # A tuned backbone computes in float32 during training, so it does here.
        if not self.card.caches_features or not isinstance(self._network, Network):
            return self._network, "float32"
        return accelerated(self._network, self._device)

    def _rows(self, images: Sequence[AnyImage], head: nn.Module | None) -> list[np.ndarray]:
        passed = self._passed(images, head, lambda _: None)
        return [_good(row, images, number) for number, row in enumerate(passed)]

    def _squares(self, images: Iterable[AnyImage | Cell]) -> "Iterator[Image | BadImage]":
        return read_squares(images, self.card.side, self.interpolation, self.card.tones)

    def _passed(
        self, images: Iterable[AnyImage | Cell], head: nn.Module | None, progress: Progress
    ) -> "Iterator[np.ndarray | BadImage]":
        done = _Rows()
        network, dtype = self._fast
        extractor = FeatureExtractor(
            network,
            done,
            side=self.card.side,
            interpolation="bicubic",
            device=self._device,
            progress=progress,
            channels=self.card.channels,
            dtype=dtype,
            head=head,
        )
        with extractor:
            for number, image in enumerate(self._squares(images)):
                key = number.to_bytes(8, "big")
                if isinstance(image, BadImage):
                    done.rows[key] = image
                    progress(1)
                else:
                    extractor.push(image, key)
                yield from done.ready()
        yield from done.ready()


class _Rows:
    """Results that are handed out in the order of their images."""

    def __init__(self) -> None:
        self.rows: dict[bytes, np.ndarray | BadImage] = {}
        self._next = 0

    def __contains__(self, key: bytes, /) -> bool:
        return False

    def append(self, keys: Sequence[bytes], rows: np.ndarray, /) -> None:
        self.rows |= dict(zip(keys, rows, strict=True))

    def ready(self) -> "Iterator[np.ndarray | BadImage]":
        while (row := self.rows.pop(self._next.to_bytes(8, "big"), None)) is not None:
            self._next += 1
            yield row


def _good(result: _Result | BadImage, images: Sequence[AnyImage], number: int) -> _Result:
    if isinstance(result, BadImage):
        raise DataError(f"{name_of_image(images[number], number)}: {result}")
    return result


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Return the softmax (n, classes) float64 of logits (n, classes).

    >>> probabilities(np.array([[0.0, 0.0], [1000.0, 0.0]])).tolist()
    [[0.5, 0.5], [1.0, 0.0]]
    """
    # Subtracting the largest logit keeps `exp` from overflowing.
    grown = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return np.asarray(grown / grown.sum(axis=1, keepdims=True))


def load_model(place: str | Path, *, weights: str | Path | None = None, device: str = "auto") -> Classifier:
    """Load a run's model.

    Args:
        place: Folder of a run, or its `model/`.
        weights: File with the backbone's weights, where the run had one in `model.weights`.
        device: `auto`, `cpu`, `cuda` or `mps`.

    Raises:
        ModelError: There is no model, its weights, classes or backbone differ from its card, or it is damaged.
        DataError: This machine lacks the device.
    """
    folder = find_model(Path(place))
    card = read_card(folder)
    arrays = read_weights(folder / WEIGHTS_FILE, card)
    network = build_from_card(card, arrays, folder, None if weights is None else Path(weights))
    return Classifier(card, network, device)
