"""Synthetic federation of clients, drawn from public constants."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from common.arrays import Arrays
from common.models.linear_head import HEAD_WEIGHT, head_logits, initial_head, residuals
from common.privacy.clipping import clipped_head_sum, row_norms
from simulations.advice.features import FeatureTask, draw_features

TEST_ROWS = 2_000
# More sizes would only make more groups, and each group's plan takes a while.
_MOST_GROUPS = 4


@dataclass(frozen=True)
class SizeGroup:
    """Clients of about the same size.

    Attributes:
        num_clients: How many clients the group has.
        num_units: Declared units of each.
    """

    num_clients: int
    num_units: int


def group_sizes(sizes: Iterable[int]) -> tuple[SizeGroup, ...]:
    """Return groups of clients of similar size, the smallest first.

    >>> group_sizes([300, 300, 500])
    (SizeGroup(num_clients=2, num_units=300), SizeGroup(num_clients=1, num_units=500))
    """
    ordered = sorted(sizes)
    distinct = sorted(set(ordered))
    borders = [part[0] for part in np.array_split(distinct, min(_MOST_GROUPS, len(distinct)))]
    group_of = np.searchsorted(borders, ordered, side="right")
    parts = [np.array(ordered)[group_of == number] for number in range(1, len(borders) + 1)]
    return tuple(SizeGroup(len(part), round(float(part.mean()))) for part in parts)


class SyntheticFederation:
    """Synthetic images of IID clients with test images that no client has.

    At most `most_rows` training images are drawn. Of a larger federation each drawn image stands for several, so that a
    sum over them has the size of the real one, and noise has its real weight.

    Attributes:
        groups: The clients by size.
        num_clients: Number of clients.
        total_units: Declared number of units of all of them.
        num_classes: Number of classes.
        features: (n, d) float32, a group's images side by side.
        labels: (n,) int64.
        units_per_row: How many images each drawn one stands for.
    """

    def __init__(
        self,
        task: FeatureTask,
        groups: Sequence[SizeGroup],
        *,
        num_classes: int,
        num_features: int,
        most_rows: int,
        rng: np.random.Generator,
    ) -> None:
        self.groups, self.num_classes = tuple(groups), num_classes
        units = np.array([group.num_clients * group.num_units for group in groups])
        self.num_clients = sum(group.num_clients for group in groups)
        self.total_units = int(units.sum())
        rows = min(self.total_units, most_rows)
        self.units_per_row = self.total_units / rows
        drawn, labels = draw_features(task, rows + TEST_ROWS, num_classes, num_features, rng)
        self.features, self.labels = drawn[:rows], labels[:rows]
        self._test = drawn[rows:], labels[rows:]
        ends = np.rint(np.cumsum(units) / self.units_per_row).astype(int)
        self._rows = [slice(int(ends[i - 1]) if i else 0, int(end)) for i, end in enumerate(ends)]
        self._lengths = row_norms(self.features)

    def initial_head(self) -> Arrays:
        """Return the head that a run starts from."""
        return initial_head(self.features.shape[1], self.num_classes)

    def gradient_sums(self, head: Arrays, *, max_grad_norm: float) -> list[np.ndarray]:
        """Return the clipped gradient sum of each group, (classes, d) float64."""
        sums = []
        for rows in self._rows:
            features, weight = self.features[rows], head[HEAD_WEIGHT]
            found = clipped_head_sum(
                features,
                residuals(features, self.labels[rows], weight),
                max_grad_norm=max_grad_norm,
                feature_norms=self._lengths[rows],
            )
            sums.append(self.units_per_row * found)
        return sums

    def error_of(self, head: Arrays) -> float:
        """Return the share of test images that a head gets wrong."""
        features, labels = self._test
        return float((head_logits(features, head[HEAD_WEIGHT]).argmax(axis=1) != labels).mean())
