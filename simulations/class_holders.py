"""Classes that few clients of a simulation hold.

Only a simulation may look: whoever runs it has all images. Real clients never show which classes they have.
"""

from collections.abc import Sequence

import numpy as np

from common.config.secure_sum import SecureSum
from common.errors import ConfigError

_SHOWN = 5


def exposed_rows(
    class_counts: np.ndarray, classes: Sequence[str], exact_sum: SecureSum | None, *, strict: bool
) -> tuple[str, ...]:
    """Return a sentence on each class that too few clients hold.

    The row of such a class in the sum is that of one client. Clients that collude with the server subtract their own
    parts, so a row hides somebody only if at least two more clients hold its class. A class that nobody holds has no
    such row.

    Args:
        class_counts: (classes, clients) int64, images of each class at each client.
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
    for name, counts in zip(classes, class_counts, strict=True):
        holders = np.flatnonzero(counts).tolist()
        if 1 <= len(holders) <= exact_sum.colluding + 1:
            who = f"client{'s' * (len(holders) > 1)} {', '.join(map(str, holders))}"
            lines.append(
                f"Class {name!r} is held by {who} alone: its row in each secure sum without noise may be one client's"
            )
    if lines and strict:
        advice = "privacy.strict-rows: add noise (privacy.mechanism), or divide the classes among more clients"
        more = [f"and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
        raise ConfigError("\n  ".join([advice, *lines[:_SHOWN], *more]))
    return tuple(lines)
