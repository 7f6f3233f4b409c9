"""What a real client releases in 8 bits: its noised update, rounded once, stored and sent.

Drives `client.app`, with messages through `simulations.harness.client_harness`.
"""

import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from common.config.loading import Scalar
from common.messages.codec import record_to_arrays
from common.messages.fields import ARRAYS, CODES, SCALES
from common.messages.rounded_update import round_update
from common.messages.serialization import unpack
from common.randomness import public_stream
from simulations.harness.client_harness import ClientHarness, Observation
from simulations.harness.harness_streams import RepeatedStreams
from simulations.privacy_tests.check import run_privacy_test
from simulations.privacy_tests.released_fields import release_surface
from simulations.privacy_tests.suite import privacy_tests_of
from tests.support.simulations.harness import MODES, harness_of

BITS: dict[str, Scalar] = {"training.update-bits": 8}
OPEN: dict[str, Scalar] = {"privacy.mechanism": "none"}
CENTRAL: dict[str, Scalar] = {"privacy.mechanism": "client-dp", "privacy.delta": 1e-4, "privacy.clipping-norm": 1.0}
TUNINGS = ("head", "mlp head", "bias", "norm", "lora", "last", "full", "cnn")
RUN = "ab" * 16


def rounded(harness: ClientHarness, seen: Observation, server_round: int = 1) -> dict[str, bytes]:
    """The bytes that the public stream makes of a 32-bit reply."""
    stream = public_stream(harness.config.seed, "rounding", "bench", server_round)
    model = record_to_arrays(seen.reply.array_records[ARRAYS])
    return {name: array.tobytes() for name, array in round_update(model, harness.start, stream).items()}


def sent(seen: Observation) -> dict[str, bytes]:
    assert not seen.failure
    return {name: array.numpy().tobytes() for name, array in seen.reply.array_records[ARRAYS].items()}


@pytest.mark.parametrize("mode", TUNINGS)
def test_a_private_client_rounds_what_it_would_send_in_32_bits(tmp_path: Path, mode: str) -> None:
    whole, small = (harness_of(tmp_path / name, MODES[mode] | more) for name, more in (("32", {}), ("8", BITS)))

    plain, seen = (
        bench.ask("train", bench.images, streams=RepeatedStreams(), server_round=2) for bench in (whole, small)
    )

    # All of the noise is in what is rounded, and nothing beside the run's public constants chooses the codes.
    assert sent(seen) == rounded(whole, plain, 2)
    assert seen.draws == plain.draws
    assert dict(seen.reply.metric_records["metrics"]) == dict(plain.reply.metric_records["metrics"])


@pytest.mark.parametrize("settings", [OPEN, CENTRAL], ids=["none", "client-dp"])
@pytest.mark.parametrize("mode", ["head", "norm"])
def test_other_clients_round_what_they_would_send_in_32_bits(
    tmp_path: Path, mode: str, settings: dict[str, Scalar]
) -> None:
    whole, small = (
        harness_of(tmp_path / name, MODES[mode] | settings | more) for name, more in (("32", {}), ("8", BITS))
    )

    plain, seen, again = (bench.ask("train", bench.images) for bench in (whole, small, small))

    assert sent(seen) == sent(again) == rounded(whole, plain)


def test_a_request_that_comes_again_gets_the_stored_codes(tmp_path: Path) -> None:
    harness = harness_of(tmp_path, BITS)

    first, again = (harness.ask("train", harness.images, run=RUN) for _ in range(2))

    assert sent(first) == sent(again)
    (file,) = tmp_path.rglob("bench.sqlite")
    with closing(sqlite3.connect(file)) as ledger:
        ((stored,),) = ledger.execute("SELECT content FROM reply").fetchall()
    kept = unpack(stored).array_records[ARRAYS]
    assert {name: array.numpy().tobytes() for name, array in kept.items()} == sent(first)
    assert kept[CODES].dtype == "int8"
    assert sent(harness.ask("train", harness.images)) != sent(first)


@pytest.mark.parametrize(("first", "then"), [(BITS, {}), ({}, BITS)], ids=["8 then 32", "32 then 8"])
def test_a_round_cannot_be_asked_for_again_in_other_bits(
    tmp_path: Path, first: dict[str, Scalar], then: dict[str, Scalar]
) -> None:
    one, other = (harness_of(tmp_path, settings) for settings in (first, then))
    before = sent(one.ask("train", one.images, run=RUN))

    seen = other.ask("train", other.images, run=RUN)

    assert (seen.failure, dict(seen.reply)) == ("PRIVACY", {})
    assert sent(one.ask("train", one.images, run=RUN)) == before


def test_personal_tensors_stay_and_are_not_rounded(tmp_path: Path) -> None:
    settings = MODES["norm"] | {"model.personal": "head"} | OPEN
    whole, small = (harness_of(tmp_path / name, settings | more) for name, more in (("32", {}), ("8", BITS)))

    seen = [bench.ask("train", bench.images, run=RUN) for bench in (whole, small)]
    own = [bench.session(bench.images).personal(RUN).before(2) for bench in (whole, small)]

    assert len(seen[1].reply.array_records[ARRAYS][CODES].numpy()) == sum(array.size for array in whole.start.values())
    assert own[0] is not None
    assert own[1] is not None
    assert own[0].keys() == own[1].keys() == whole.trainer.personal
    assert all((own[0][name] == own[1][name]).all() for name in own[0])


@pytest.mark.parametrize("settings", [OPEN, CENTRAL, {}], ids=["none", "client-dp", "dp-sgd"])
def test_nothing_else_leaves_in_8_bits(tmp_path: Path, settings: dict[str, Scalar]) -> None:
    harness = harness_of(tmp_path, settings | BITS)

    report = run_privacy_test("T6", lambda: release_surface(harness))

    assert report.holds, report.failed


@pytest.mark.parametrize(("settings", "layers"), [(CENTRAL, ("T1", "T2")), ({}, ("T1",))], ids=["client-dp", "dp-sgd"])
def test_the_layers_of_clip_and_noise_hold_in_8_bits(
    tmp_path: Path, settings: dict[str, Scalar], layers: tuple[str, ...]
) -> None:
    tests = privacy_tests_of(harness_of(tmp_path, settings | BITS))

    for layer in layers:
        report = run_privacy_test(layer, tests[layer])
        assert report.holds, report.failed


def test_training_that_diverges_shows_without_noise_and_is_a_zero_update_under_client_dp(tmp_path: Path) -> None:
    updates = []
    for name, settings in (("none", OPEN), ("central", CENTRAL)):
        harness = harness_of(tmp_path / name, settings | BITS)
        odd = harness.images.inputs.copy()
        odd[:3] = np.nan
        images = type(harness.images).of(odd, harness.images.labels, held_out=3)
        updates.append(harness.ask("train", images).reply.array_records[ARRAYS])

    assert not np.isfinite(updates[0][SCALES].numpy()).all()
    assert not updates[1][SCALES].numpy().any()
    assert not updates[1][CODES].numpy().any()
