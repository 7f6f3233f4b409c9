"""Classes that few clients of a simulation hold.

Only a simulation may look: whoever runs it has all images. Real clients never show which classes they have.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from common.config.secure_sum import SecureSum
from common.data.partitioning.partition import Partition, class_counts
from common.data.scan import Scan
from common.errors import ConfigError

_SHOWN = 5


def counts_by_kind(scan: Scan, partition: Partition, *, counted: bool) -> dict[str, np.ndarray]:
    """Count images of each class at each client by what they add to.

    `counted` says whether counts of held-out images leave, too.
    """
    # An image that is held out adds nothing to a trained row, and a trained one nothing to the confusion matrix.
    kinds = {"training": False} | ({"held-out": True} if counted else {})
    return {kind: class_counts(scan, partition, held_out=held_out) for kind, held_out in kinds.items()}


def exposed_rows(
    class_counts: Mapping[str, np.ndarray], classes: Sequence[str], exact_sum: SecureSum | None, *, strict: bool
) -> tuple[str, ...]:
    """Return a sentence on each class that too few clients hold.

    The row of such a class in the sum may be that of one client. A sum opens without the clients that are lost, and
    those that collude with the server subtract their own parts. So a row hides somebody only if at least two more
    clients hold its class. A class that nobody holds has no such row.

    Args:
        class_counts: Kind of images -> (classes, clients) int64, images of each class at each client. Training images
            make rows of the model, held-out ones those of the confusion matrix.
        classes: Names of the classes.
        exact_sum: Constants of a secure sum without noise; None where there is none.
        strict: Whether such a row is refused.

    Raises:
        ConfigError: There is such a row, and `strict` is set.

    Source: arXiv:2508.04285 (rows of linear heads in secure sums).
    """
    if exact_sum is None:
        return ()
    lines = []
    of_classes = ((name, kind, table[row]) for row, name in enumerate(classes) for kind, table in class_counts.items())
    for name, kind, counts in of_classes:
        holders = np.flatnonzero(counts).tolist()
        if 1 <= len(holders) <= exact_sum.most_exposed:
            more = f" and {len(holders) - _SHOWN} more" if len(holders) > _SHOWN else ""
            who = f"client{'s' * (len(holders) > 1)} {', '.join(map(str, holders[:_SHOWN]))}{more}"
            lines.append(
                f"Class {name!r} has {kind} images at {who} alone: its row in a secure sum without noise may be one "
                "client's if others are lost or collude"
            )
    if lines and strict:
        advice = "privacy.strict-rows: add noise (privacy.mechanism), or divide the classes among more clients"
        rest = [f"and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
        raise ConfigError("\n  ".join([advice, *lines[:_SHOWN], *rest]))
    return tuple(lines)
