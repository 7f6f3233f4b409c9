"""Deal images to clients: by label skew or evenly, and into training and held-out parts."""

import warnings
from typing import TYPE_CHECKING

import numpy as np

from common.errors import DataError
from common.sections import DataConfig
from common.streams import keyed_uniform, public_stream

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner


def assign_clients(labels: np.ndarray, config: DataConfig, *, num_clients: int, seed: int) -> np.ndarray:
    """The client of each training image, by a `flwr-datasets` partitioner.

    Guarantee: every image belongs to exactly one client, and every client holds
    at least one.

    Args:
        labels: (n,) int64.
        config: Partitioner name and its parameters.
        num_clients: How many clients share the images.
        seed: Root seed; equal seeds give equal partitions.

    Returns:
        (n,) int32, the partition number of each image.

    Raises:
        DataError: There are fewer images than clients, or the partitioner found
            no split that leaves nobody empty.
    """
    if num_clients > len(labels):
        raise DataError(
            f"num-clients={num_clients} but there are only {len(labels)} training images: each client needs one"
        )
    from datasets import Dataset

    order = public_stream(seed, "order").permutation(len(labels))
    rows = Dataset.from_dict({"row": order, "label": labels[order]})
    partitioner = _partitioner(config, num_clients, seed)
    partitioner.dataset = rows
    owner = np.full(len(labels), -1, dtype=np.int32)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # one for each retry; a failure is told below
            for client in range(num_clients):
                owner[np.asarray(partitioner.load_partition(client)["row"], dtype=np.int64)] = client
    except ValueError:
        raise DataError(
            f"data.partitioner='dirichlet' with data.alpha={config.alpha} found no split of {len(labels)} images over "
            f"num-clients={num_clients} that leaves every client an image: raise data.alpha or use fewer clients"
        ) from None
    if (owner < 0).any():
        raise DataError(f"data.partitioner={config.partitioner!r} left {int((owner < 0).sum())} images out")
    return owner


def _partitioner(config: DataConfig, num_clients: int, seed: int) -> "Partitioner":
    from flwr_datasets.partitioner import DirichletPartitioner, IidPartitioner

    if config.partitioner == "iid":
        return IidPartitioner(num_partitions=num_clients)
    return DirichletPartitioner(
        num_partitions=num_clients,
        partition_by="label",
        alpha=config.alpha,
        min_partition_size=1,
        self_balancing=False,
        seed=int(public_stream(seed, "partition").integers(2**31)),
    )


def assign_test(
    test_labels: np.ndarray, train_labels: np.ndarray, owner: np.ndarray, digests: np.ndarray, *, key: bytes
) -> np.ndarray:
    """The client of each image of a source's own test set.

    A test image of class k goes to a client with probability proportional to
    how many training images of class k the client holds, so that a client is
    judged on its own mix of classes and the union is the official test set.

    Args:
        test_labels: (m,) int64.
        train_labels: (n,) int64.
        owner: (n,) int32 from `assign_clients`.
        digests: (m, 32) uint8, SHA-256 of each test image's pixels.
        key: Run-specific key of the hash that decides.

    Returns:
        (m,) int32.
    """
    num_clients = int(owner.max()) + 1
    num_classes = int(max(test_labels.max(), train_labels.max())) + 1
    held = np.zeros((num_classes, num_clients))
    np.add.at(held, (train_labels, owner), 1)
    held[held.sum(axis=1) == 0] = 1
    upto = np.cumsum(held / held.sum(axis=1, keepdims=True), axis=1)
    draws = keyed_uniform(key, digests)
    chosen = [int(np.searchsorted(upto[label], u, side="right")) for label, u in zip(test_labels, draws, strict=True)]
    return np.minimum(chosen, num_clients - 1).astype(np.int32)


def hold_out(digests: np.ndarray, *, fraction: float, key: bytes) -> np.ndarray:
    """Which images are held out for evaluation, by a keyed hash of their pixels.

    Args:
        digests: (n, 32) uint8.
        fraction: Expected share held out, in (0, 1).
        key: Key of the hash.

    Returns:
        (n,) bool. Copies of one image are always on the same side.
    """
    return keyed_uniform(key, digests) < fraction
