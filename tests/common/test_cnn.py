"""The small network: its shapes, its starting weights, and its pixels."""

import numpy as np
import pytest
import torch
from network_cases import load_cnn

from common.models.classifier import CnnNetwork, load_arrays, trained_arrays
from common.models.small_cnn import SmallCnn, initial_cnn, to_pixels

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


def test_cnn_treats_each_image_alone() -> None:
    network = load_cnn(initial_cnn((8, 8, 3), 4, np.random.default_rng(3)), (8, 8, 3)).double()
    pixels = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (5, 3, 8, 8)))

    each = torch.cat([network(image[None]) for image in pixels])

    torch.testing.assert_close(network(pixels), each, rtol=1e-12, atol=1e-12)


def test_to_pixels_moves_channels_first_and_scales_to_plus_minus_one() -> None:
    images = np.zeros((2, 4, 5, 3), dtype=np.uint8)
    images[1, 2, 3] = [0, 51, 255]

    pixels = to_pixels(images)

    assert (pixels.shape, pixels.dtype) == ((2, 3, 4, 5), torch.float32)
    assert pixels[1, :, 2, 3].tolist() == pytest.approx([-1.0, -0.6, 1.0])
    assert pixels.is_contiguous()
