"""Classes that few clients of a simulation hold.

Only a simulation may look: whoever runs it has all images. Real clients never show which classes they have.
"""

from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np

from common.config.sections import DataConfig
from common.config.secure_sum import SecureSum
from common.data.partitioning.client_sizes import training_owners
from common.data.partitioning.partition import Partition, class_counts
from common.data.scan import Scan
from common.data.sources.base_source import Entries
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
    """Return one sentence on the classes that too few clients hold.

    The result is empty if there are none.

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
    held: dict[str, list[str]] = {}
    for (row, name), (kind, table) in product(enumerate(classes), class_counts.items()):
        holders = np.flatnonzero(table[row]).tolist()
        if 1 <= len(holders) <= exact_sum.most_exposed:
            held.setdefault(name, []).append(f"{kind} images at {_clients(holders)} alone".lstrip())
    if not held:
        return ()
    shown = [f"{name!r} ({'; '.join(places)})" for name, places in list(held.items())[:_SHOWN]]
    rest = f" and {len(held) - _SHOWN} more" if len(held) > _SHOWN else ""
    found = (
        f"{len(held)} of {len(classes)} classes have so few holders that their rows in a secure sum without noise may "
        f"be one client's if others are lost or collude: {', '.join(shown)}{rest}"
    )
    remedy = "add noise (privacy.mechanism), or divide the classes among more clients"
    if strict:
        raise ConfigError(f"privacy.strict-rows refuses this run. {found}. To go on, {remedy}")
    return (f"{found}. To hide them, {remedy}; privacy.strict-rows=true refuses such a run",)


def exposed_before_a_scan(
    entries: Entries, data: DataConfig, exact_sum: SecureSum | None, *, seed: int, strict: bool
) -> tuple[str, ...]:
    """Return what `exposed_rows` says of a source of which no image is decoded.

    Which images will be held out is not known then. A class with few holders here has no more on either side, so the
    run itself finds these classes, and may find more.

    Raises:
        ConfigError: There is such a row, and `strict` is set.
        DataError: The images cannot be divided as the settings ask.
    """
    if exact_sum is None:
        return ()
    owner = training_owners(entries, data, num_clients=exact_sum.num_clients, seed=seed)
    labels, counts = entries.labels, np.zeros((len(entries.classes), exact_sum.num_clients), dtype=np.int64)
    rows = np.flatnonzero((owner >= 0) & (labels[: entries.num_train] >= 0))
    np.add.at(counts, (labels[rows], owner[rows]), 1)
    return exposed_rows({"": counts}, entries.classes, exact_sum, strict=strict)


def _clients(holders: Sequence[int]) -> str:
    more = f" and {len(holders) - _SHOWN} more" if len(holders) > _SHOWN else ""
    return f"client{'s' * (len(holders) > 1)} {', '.join(map(str, holders[:_SHOWN]))}{more}"
