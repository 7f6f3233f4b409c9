"""Deal images to clients with a `flwr-datasets` partitioner, and into training and held-out parts.

What is dealt are units: a group of images that share a unit (a patient) stays
together, and every other image is a unit of its own. Unreadable images and
images of an unknown class are dealt like all others, so that no client's
declared size depends on which files are bad.
"""

import contextlib
import io
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from common.config.schema import DataConfig
from common.data.partitioning.privacy_units import most_frequent
from common.errors import DataError
from common.randomness import keyed_uniform, public_stream

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner

TRIES = 5  # with a seed each; `flwr-datasets` draws Dirichlet shares eleven times in each
_SEEDED = ("dirichlet", "pathological", "shards")


def assign_clients(
    labels: np.ndarray,
    config: DataConfig,
    *,
    num_clients: int,
    seed: int,
    groups: np.ndarray | None = None,
    naturals: np.ndarray | None = None,
    names: Sequence[str] = (),
) -> np.ndarray:
    """The client of each training image, by a `flwr-datasets` partitioner.

    Guarantee: every image belongs to one client or to none, images of one group
    share their client, and every client holds at least `data.min-client-size`
    images. `dirichlet`, `iid` and `size-skew` leave no image out, nor does `natural`
    if each image names its client; `pathological` and `shards` may. `natural` does not depend on the seed or on
    the order of the rows.

    Args:
        labels: (n,) int64; -1 (unknown class) counts as a class of its own.
        config: Partitioner name and its parameters.
        num_clients: How many clients share the images.
        seed: Root seed; equal seeds give equal partitions.
        groups: (n,) int64 from `group_rows`; `None` if each image is its own unit.
        naturals: (n,) int32 position of each image's own client in `names`, for `natural`;
            an image of -1 names no client, and nobody gets it.
        names: The clients that the source itself names.

    Returns:
        (n,) int32, the partition number of each image, or -1 if nobody holds it.

    Raises:
        DataError: There are too few images, the source names no clients or
            another number of them, or the partitioner found no split that
            gives every client enough.
    """
    if config.partitioner == "natural":
        return _natural_clients(labels, config, naturals, names, num_clients, groups)
    if num_clients * config.min_client_size > len(labels):
        raise DataError(
            f"num-clients={num_clients} but there are only {len(labels)} training images: each client needs "
            f"{config.min_client_size if config.min_client_size > 1 else 'one'} (data.min-client-size)"
        )
    _, member = np.unique(np.arange(len(labels)) if groups is None else groups, return_inverse=True)
    unit_labels = labels if groups is None else most_frequent(labels, member)
    if config.partitioner == "pathological":  # clients take turns from the first class on: let that depend on the seed
        classes, coded = np.unique(unit_labels, return_inverse=True)
        unit_labels = public_stream(seed, "classes").permutation(len(classes))[coded]
    order = public_stream(seed, "order").permutation(len(unit_labels))
    least = config.min_client_size if groups is None else 1  # in units; a unit may be many images
    for attempt in range(TRIES if config.partitioner in _SEEDED else 1):
        partitioner = _partitioner(config, num_clients, least, seed, attempt)
        dealt = _deal(partitioner, {"row": order, "label": unit_labels[order]}, num_clients)
        if dealt is None:
            continue
        sizes = np.bincount(dealt[member] + 1, minlength=num_clients + 1)[1:]
        if sizes.min() >= config.min_client_size:
            return np.asarray(dealt[member])
    raise DataError(_failure(config, labels, num_clients, len(unit_labels)))


def _natural_clients(
    labels: np.ndarray,
    config: DataConfig,
    naturals: np.ndarray | None,
    names: Sequence[str],
    num_clients: int,
    groups: np.ndarray | None,
) -> np.ndarray:
    if naturals is None:
        raise DataError(
            "data.partitioner='natural' needs a source that names the client of each image, and this one does not: "
            "give a CSV or Parquet manifest with a column client, or use another data.partitioner"
        )
    rows = np.flatnonzero(naturals >= 0)
    _check_naturals(config, naturals[rows], names, num_clients, None if groups is None else groups[rows])
    owner = np.full(len(labels), -1, dtype=np.int32)
    dealt = _deal(
        _partitioner(config, num_clients, 1, 0, 0), {"row": np.arange(len(rows)), "client": naturals[rows]}, num_clients
    )
    if dealt is None:
        raise DataError(_failure(config, labels, num_clients, len(labels)))
    owner[rows] = dealt
    return owner


def _check_naturals(
    config: DataConfig, naturals: np.ndarray, names: Sequence[str], num_clients: int, groups: np.ndarray | None
) -> None:
    if num_clients != len(names):
        raise DataError(
            f"num-clients={num_clients} but the column client names {len(names)}: data.partitioner='natural' needs "
            f"num-clients={len(names)}"
        )
    sizes = np.bincount(naturals, minlength=len(names))
    least = int(sizes.argmin())
    if sizes[least] < config.min_client_size:
        raise DataError(
            f"data.partitioner='natural': client {names[least]!r} has {sizes[least]} training images, and "
            f"data.min-client-size={config.min_client_size}: give it more, take it out, or lower the minimum"
        )
    if groups is not None:
        pairs = np.unique(np.stack([groups, naturals]), axis=1)
        torn = int((np.unique(pairs[0], return_counts=True)[1] > 1).sum())
        if torn:
            raise DataError(
                f"data.partitioner='natural': units with images at more than one client: {torn}. A unit is protected "
                "at one client only: mend the columns unit and client"
            )


def _deal(partitioner: "Partitioner", columns: dict[str, np.ndarray], num_clients: int) -> np.ndarray | None:
    """The client of each unit by its number in the column `row`, or nothing if the partitioner gave up."""
    from datasets import Dataset

    owner = np.full(len(columns["row"]), -1, dtype=np.int32)
    if num_clients > len(owner):
        return None
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):  # natural draws a bar of its own
            warnings.simplefilter("ignore")  # one for each retry; a failure is told by the caller
            partitioner.dataset = Dataset.from_dict(columns)
            for client in range(num_clients):
                owner[np.asarray(partitioner.load_partition(client)["row"], dtype=np.int64)] = client
    except (ValueError, ZeroDivisionError):
        return None
    return owner


def _partitioner(config: DataConfig, num_clients: int, least: int, seed: int, attempt: int) -> "Partitioner":
    from flwr_datasets import partitioner as flower

    stream = public_stream(seed, "partition", attempt) if attempt else public_stream(seed, "partition")
    labelled: dict[str, Any] = {"num_partitions": num_clients, "partition_by": "label"}
    labelled["seed"] = int(stream.integers(2**31))
    if config.partitioner == "dirichlet":
        return flower.DirichletPartitioner(
            **labelled, alpha=config.alpha, min_partition_size=least, self_balancing=False
        )
    if config.partitioner == "pathological":
        return flower.PathologicalPartitioner(
            **labelled,
            num_classes_per_partition=config.classes_per_client,
            class_assignment_mode="first-deterministic",
        )
    if config.partitioner == "shards":
        return flower.ShardPartitioner(**labelled, num_shards_per_partition=config.shards_per_client)
    if config.partitioner == "natural":
        return flower.NaturalIdPartitioner(partition_by="client")
    skews = {
        "linear": flower.LinearPartitioner,
        "square": flower.SquarePartitioner,
        "exponential": flower.ExponentialPartitioner,
    }
    kind = skews[config.size_skew] if config.partitioner == "size-skew" else flower.IidPartitioner
    return kind(num_partitions=num_clients)


def _failure(config: DataConfig, labels: np.ndarray, num_clients: int, num_units: int) -> str:
    """Why there is no partition: what was asked for, and what would help."""
    setting, advice = {
        "dirichlet": (f"data.alpha={config.alpha}", "raise data.alpha or use fewer clients"),
        "iid": ("", "use fewer clients"),
        "natural": ("", "use another data.partitioner"),
        "pathological": (
            f"data.classes-per-client={config.classes_per_client} of {len(np.unique(labels))} classes",
            "lower data.classes-per-client or use fewer clients",
        ),
        "shards": (
            f"data.shards-per-client={config.shards_per_client}",
            "lower data.shards-per-client or use fewer clients",
        ),
        "size-skew": (
            f"data.size-skew={config.size_skew!r}",
            "use fewer clients"
            + ("" if config.size_skew == "linear" else " or a milder data.size-skew, such as 'linear'"),
        ),
    }[config.partitioner]
    lower = ", or lower data.min-client-size" if config.min_client_size > 1 else ""
    least = f"data.min-client-size={config.min_client_size} {'images' if config.min_client_size > 1 else 'image'}"
    units = "" if num_units == len(labels) else f" in {num_units} units"
    return (
        f"data.partitioner={config.partitioner!r}{' with ' if setting else ''}{setting} found no split of "
        f"{len(labels)} images{units} over num-clients={num_clients} that leaves every client {least}: {advice}{lower}"
    )


def assign_test(
    test_labels: np.ndarray, train_labels: np.ndarray, owner: np.ndarray, digests: np.ndarray, *, key: bytes
) -> np.ndarray:
    """The client of each image of a source's own test set.

    A test image of class k goes to a client with probability proportional to
    how many training images of class k the client holds, so that a client is
    judged on its own mix of classes and the union is the official test set.

    Args:
        test_labels: (m,) int64; -1 (unknown class) counts as a class of its own.
        train_labels: (n,) int64.
        owner: (n,) int32 from `assign_clients`; rows of -1 count for nobody.
        digests: (m, 32) uint8, SHA-256 of each test image's unit or pixels.
        key: Run-specific key of the hash that decides.

    Returns:
        (m,) int32, in [0, number of clients).
    """
    num_clients = int(owner.max()) + 1
    num_classes = int(max(test_labels.max(initial=0), train_labels.max())) + 2
    held = np.zeros((num_classes, num_clients))
    dealt = owner >= 0
    np.add.at(held, (train_labels[dealt] + 1, owner[dealt]), 1)
    held[held.sum(axis=1) == 0] = 1
    upto = np.cumsum(held / held.sum(axis=1, keepdims=True), axis=1)
    draws = keyed_uniform(key, digests)
    chosen = [
        int(np.searchsorted(upto[label + 1], u, side="right")) for label, u in zip(test_labels, draws, strict=True)
    ]
    return np.minimum(chosen, num_clients - 1).astype(np.int32)


def hold_out(digests: np.ndarray, *, fraction: float, key: bytes) -> np.ndarray:
    """Which images are held out for evaluation, by a keyed hash of their unit.

    Args:
        digests: (n, 32) uint8, SHA-256 of each image's unit, or of its pixels.
        fraction: Expected share held out, in (0, 1).
        key: Key of the hash.

    Returns:
        (n,) bool. Images of one unit, and copies of one image, are always on the same side.
    """
    return keyed_uniform(key, digests) < fraction
