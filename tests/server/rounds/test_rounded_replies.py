"""Updates in 8 bits at the server: restored before anything bounds or averages them, refused where they do not fit.

Drives `server.rounds.replies`.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message

from common.arrays import Arrays
from common.messages.codec import Declaration, encode_update
from common.messages.fields import ARRAYS, CODES, SCALES, Releases
from common.messages.rounded_update import restore_model, round_update
from common.privacy.mechanisms.registry import MECHANISMS
from common.privacy.plan import PrivacyPlan
from common.randomness import public_stream
from server.aggregation import central_dp
from server.aggregation.strategies import build_strategy
from server.rounds.enrollment import EnrolledClient
from server.rounds.loop import RoundResult, RoundSettings, run_rounds
from server.rounds.replies import Channel
from simulations.engines.in_process import InProcessGrid
from tests.support.server.enrollment import DECLARED, RUN, Say, app_of
from tests.support.server.toy_clients import config_for

START: Arrays = {"w": np.full((2, 300), 0.5, dtype=np.float32), "b": np.zeros(3, dtype=np.float32)}
PLAN = PrivacyPlan("client-dp", "client", 4, 1.0, 1, 1, 2.0, 1.5, 1e-5)
# Mechanism -> what the server takes from a client, without counts and heads.
OPEN, CENTRAL = (Releases(MECHANISMS[name], "none", update_bits=8) for name in ("none", "client-dp"))


def update_of(client: int, start: Arrays = START) -> Arrays:
    shift = np.random.default_rng(client).normal(size=603).astype(np.float32)
    ended = {"w": start["w"] + shift[:600].reshape(2, 300), "b": start["b"] + shift[600:]}
    return round_update(ended, start, public_stream(0, "rounding", f"{client:05d}", 1))


def says(arrays: Mapping[str, np.ndarray | Array]) -> Say:
    def say(message: Message) -> Message:
        reply = Message(encode_update({}, 10, None), reply_to=message)
        reply.content[ARRAYS] = ArrayRecord(
            {name: value if isinstance(value, Array) else Array(value) for name, value in arrays.items()}
        )
        return reply

    return say


def play(said: Mapping[int, Say], releases: Releases = OPEN, name: str = "FedAvg") -> RoundResult:
    clients = {f"{n:05d}": EnrolledClient(Declaration(f"{n:05d}", **DECLARED), n + 2) for n in said}
    grid = InProcessGrid(app_of({}, dict(said)), len(said), {})
    central = PLAN if releases.mechanism.noise_at_server else None
    settings = RoundSettings(clients, [list(clients)], central=central)
    (result,) = run_rounds(Channel(grid, releases, RUN), build_strategy(config_for(name, len(said))), START, settings)
    return result


def flat(arrays: Arrays) -> np.ndarray:
    return np.concatenate([arrays[name].astype(np.float64).ravel() for name in START])


@pytest.mark.parametrize("name", ["FedAvg", "FedMedian", "Krum", "FedAdam"])
def test_a_strategy_gets_float32_models_in_their_places(name: str) -> None:
    updates = [update_of(client) for client in range(3)]
    models = [restore_model(update, START) for update in updates]
    plain = {n: says(model) for n, model in enumerate(models)}

    rounded = play({n: says(update) for n, update in enumerate(updates)}, name=name)

    expected = play(plain, replace(OPEN, update_bits=32), name)
    assert flat(rounded.arrays).tobytes() == flat(expected.arrays).tobytes()
    assert all(array.dtype == np.float32 for array in rounded.arrays.values())


def test_a_round_counts_the_bytes_that_came() -> None:
    result = play({n: says(update_of(n)) for n in range(3)})
    whole = play({n: says(START) for n in range(3)}, replace(OPEN, update_bits=32))

    # 603 codes and 4 scales, with two headers of numpy, names and the size.
    assert 603 + 4 * 4 < result.record.bytes_up < 603 + 4 * 4 + 500
    assert whole.record.bytes_up > 4 * 603
    assert result.record.bytes_down == whole.record.bytes_down


def changed(**arrays: np.ndarray | Array) -> Callable[[Arrays], Mapping[str, np.ndarray | Array]]:
    return lambda update: {**update, **arrays}


def with_scale(value: float) -> Callable[[Arrays], Mapping[str, np.ndarray]]:
    return lambda update: {**update, SCALES: np.where(np.arange(4) == 1, value, update[SCALES]).astype(np.float32)}


def claiming(array: np.ndarray, shape: tuple[int, ...]) -> Array:
    """An array whose own header says something else than its bytes."""
    return Array(dtype=str(array.dtype), shape=shape, stype="numpy.ndarray", data=Array(array).data)


CODES_603, FOUR = np.ones(603, dtype=np.int8), np.ones(4, dtype=np.float32)
HOSTILE: dict[str, tuple[Callable[[Arrays], Mapping[str, np.ndarray | Array]], str]] = {
    "NaN scale": (with_scale(np.nan), "NOT-FINITE"),
    "infinite scale": (with_scale(np.inf), "NOT-FINITE"),
    "minus infinite scale": (with_scale(-np.inf), "NOT-FINITE"),
    "one code less": (changed(codes=CODES_603[1:]), "MESSAGE"),
    "one code more": (changed(codes=np.ones(604, dtype=np.int8)), "MESSAGE"),
    "no codes": (changed(codes=CODES_603[:0]), "MESSAGE"),
    "one scale less": (changed(scales=FOUR[1:]), "MESSAGE"),
    "one scale for all": (changed(scales=FOUR[:1]), "MESSAGE"),
    "a scale for each value": (changed(scales=np.ones(603, dtype=np.float32)), "MESSAGE"),
    "codes in a matrix": (changed(codes=CODES_603.reshape(3, 201)), "MESSAGE"),
    "float codes": (changed(codes=CODES_603.astype(np.float32)), "MESSAGE"),
    "unsigned codes": (changed(codes=CODES_603.astype(np.uint8)), "MESSAGE"),
    "codes of 16 bits": (changed(codes=CODES_603.astype(np.int16)), "MESSAGE"),
    "scales of 64 bits": (changed(scales=FOUR.astype(np.float64)), "MESSAGE"),
    "whole scales": (changed(scales=FOUR.astype(np.int32)), "MESSAGE"),
    "scales in 8 bits": (changed(scales=FOUR.astype(np.int8)), "MESSAGE"),
    "a header that lies": (changed(codes=claiming(CODES_603[:5], (603,))), "MESSAGE"),
    "bytes that do not end": (changed(codes=claiming(np.ones(9999, dtype=np.int8), (603,))), "MESSAGE"),
    "a tensor more": (changed(w=START["w"]), "MESSAGE"),
    "the model in 32 bits": (lambda _: START, "MESSAGE"),
    "another order": (lambda update: {SCALES: update[SCALES], CODES: update[CODES]}, "MESSAGE"),
    "no scales": (lambda update: {CODES: update[CODES]}, "MESSAGE"),
}


@pytest.mark.parametrize("releases", [OPEN, CENTRAL], ids=["none", "client-dp"])
@pytest.mark.parametrize("how", HOSTILE)
def test_a_hostile_update_costs_its_sender_its_place(how: str, releases: Releases) -> None:
    spoil, code = HOSTILE[how]
    others = {n: says(update_of(n)) for n in range(3)}

    result = play({**others, 3: says(spoil(update_of(3)))}, releases)

    assert result.record.failures == {"00003": code}
    assert np.isfinite(flat(result.arrays)).all()
    if releases is OPEN:
        assert flat(result.arrays).tobytes() == flat(play(others).arrays).tobytes()


@pytest.mark.parametrize("scale", [1e37, 1e38, 3.4e38, -3.4e38])
def test_a_scale_beyond_float32_is_left_out(scale: float) -> None:
    result = play({**{n: says(update_of(n)) for n in range(3)}, 3: says(with_scale(scale)(update_of(3)))})

    assert result.record.failures == {"00003": "NOT-FINITE"}
    assert np.isfinite(flat(result.arrays)).all()


@pytest.mark.parametrize("scale", [0.0, 1e-45, -1.0, 1e-3, 1.0, 1e10, 1e36, 1e38, 3.4e38])
def test_a_client_moves_the_clipped_sum_by_no_more_than_the_bound(
    scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(central_dp, "add_noise", lambda total, **_: total)
    others = {n: says(update_of(n)) for n in range(3)}
    without = flat(play(others, CENTRAL).arrays)

    hostile = {CODES: np.full(603, -128, dtype=np.int8), SCALES: np.full(4, scale, dtype=np.float32)}
    result = play({**others, 3: says(hostile)}, CENTRAL)

    assert result.record.failures == {}
    length = float(np.linalg.norm(flat(result.arrays) - without)) * PLAN.expected_batch_size
    assert length <= PLAN.max_grad_norm * (1 + 1e-4)
    # In between it reaches the bound, and an update beyond float32 counts as zero.
    if 1e-3 <= abs(scale) <= 1e10:
        assert length >= 0.9 * PLAN.max_grad_norm
