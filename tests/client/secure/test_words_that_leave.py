"""What leaves a client in a secure sum: uniform words, and no mask and no key twice.

Drives `client.secure.exchange`, `common.secagg.primitives.masks`. The words are read from Flower's objects before TLS,
which hides them on a real wire; `tests/integration/test_secure_wire.py` reads them from a wire without TLS.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message

from client.secure.exchange import MaskedReply
from common.secagg.primitives.ring import Ring, Words
from server import federation
from tests.support.clients.secure_clients import Wards, secure_config
from tests.support.secagg.words_that_leave import check_masked, check_uniform, objects_of, sent_in
from tests.support.server.failing_federation import FailingGrid
from tests.support.server.secure_probes import kind_of, secure_round

SIZE = 4000
# Of the words of sums without noise.
BITS = 48


def hidden_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Words]:
    """Each vector before it is masked, in the order of the replies, as they will come."""
    found: list[Words] = []
    genuine = MaskedReply._under_masks

    def watched(reply: MaskedReply, number: int, encoded: np.ndarray) -> Any:
        found.append(encoded.copy())
        return genuine(reply, number, encoded)

    monkeypatch.setattr(MaskedReply, "_under_masks", watched)
    monkeypatch.setenv("BRACT_HOME", str(tmp_path / "home"))
    return found


def run(wards: Wards, output: Path, lost: Callable[[int, Message], bool], **more: Any) -> list[Message]:
    """Replies of one run, or of what is left of it."""
    sent: list[Message] = []
    config = secure_config(output, num_rounds=2, **more)
    grid = FailingGrid(wards.folders, config, homes=wards.homes, lost=lost)
    grid._observer = sent.append
    federation.run_federation(grid, config, lambda _: federation.RunContext())
    return [message for message in sent if not message.has_error()]


def check_masks(words: list[Words], hidden: list[Words]) -> None:
    """Each vector left once, under a mask that no other vector had."""
    check_masked(words, BITS)
    assert len(words) == len(hidden)
    check_masked([masked - plain for masked, plain in zip(words, hidden, strict=True)], BITS)


def test_words_are_uniform_and_no_mask_and_no_key_comes_twice(
    wards: Wards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden = hidden_words(tmp_path, monkeypatch)

    sent = sent_in(objects_of(run(wards, tmp_path / "run", lambda *_: False, privacy__metrics="none")), BITS)

    assert len(sent.words) == 2 * 5
    check_masks(sent.words, hidden)
    # Of each client, a channel key and a mask key for each round.
    assert len(sent.keys) == len(set(sent.keys)) == 5 * (1 + 2)


@pytest.mark.slow
def test_no_mask_and_no_key_comes_twice_over_a_restart_a_resume_and_another_run(
    wards: Wards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden = hidden_words(tmp_path, monkeypatch)

    def stopped(number: int, message: Message) -> bool:
        if kind_of(message) == "unmask" and secure_round(message) == 2 and number == 3:
            raise KeyboardInterrupt
        return False

    output, never = tmp_path / "run", lambda *_: False
    sent = run(wards, output, stopped) + run(wards, output, never, resume=True) + run(wards, tmp_path / "other", never)
    found = sent_in(objects_of(sent), BITS)

    # Two runs of two rounds and closing counts, and round 2 of the first one again: the stored bytes, not masked again.
    vectors = {vector.tobytes(): vector for vector in found.words}
    assert (len(found.words), len(vectors)) == (2 * 3 * 5 + 5, 2 * 3 * 5)
    check_masks(list(vectors.values()), hidden)
    assert len(found.keys) == len(set(found.keys)) == 2 * 5 * (1 + 3)


def uniform(bits: int) -> Words:
    return np.random.default_rng(1).integers(0, 2**bits, SIZE, dtype=Ring(bits).dtype)


def small(bits: int) -> Words:
    """An update in steps of 2^-44 of which most values are below 2^-20, as words."""
    return Ring(bits).words_of(np.random.default_rng(2).normal(0, 2**20, SIZE).astype(np.int64))


def with_one_bit(bits: int) -> Words:
    return uniform(bits) | (np.random.default_rng(3).random(SIZE) < 0.2).astype(Ring(bits).dtype)


def half_plain(bits: int) -> Words:
    return np.concatenate([uniform(bits)[: SIZE // 2], small(bits)[: SIZE // 2]])


def too_even(bits: int) -> Words:
    """Each byte value comes as often as any other, which chance does not do."""
    return Ring(bits).unpacked(np.resize(np.arange(256, dtype=np.uint8), SIZE * bits // 8))


@pytest.mark.parametrize("bits", [32, 40, 64])
@pytest.mark.parametrize("wrong", [small, with_one_bit, half_plain, too_even])
def test_the_test_of_uniformity_has_teeth(wrong: Callable[[int], Words], bits: int) -> None:
    check_uniform(uniform(bits), bits)

    with pytest.raises(AssertionError):
        check_uniform(wrong(bits), bits)


def test_one_mask_over_two_vectors_is_noticed() -> None:
    mask = uniform(64)
    first, second = mask + small(64), mask + small(64)[::-1]
    check_uniform(first, 64)
    check_uniform(second, 64)

    with pytest.raises(AssertionError):
        check_masked([first, second], 64)
