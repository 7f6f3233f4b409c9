"""Explanations of a model's classes, image by image."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import torch

from common.data.decoding import BadImage
from common.errors import ConfigError
from common.inference.card import ModelCard
from common.inference.explanation.method_names import MethodChoice
from common.inference.explanation.methods import METHODS, LogOdds, choose_method
from common.inference.explanation.overlay import draw_overlay
from common.inference.images import AnyImage, Cell, read_squares
from common.models.classifier import AnyNetwork

if TYPE_CHECKING:
    from PIL.Image import Image

# Images whose gradients are in memory at once.
BLOCK = 8
# Least side of a picture in pixels.
_PICTURE_SIDE = 320


@dataclass(frozen=True, eq=False)
class Explanation:
    """Map of the parts of an image that speak for a class.

    Attributes:
        class_name: Class that is explained.
        probability: Its probability.
        predicted: Most likely class.
        method: Name of the method.
        heat: Map (h, w) float32 of the square that the network saw. Values are at least 0, in the method's own units.
        picture: That square of the image, larger than the network saw it.
    """

    class_name: str
    probability: float
    predicted: str
    method: str
    heat: np.ndarray
    picture: "Image"

    def overlay(self) -> "Image":
        """Return a picture of the square beside the same square with the map."""
        return draw_overlay(self.picture, self.heat)


class Explainer:
    """Method of explanation for one model.

    Args:
        card: The model's card.
        network: Its network, on its device.
        device: That device.
        interpolation: Interpolation of scaled images.
        method: The method, or `auto`.

    Raises:
        ConfigError: Captum is not installed, or the method does not go with the network.
    """

    def __init__(
        self, card: ModelCard, network: AnyNetwork, device: str, interpolation: str, method: MethodChoice
    ) -> None:
        self.card, self.network = card, network
        self._device, self._interpolation = device, interpolation
        blank = np.zeros((1, card.side, card.side, card.channels), np.uint8)
        self.method = choose_method(network, self.prepared(blank), method)

    def class_number(self, name: str) -> int:
        """Return the number of a class.

        Raises:
            ConfigError: The model has no class of this name.
        """
        if name not in self.card.classes:
            raise ConfigError(f"the model has no class {name!r}; it has {', '.join(self.card.classes[:20])}")
        return self.card.classes.index(name)

    def prepared(self, pixels: np.ndarray) -> torch.Tensor:
        """Return the network's input of pixels (n, side, side, channels) uint8, on its device."""
        return self.network.prepare(pixels).to(self._device)

    def pixels(self, images: Iterable[AnyImage | Cell]) -> "Iterator[np.ndarray | BadImage]":
        """Yield the square (side, side, channels) uint8 of each image.

        For a bad image the reason is yielded.
        """
        mode = "L" if self.card.channels == 1 else "RGB"
        shape = (self.card.side, self.card.side, self.card.channels)
        for image in read_squares(images, self.card.side, self._interpolation, self.card.tones):
            yield image if isinstance(image, BadImage) else np.asarray(image.convert(mode)).reshape(shape)

    def predicted(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the probabilities (n, classes) of prepared images, on the CPU."""
        with torch.inference_mode():
            # Not every device computes in double precision.
            return torch.softmax(LogOdds(self.network).logits(inputs).cpu().double(), dim=1)

    def maps(self, network: AnyNetwork, inputs: torch.Tensor, classes: torch.Tensor) -> np.ndarray:
        """Return maps (n, h, w) float32 of prepared images and their classes (n,).

        The network has the form of the model's.
        """
        # Captum warns of inputs without gradients and sets this by itself.
        found = METHODS[self.method](LogOdds(network), inputs.detach().clone().requires_grad_(), classes)
        return np.asarray(found.detach().float().cpu().numpy())

    def explain(
        self, images: Iterable[AnyImage | Cell], classes: Iterable[int | None]
    ) -> "Iterator[Explanation | BadImage]":
        """Yield an explanation of each image.

        For a bad image the reason is yielded.

        Args:
            images: The images, read as they are needed.
            classes: For each image the number of the class to explain, or None for the most likely one.
        """
        rows = zip(images, classes, strict=False)
        while block := list(islice(rows, BLOCK)):
            yield from self._explain([image for image, _ in block], [number for _, number in block])

    def _explain(
        self, images: Sequence[AnyImage | Cell], classes: Sequence[int | None]
    ) -> "Iterator[Explanation | BadImage]":
        side = max(_PICTURE_SIDE, self.card.side)
        pictures = list(read_squares(images, side, self._interpolation, self.card.tones))
        found: list[np.ndarray | BadImage | Explanation] = list(self.pixels(images))
        good = {at: square for at, square in enumerate(found) if isinstance(square, np.ndarray)}
        if good:
            inputs = self.prepared(np.stack(list(good.values())))
            shares = self.predicted(inputs)
            likely = shares.argmax(dim=1).tolist()
            wanted = [likely[row] if (given := classes[at]) is None else given for row, at in enumerate(good)]
            maps = self.maps(self.network, inputs, torch.tensor(wanted, device=inputs.device))
            for row, at in enumerate(good):
                name, predicted = self.card.classes[wanted[row]], self.card.classes[likely[row]]
                share, picture = float(shares[row, wanted[row]]), pictures[at]
                found[at] = (
                    picture
                    if isinstance(picture, BadImage)
                    else Explanation(name, share, predicted, self.method, maps[row], picture)
                )
        yield from (each for each in found if not isinstance(each, np.ndarray))
