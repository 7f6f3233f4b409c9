"""Random views: drawn from the image, the round and the step, and from nothing else."""

import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch

from client.training.augmentation import augment, quarter_turns, view_seeds
from client.training.network_sgd import TrainingSet
from client.training.round_settings import LocalSettings
from common.config.schema import RunConfig
from common.config.sections import AUGMENTATIONS
from common.models.classifier import build_network

RNG = np.random.default_rng(0)
DIGESTS = RNG.integers(0, 256, (12, 32), dtype=np.uint8)
IMAGES = RNG.integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)


def views(
    rows: list[int], names: tuple[str, ...] = ("crop", "flip"), *, stream: bytes = b"r", step: int = 0
) -> np.ndarray:
    return augment(IMAGES[rows], view_seeds(DIGESTS[rows], stream=stream, step=step), names)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_view_of_an_image_does_not_depend_on_its_neighbours(name: str) -> None:
    together = views(list(range(12)), (name,))

    for company in ([3], [3, 4], [9, 3, 1], [3, 3]):
        assert np.array_equal(views(company, (name,))[company.index(3)], together[3])


def test_view_depends_on_digest_round_and_step() -> None:
    seeds = view_seeds(DIGESTS, stream=b"r", step=0)

    assert len(set(seeds.tolist())) == 12
    assert seeds.min() >= 0
    assert np.array_equal(seeds, view_seeds(DIGESTS, stream=b"r", step=0))
    assert not np.isin(view_seeds(DIGESTS, stream=b"r", step=1), seeds).any()
    assert not np.isin(view_seeds(DIGESTS, stream=b"s", step=0), seeds).any()


def test_view_seeds_keep_stream_and_step_apart() -> None:
    assert not np.array_equal(
        view_seeds(DIGESTS, stream=b"r", step=1), view_seeds(DIGESTS, stream=b"r" + bytes(7), step=1)
    )


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_augmentation_changes_images_and_keeps_shape_and_type(name: str) -> None:
    found = views(list(range(12)), (name,))

    assert (found.shape, found.dtype) == (IMAGES.shape, np.uint8)
    changed = [not np.array_equal(a, b) for a, b in zip(found, IMAGES, strict=True)]
    assert any(changed)


def test_augment_leaves_its_argument_and_torchs_generator_alone() -> None:
    before = IMAGES.copy()
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)

    views(list(range(12)), AUGMENTATIONS)

    assert torch.equal(torch.rand(3), expected)
    assert np.array_equal(IMAGES, before)


def test_flip_mirrors_about_half_of_the_images() -> None:
    images = np.repeat(IMAGES[:1], 400, axis=0)
    seeds = np.arange(400)

    found = augment(images, seeds, ("flip",))

    mirrored = sum(np.array_equal(view, IMAGES[0][:, ::-1]) for view in found)
    kept = sum(np.array_equal(view, IMAGES[0]) for view in found)
    assert mirrored + kept == 400
    assert abs(mirrored - 200) < 5 * 10  # five standard errors


def test_crop_is_a_window_of_the_image_padded_by_its_reflection() -> None:
    padded = np.pad(IMAGES, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="reflect")

    for view, around in zip(views(list(range(12)), ("crop",)), padded, strict=True):
        windows = [around[y : y + 16, x : x + 16] for y in range(5) for x in range(5)]
        assert any(np.array_equal(view, window) for window in windows)


def test_no_augmentation_gives_the_images() -> None:
    assert np.array_equal(views([0, 1], ()), IMAGES[:2])


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_augmentation_takes_one_channel_and_no_image(name: str) -> None:
    grey = IMAGES[:3, :, :, :1]

    assert augment(grey, np.arange(3), (name,)).shape == grey.shape
    assert augment(IMAGES[:0], np.arange(0), (name,)).shape == (0, 16, 16, 3)


def test_views_are_the_same_when_several_threads_draw_them() -> None:
    expected, found = views(list(range(12)), AUGMENTATIONS), []

    def draw() -> None:
        found.extend(views(list(range(12)), AUGMENTATIONS) for _ in range(3))

    threads = [threading.Thread(target=draw) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(found) == 12
    assert all(np.array_equal(view, expected) for view in found)


def test_quarter_turns_turn_by_the_number_they_tell() -> None:
    turned, turns = quarter_turns(IMAGES, view_seeds(DIGESTS, stream=b"r", step=0))

    assert set(turns.tolist()) <= {0, 1, 2, 3}
    assert len(set(turns.tolist())) > 1
    for image, after, turn in zip(IMAGES, turned, turns, strict=True):
        assert np.array_equal(np.rot90(after, -int(turn)), image)


def test_quarter_turns_take_all_four_directions_equally_often() -> None:
    digests = np.random.default_rng(1).integers(0, 256, (2000, 32), dtype=np.uint8)

    _, turns = quarter_turns(np.zeros((2000, 4, 4, 1), dtype=np.uint8), view_seeds(digests, stream=b"r", step=0))

    counts = np.bincount(turns, minlength=4)
    assert np.abs(counts - 500).max() < 5 * (2000 * 0.25 * 0.75) ** 0.5


def test_batch_draws_views_for_each_image_alone(make_config: Callable[..., RunConfig]) -> None:
    """What training sees: views, turns and labels of an image, whatever else was drawn."""
    config = make_config(
        {
            "model.backbone": "timm:mobilenetv3_small_050",
            "model.weights": "random",
            "model.tuning": "norm",
            "data.image-size": 32,
            "training.rotation-weight": 0.5,
        }
    )
    network = build_network(config, (32, 32, 3), 3)
    images = RNG.integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    rows = TrainingSet(images, np.arange(6) % 3, DIGESTS[:6])
    settings = LocalSettings(0.1, 0.0, 1, 4, augmentation=("crop", "flip"), rotation_weight=0.5, stream=b"r")

    whole = rows.batch(network, np.arange(6), settings, step=2)
    some = rows.batch(network, np.array([4, 1]), settings, step=2)
    later = rows.batch(network, np.arange(6), settings, step=3)

    assert whole.turned is not None
    assert some.turned is not None
    assert torch.equal(some.inputs, whole.inputs[[4, 1]])
    assert torch.equal(some.turned, whole.turned[[4, 1]])
    assert torch.equal(some.turns, whole.turns[[4, 1]])
    assert some.labels.tolist() == [1, 1]
    assert not torch.equal(later.inputs, whole.inputs)
    assert torch.equal(torch.rot90(whole.inputs[3], int(whole.turns[3]), (1, 2)), whole.turned[3])
    assert len(rows.batch(network, np.array([], dtype=np.int64), settings, step=0)) == 0
