"""Sanity checks of explanations against models of random weights."""

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from scipy.stats import rankdata
from torch import nn

from common.data.decoding import BadImage
from common.errors import DataError
from common.inference.explanation.explainer import BLOCK, Explainer
from common.inference.images import AnyImage, Cell
from common.models.classifier import AnyNetwork
from common.randomness import public_stream
from common.system.progress import ProgressFactory, no_progress

# A network of the model's form -> maps (n, h, w) of the same images and classes.
Explain = Callable[[AnyNetwork], np.ndarray]
# Random networks of each kind. With one alone, the result would depend on its draw.
DRAWS = 5
# Images that are compared. Few are enough, because random networks differ more than images do.
MOST_IMAGES = 32
# Mean rank correlation from which maps of random networks count as the model's own.
ALIKE = 0.5


@dataclass(frozen=True)
class SanityCheck:
    """Likeness of a model's maps to those of the same model with random parts.

    Each value is a mean rank correlation over images and random networks. It is 1 if the maps do not change at all.

    Attributes:
        images: Number of images.
        head: Likeness under a random head.
        backbone: Likeness under a random backbone below the model's own head.
    """

    images: int
    head: float
    backbone: float

    @property
    def depends_on_head(self) -> bool:
        """True if a random head changes the maps."""
        return self.head < ALIKE

    @property
    def depends_on_backbone(self) -> bool:
        """True if a random backbone changes the maps."""
        return self.backbone < ALIKE

    @property
    def holds(self) -> bool:
        """True if the maps depend on both parts of the model."""
        return self.depends_on_head and self.depends_on_backbone


def check_explainer(
    explainer: Explainer,
    images: Iterable[AnyImage | Cell],
    number: int | None = None,
    progress: ProgressFactory = no_progress,
) -> SanityCheck:
    """Check the maps of a model on some images.

    Args:
        explainer: Explainer of the model.
        images: The images. The first `MOST_IMAGES` that can be read are used.
        number: Class that is explained, or None for the most likely class of each image.
        progress: Report of progress.

    Raises:
        DataError: None of the images can be read.
    """
    read = (square for square in explainer.pixels(images) if not isinstance(square, BadImage))
    squares = list(islice(read, MOST_IMAGES))
    if not squares:
        raise DataError("--check: none of the images can be read")
    starts = range(0, len(squares), BLOCK)
    blocks = [explainer.prepared(np.stack(squares[start : start + BLOCK])) for start in starts]
    likely = [explainer.predicted(block).argmax(dim=1) for block in blocks]
    wanted = likely if number is None else [torch.full_like(block, number) for block in likely]
    classes = [part.to(block.device) for part, block in zip(wanted, blocks, strict=True)]
    advance = progress(1 + 2 * DRAWS, "Checking")

    def explain(network: AnyNetwork) -> np.ndarray:
        advance(1)
        return np.concatenate([explainer.maps(network, *pair) for pair in zip(blocks, classes, strict=True)])

    return check_sanity(explainer.network, explain)


def check_sanity(network: AnyNetwork, explain: Explain) -> SanityCheck:
    """Compare a model's maps with those of the same model with random parts.

    Source: Adebayo et al. 2018, arXiv:1810.03292 (model parameter randomisation).
    """
    own = explain(network)
    likeness = {}
    for part in ("head", "backbone"):
        found = [explain(randomised(network, part, draw)) for draw in range(DRAWS)]
        likeness[part] = float(np.mean([_correlations(own, maps) for maps in found]))
    return SanityCheck(len(own), likeness["head"], likeness["backbone"])


def randomised(network: AnyNetwork, part: str, draw: int) -> AnyNetwork:
    """Return a copy of a network in which one part has random weights.

    Weights are normal with the spread of He et al., so that signals neither vanish nor grow through many layers.
    Vectors, such as biases, are shuffled. The statistics of BatchNorm become those of a new layer.

    Args:
        network: The network, which stays as it is.
        part: `head`, or `backbone` for all other layers.
        draw: Number of the random copy.
    """
    changed, rng = copy.deepcopy(network), public_stream(0, "sanity-check", part, draw)
    heads = {id(parameter) for parameter in changed.head.parameters()}
    with torch.no_grad():
        for parameter in changed.parameters():
            if (id(parameter) in heads) == (part == "head"):
                parameter.copy_(torch.from_numpy(_random_like(parameter, rng)))
        for name, buffer in changed.named_buffers() if part == "backbone" else ():
            if name.endswith(("running_mean", "running_var")):
                buffer.fill_(float(name.endswith("var")))
    return changed


def _random_like(parameter: nn.Parameter, rng: np.random.Generator) -> np.ndarray:
    shape = tuple(parameter.shape)
    if len(shape) < 2:
        return np.asarray(rng.permutation(parameter.detach().float().cpu().numpy().reshape(-1)).reshape(shape))
    spread = np.sqrt(2.0 / np.prod(shape[1:]))
    return np.asarray(spread * rng.standard_normal(shape), dtype=np.float32)


def _correlations(ours: np.ndarray, others: np.ndarray) -> Sequence[float]:
    return [rank_correlation(one, other) for one, other in zip(ours, others, strict=True)]


def rank_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Return Spearman's rank correlation of two maps of one shape.

    It is 1 for two flat maps, which are the same picture, and 0 for a flat one and another.

    >>> rank_correlation(np.array([[1.0, 2.0], [3.0, 9.0]]), np.array([[0.1, 0.2], [0.3, 0.4]]))
    1.0
    """
    ranks = [rankdata(each.reshape(-1)) for each in (one, other)]
    centred = [each - each.mean() for each in ranks]
    lengths = [float(np.linalg.norm(each)) for each in centred]
    # A flat map has no ranks, and the formula would divide by zero.
    if not all(lengths):
        return float(not any(lengths))
    return round(float(centred[0] @ centred[1]) / (lengths[0] * lengths[1]), 12)
