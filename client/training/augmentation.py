"""Random views of images, drawn for each image from the image alone.

A view depends on the image's own digest, the round and the step, never on the other images. Under DP an image that
joins or leaves must change its own gradient only.
"""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
import torch

from common.models.torch_seed import seeded_torch
from common.system.light_imports import light_imports

Transform = Callable[[torch.Tensor], torch.Tensor]


def view_seeds(digests: np.ndarray, *, stream: bytes, step: int) -> np.ndarray:
    """Return one random number for each image, from a hash of its digest.

    The digests are (n, 32) uint8, the numbers (n,) int64 and not negative. `stream` identifies the run, client and
    round.
    """
    # From the digest, not from the position in the batch, which depends on the other images drawn.
    key = hashlib.sha256(stream + step.to_bytes(8, "big")).digest()
    hashes = [hashlib.blake2b(digest.tobytes(), key=key, digest_size=8).digest() for digest in digests]
    return np.array([int.from_bytes(item, "big") >> 1 for item in hashes], dtype=np.int64)


def augment(images: np.ndarray, seeds: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Return one random view of each image.

    Images are (n, side, side, channels) uint8, and the views are a new array. `seeds` come from `view_seeds`, `names`
    from `common.config.schema.AUGMENTATIONS`. Without names the images themselves are returned.
    """
    if not names:
        return images
    transform = _transform(names, images.shape[1])
    out = np.empty_like(images)
    for row, seed in enumerate(seeds):
        # torchvision draws from torch's global generator. Each image starts it anew from its own seed.
        with seeded_torch(int(seed)):
            view = transform(torch.from_numpy(images[row].copy()).permute(2, 0, 1))
        out[row] = view.permute(1, 2, 0).numpy()
    return out


def _transform(names: Sequence[str], side: int) -> Transform:
    with light_imports():
        from torchvision.transforms import v2

    steps: list[torch.nn.Module] = []
    if "crop" in names:
        steps.append(v2.RandomCrop(side, padding=max(1, side // 8), padding_mode="reflect"))
    if "flip" in names:
        steps.append(v2.RandomHorizontalFlip())
    if "colour" in names:
        steps.append(v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2))
    if "trivial" in names:
        steps.append(v2.TrivialAugmentWide())
    composed: Transform = v2.Compose(steps)
    return composed


def quarter_turns(images: np.ndarray, seeds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Turn each image by 0 to 3 quarters for rotation prediction.

    Images are (n, side, side, channels), square. Return them turned and the number of quarters, (n,) int64 in 0..3.

    Source: Gidaris et al. 2018, arXiv:1803.07728.
    """
    turns = (seeds >> 3) % 4
    turned = np.stack([np.rot90(image, int(turn)) for image, turn in zip(images, turns, strict=True)])
    return turned, turns
