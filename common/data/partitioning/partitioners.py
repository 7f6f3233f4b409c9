"""Assignment of images to clients by a `flwr-datasets` partitioner.

Units are assigned: a group of images that share a unit (a patient) stays together, and every other image is a unit of
its own. Unreadable images and images of an unknown class are assigned like all others, so that no client's declared
size depends on which files are bad.
"""

import contextlib
import io
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from common.config.sections import DataConfig
from common.data.partitioning.privacy_units import most_frequent
from common.errors import DataError
from common.randomness import keyed_uniform, public_stream
from common.system.light_imports import light_imports

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner

# Each try has a seed of its own; `flwr-datasets` draws Dirichlet shares eleven times within one try.
TRIES = 5
_SEEDED = ("dirichlet", "pathological", "shards")


def assign_clients(
    labels: np.ndarray,
    data: DataConfig,
    *,
    num_clients: int,
    seed: int,
    groups: np.ndarray | None = None,
    naturals: np.ndarray | None = None,
    names: Sequence[str] = (),
) -> np.ndarray:
    """Return the client of each training image, chosen by a `flwr-datasets` partitioner.

    Guarantee: every image belongs to one client or to none, images of one group share their client, and every client
    holds at least `data.min-client-size` images. `dirichlet`, `iid` and `size-skew` leave no image out, nor does
    `natural` if each image names its client; `pathological` and `shards` may. `natural` depends neither on the seed nor
    on the order of the rows. Labels of -1 are a class of their own. `groups` come from `group_rows`, None if each image
    is its own unit. `naturals`, (n,) int32, hold each image's own client as a position in `names`, -1 for none. The
    result is (n,) int32, -1 where no client holds the image.

    Raises:
        DataError: There are too few images, the source names no clients or another number of them, or no try gives
            every client enough images.
    """
    if data.partitioner == "natural":
        return _natural_clients(labels, data, naturals, names, num_clients, groups)
    if num_clients * data.min_client_size > len(labels):
        raise DataError(
            f"num-clients={num_clients} but there are only {len(labels)} training images: each client needs "
            f"{data.min_client_size if data.min_client_size > 1 else 'one'} (data.min-client-size)"
        )
    _, member = np.unique(np.arange(len(labels)) if groups is None else groups, return_inverse=True)
    unit_labels = labels if groups is None else most_frequent(labels, member)
    # This partitioner gives client 0 the first class, and so on: without a shuffle, no seed would change that.
    if data.partitioner == "pathological":
        classes, coded = np.unique(unit_labels, return_inverse=True)
        unit_labels = public_stream(seed, "classes").permutation(len(classes))[coded]
    order = public_stream(seed, "order").permutation(len(unit_labels))
    # The partitioner counts units, and a unit may be many images: then the images are counted after it.
    least = data.min_client_size if groups is None else 1
    for attempt in range(TRIES if data.partitioner in _SEEDED else 1):
        if data.partitioner == "iid":
            owner = _equal_blocks(order, num_clients)
        else:
            partitioner = _partitioner(data, num_clients, least, seed, attempt)
            owner = _run_partitioner(partitioner, {"row": order, "label": unit_labels[order]}, num_clients)
        if owner is None:
            continue
        sizes = np.bincount(owner[member] + 1, minlength=num_clients + 1)[1:]
        if sizes.min() >= data.min_client_size:
            return np.asarray(owner[member])
    raise DataError(_failure(data, labels, num_clients, len(unit_labels)))


def _natural_clients(
    labels: np.ndarray,
    data: DataConfig,
    naturals: np.ndarray | None,
    names: Sequence[str],
    num_clients: int,
    groups: np.ndarray | None,
) -> np.ndarray:
    if naturals is None:
        raise DataError(
            "data.partitioner='natural' needs a source that names the client of each image, and this one does not: "
            "give a table (CSV, TSV, Excel or Parquet) with a column client, or use another "
            "data.partitioner"
        )
    rows = np.flatnonzero(naturals >= 0)
    _check_naturals(data, naturals[rows], names, num_clients, None if groups is None else groups[rows])
    owner = np.full(len(labels), -1, dtype=np.int32)
    columns = {"row": np.arange(len(rows)), "client": naturals[rows]}
    assigned = _run_partitioner(_partitioner(data, num_clients, 1, 0, 0), columns, num_clients)
    if assigned is None:
        raise DataError(_failure(data, labels, num_clients, len(labels)))
    owner[rows] = assigned
    return owner


def _check_naturals(
    data: DataConfig, naturals: np.ndarray, names: Sequence[str], num_clients: int, groups: np.ndarray | None
) -> None:
    if num_clients != len(names):
        raise DataError(
            f"num-clients={num_clients} but the column client names {len(names)}: data.partitioner='natural' needs "
            f"num-clients={len(names)}"
        )
    sizes = np.bincount(naturals, minlength=len(names))
    least = int(sizes.argmin())
    if sizes[least] < data.min_client_size:
        raise DataError(
            f"data.partitioner='natural': client {names[least]!r} has {sizes[least]} training images, and "
            f"data.min-client-size={data.min_client_size}: give it more, take it out, or lower the minimum"
        )
    if groups is not None:
        pairs = np.unique(np.stack([groups, naturals]), axis=1)
        split_units = int((np.unique(pairs[0], return_counts=True)[1] > 1).sum())
        # Each client would add noise for its own part of the unit, and the unit would be protected by neither.
        if split_units:
            raise DataError(
                f"data.partitioner='natural': units with images at more than one client: {split_units}. A unit is "
                "protected at one client only: correct the columns unit and client"
            )


def _equal_blocks(order: np.ndarray, num_clients: int) -> np.ndarray | None:
    """Return the client of each unit by Flower's `IidPartitioner`.

    That cuts the shuffled units into blocks whose sizes differ by at most one, and takes milliseconds a client.
    """
    if num_clients > len(order):
        return None
    owner = np.empty(len(order), dtype=np.int32)
    least, rest = divmod(len(order), num_clients)
    owner[order] = np.repeat(np.arange(num_clients), least + (np.arange(num_clients) < rest))
    return owner


def _run_partitioner(partitioner: "Partitioner", columns: dict[str, np.ndarray], num_clients: int) -> np.ndarray | None:
    """Return the client that a partitioner chooses for each unit.

    `columns` are equally long, and `row` holds the number of each unit. The result is (units,) int32, -1 for no client,
    or None if the partitioner gave up.
    """
    from datasets import Dataset

    owner = np.full(len(columns["row"]), -1, dtype=np.int32)
    if num_clients > len(owner):
        return None
    try:
        # It warns at each retry and `natural` shows a progress bar; the caller reports a failure.
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            partitioner.dataset = Dataset.from_dict(columns)
            for client in range(num_clients):
                owner[np.asarray(partitioner.load_partition(client)["row"], dtype=np.int64)] = client
    except (ValueError, ZeroDivisionError):
        return None
    return owner


def _partitioner(data: DataConfig, num_clients: int, least: int, seed: int, attempt: int) -> "Partitioner":
    with light_imports():
        from flwr_datasets import partitioner as flower

    stream = public_stream(seed, "partition", attempt) if attempt else public_stream(seed, "partition")
    labelled: dict[str, Any] = {"num_partitions": num_clients, "partition_by": "label"}
    labelled["seed"] = int(stream.integers(2**31))
    if data.partitioner == "dirichlet":
        return flower.DirichletPartitioner(**labelled, alpha=data.alpha, min_partition_size=least, self_balancing=False)
    if data.partitioner == "pathological":
        return flower.PathologicalPartitioner(
            **labelled, num_classes_per_partition=data.classes_per_client, class_assignment_mode="first-deterministic"
        )
    if data.partitioner == "shards":
        return flower.ShardPartitioner(**labelled, num_shards_per_partition=data.shards_per_client)
    if data.partitioner == "natural":
        return flower.NaturalIdPartitioner(partition_by="client")
    skews = {
        "linear": flower.LinearPartitioner,
        "square": flower.SquarePartitioner,
        "exponential": flower.ExponentialPartitioner,
    }
    return skews[data.size_skew](num_partitions=num_clients)


def _failure(data: DataConfig, labels: np.ndarray, num_clients: int, num_units: int) -> str:
    """Return the error text for settings that no partition fits, with advice."""
    setting, advice = {
        "dirichlet": (f"data.alpha={data.alpha}", "raise data.alpha or use fewer clients"),
        "iid": ("", "use fewer clients"),
        "natural": ("", "use another data.partitioner"),
        "pathological": (
            f"data.classes-per-client={data.classes_per_client} of {len(np.unique(labels))} classes",
            "lower data.classes-per-client or use fewer clients",
        ),
        "shards": (
            f"data.shards-per-client={data.shards_per_client}",
            "lower data.shards-per-client or use fewer clients",
        ),
        "size-skew": (
            f"data.size-skew={data.size_skew!r}",
            "use fewer clients"
            + ("" if data.size_skew == "linear" else " or a milder data.size-skew, such as 'linear'"),
        ),
    }[data.partitioner]
    lower = ", or lower data.min-client-size" if data.min_client_size > 1 else ""
    least = f"data.min-client-size={data.min_client_size} {'images' if data.min_client_size > 1 else 'image'}"
    units = "" if num_units == len(labels) else f" in {num_units} units"
    return (
        f"data.partitioner={data.partitioner!r}{' with ' if setting else ''}{setting} found no split of "
        f"{len(labels)} images{units} over num-clients={num_clients} that leaves every client {least}: {advice}{lower}"
    )


def assign_test(
    test_labels: np.ndarray, train_labels: np.ndarray, owner: np.ndarray, digests: np.ndarray, *, key: bytes
) -> np.ndarray:
    """Return the client of each image of a source's own test set.

    A test image of class k goes to a client with probability proportional to the number of training images of class k
    that the client holds. So each client is evaluated on its own mix of classes, and all of them together on the
    official test set. All arrays have one entry per image. Labels of -1 are a class of their own, and an owner of -1
    counts for no client. `digests`, (m, 32) uint8, name units or pixels; the hash by `key` decides.
    """
    num_clients = int(owner.max()) + 1
    num_classes = int(max(test_labels.max(initial=0), train_labels.max())) + 2
    counts = np.zeros((num_classes, num_clients))
    assigned = owner >= 0
    np.add.at(counts, (train_labels[assigned] + 1, owner[assigned]), 1)
    # Test images of a class that no client trains on are spread over all clients.
    counts[counts.sum(axis=1) == 0] = 1
    cumulative = np.cumsum(counts / counts.sum(axis=1, keepdims=True), axis=1)
    draws = keyed_uniform(key, digests)
    pairs = zip(test_labels + 1, draws, strict=True)
    chosen = [int(np.searchsorted(cumulative[row], draw, side="right")) for row, draw in pairs]
    # Rounding may leave the last cumulative value just below 1.
    return np.minimum(chosen, num_clients - 1).astype(np.int32)


def hold_out(digests: np.ndarray, *, fraction: float, key: bytes) -> np.ndarray:
    """Return a mask of the images held out for evaluation.

    A keyed hash of the unit decides, so that the choice survives new files and another order. `digests` name units or
    pixels, (n, 32) uint8, so images of one unit and copies of one image are on one side. The key is public in a
    simulation and the data holder's own in a deployment.
    """
    return keyed_uniform(key, digests) < fraction
