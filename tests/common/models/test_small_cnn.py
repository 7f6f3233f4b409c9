"""The small network: its shapes, its starting weights, and its pixels.

Drives `common.models.torch_seed`.
"""

import numpy as np
import pytest
import torch

from common.arrays import Arrays
from common.config.project import open_values
from common.errors import ConfigError
from common.models.classifier import CnnNetwork, load_arrays, trained_arrays
from common.models.small_cnn import SmallCnn, cnn_depth, initial_cnn, to_pixels
from tests.support.clients.networks import load_cnn

pytestmark = pytest.mark.numerical


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", range(4, 34))
def test_cnn_takes_any_side_from_four_and_one_or_three_channels(side: int, channels: int) -> None:
    network = load_cnn(initial_cnn((side, side, channels), 7, np.random.default_rng(0)), (side, side, channels))

    logits = network(torch.zeros(2, channels, side, side))

    assert logits.shape == (2, 7)


def test_initial_cnn_depends_on_the_generator_alone() -> None:
    torch.manual_seed(1)
    first = initial_cnn((8, 8, 1), 10, np.random.default_rng(5))
    torch.manual_seed(2)
    second = initial_cnn((8, 8, 1), 10, np.random.default_rng(5))
    other = initial_cnn((8, 8, 1), 10, np.random.default_rng(6))

    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert all(not np.array_equal(first[name], other[name]) for name in first if name.endswith("weight"))


def test_initial_cnn_does_not_move_torchs_own_generator() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)

    initial_cnn((8, 8, 1), 10, np.random.default_rng(5))

    assert torch.equal(torch.rand(3), expected)


def test_initial_cnn_names_and_types_are_those_of_the_network() -> None:
    arrays = initial_cnn((8, 8, 3), 10, np.random.default_rng(0))
    expected = SmallCnn(8, 3, 10).state_dict()

    assert {name: array.shape for name, array in arrays.items()} == {n: tuple(t.shape) for n, t in expected.items()}
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.float32)}


def test_initial_cnn_has_the_spread_of_he_and_no_bias() -> None:
    arrays = initial_cnn((16, 16, 3), 10, np.random.default_rng(0))

    for name, array in arrays.items():
        if name.endswith("bias"):
            assert not array.any()
            continue
        wanted = np.sqrt(2 / np.prod(array.shape[1:]))
        assert abs(array.std() / wanted - 1) < 4.5 / np.sqrt(2 * array.size)
        assert abs(array.mean()) < 4.5 * wanted / np.sqrt(array.size)


def test_load_arrays_holds_the_weights_it_was_given_even_where_they_are_read_only() -> None:
    arrays = initial_cnn((9, 9, 3), 4, np.random.default_rng(3))
    for array in arrays.values():
        array.setflags(write=False)  # as they come out of a message; torch warns when it is handed such memory
    network = CnnNetwork(9, 3, 4)

    load_arrays(network, arrays)

    back = trained_arrays(network)
    assert list(back) == list(arrays)
    assert all(np.array_equal(back[name], arrays[name]) for name in arrays)


def test_load_arrays_does_not_share_memory_with_the_arrays() -> None:
    arrays = initial_cnn((8, 8, 1), 4, np.random.default_rng(3))
    before = {name: array.copy() for name, array in arrays.items()}
    network = CnnNetwork(8, 1, 4)

    load_arrays(network, arrays)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1.0)

    assert all(np.array_equal(arrays[name], before[name]) for name in arrays)


@pytest.mark.parametrize("side", [8, 40])
def test_cnn_treats_each_image_alone(side: int) -> None:
    network = load_cnn(initial_cnn((side, side, 3), 4, np.random.default_rng(3)), (side, side, 3)).double()
    pixels = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (5, 3, side, side)))

    each = torch.cat([network(image[None]) for image in pixels])

    torch.testing.assert_close(network(pixels), each, rtol=1e-12, atol=1e-12)


def test_to_pixels_moves_channels_first_and_scales_to_plus_minus_one() -> None:
    images = np.zeros((2, 4, 5, 3), dtype=np.uint8)
    images[1, 2, 3] = [0, 51, 255]

    pixels = to_pixels(images)

    assert (pixels.shape, pixels.dtype) == ((2, 3, 4, 5), torch.float32)
    assert pixels[1, :, 2, 3].tolist() == pytest.approx([-1.0, -0.6, 1.0])
    assert pixels.is_contiguous()


def test_two_convolutions_are_the_network_of_before() -> None:
    arrays = initial_cnn((40, 40, 1), 5, np.random.default_rng(1), 2)
    network, pixels = SmallCnn(40, 1, 5, 2), torch.rand(3, 1, 40, 40)
    network.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})

    maps = pixels
    for name in ("conv1", "conv2"):
        weight, bias = (torch.from_numpy(arrays[f"{name}.{part}"]) for part in ("weight", "bias"))
        maps = torch.max_pool2d(torch.conv2d(maps, weight, bias, padding=1).relu(), 2)
    dense = (maps.flatten(1) @ torch.from_numpy(arrays["dense.weight"]).T).relu()
    expected = dense @ torch.from_numpy(arrays["output.weight"]).T

    assert arrays["dense.weight"].shape == (64, 64 * 10 * 10)
    torch.testing.assert_close(network(pixels), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("side", "depth"),
    [(4, 2), (28, 2), (32, 2), (35, 2), (36, 3), (64, 3), (71, 3), (96, 4), (128, 4), (224, 5), (1024, 7)],
)
def test_larger_images_get_more_convolutions_and_not_a_larger_dense_layer(side: int, depth: int) -> None:
    assert (cnn_depth(side, None), cnn_depth(side, 2)) == (depth, 2)
    assert side < 8 or 2 <= side >> depth <= 8


def test_more_halvings_than_the_image_has_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.cnn-depth=6 halves images of 32 pixels to nothing"):
        SmallCnn(32, 1, 5, 6)


def losses(side: int, depth: int | None, rate: float) -> list[float]:
    """Train on stripes that lie or stand, plain descent with every image in each step."""
    rng, labels = np.random.default_rng(0), torch.arange(24) % 2
    stripes = np.zeros((24, 1, side, side), dtype=np.float32)
    for number in range(24):
        wave = np.sin(2 * np.pi * (np.arange(side) / side * 4 + rng.random())) > 0
        stripes[number, 0] = np.where(wave if number % 2 else wave[:, None], 1.0, -1.0)
    pixels = torch.from_numpy(stripes)
    network = SmallCnn(side, 1, 2, depth)
    arrays: Arrays = initial_cnn((side, side, 1), 2, rng, depth)
    network.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
    optimizer, found = torch.optim.SGD(network.parameters(), lr=rate), []
    for _ in range(12):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(network(pixels), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        found.append(loss.item())
    return found


def test_default_network_and_rate_train_on_large_images() -> None:
    rate = float(open_values("scratch-sgd")["learning-rate"])

    # The network of before diverges here: its dense layer has 36,864 inputs.
    assert losses(96, 2, rate)[-1] > 0.5
    assert losses(96, None, rate)[-1] < 0.1
