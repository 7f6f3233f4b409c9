"""Updates in 8 bits that are rounded before the noise, by the wrong stream, or restored after the clip."""

from functools import partial
from typing import Any

import numpy as np
import pytest

import client.app as client_app
from client.training.dp_sgd import PrivateStreams
from common.arrays import Arrays
from common.messages import checks, rounded_update
from common.messages.fields import CODES, SCALES, Releases
from common.privacy.plan import PrivacyPlan
from server.aggregation import central_dp
from server.rounds import loop, replies
from tests.client import test_rounded_release as client
from tests.common.messages import test_rounded_update as rounding
from tests.mutants.faults import every_case, noticed_by, planted
from tests.mutants.registry import CENTRAL, mutant
from tests.server.rounds import test_rounded_replies as server

_TOO_FAR = "a sum by no more than C"


@mutant("T1", _TOO_FAR)
def a_sum_is_rounded_before_its_noise(patch: pytest.MonkeyPatch) -> None:
    """The clipped sum is rounded, and then noised: one unit can move every value by a scale more than the bound."""
    real = PrivateStreams.release

    def release(self: PrivateStreams, clipped_sum: np.ndarray, plan: PrivacyPlan) -> np.ndarray:
        tensor, zero = {"sum": clipped_sum.astype(np.float32)}, {"sum": np.zeros_like(clipped_sum, dtype=np.float32)}
        update = rounded_update.round_update(tensor, zero, np.random.default_rng(0))
        scales = np.repeat(update[SCALES].astype(np.float64), rounded_update._RUN)[: clipped_sum.size]
        return real(self, update[CODES] * scales, plan)

    patch.setattr(PrivateStreams, "release", release)


@mutant("T1", _TOO_FAR, mode=CENTRAL, settings={"training.update-bits": 8})
def codes_are_clipped_and_scaled_afterwards(patch: pytest.MonkeyPatch) -> None:
    """The server clips what came, and multiplies by the client's own scale when it adds up: a scale has no bound."""

    def restore(rounded: Arrays, incoming: Arrays) -> Arrays:
        ((name, before),) = incoming.items()
        codes, scales = (rounded[name].astype(np.float64) for name in (CODES, SCALES))
        codes /= max(1.0, float(np.linalg.norm(codes)))
        return {name: (before + codes * np.repeat(scales, rounded_update._RUN)[: before.size]).astype(np.float32)}

    patch.setattr(replies, "restore_model", restore)
    patch.setattr(central_dp, "clipped_sum", lambda update, *, max_grad_norm: max_grad_norm * np.nan_to_num(update[0]))


_EXACT = partial(client.test_a_private_client_rounds_what_it_would_send_in_32_bits, mode="head")


@noticed_by(_EXACT)
def rounding_that_takes_the_clients_own_secret_stream(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(rounded_update, "public_stream", lambda *_: np.random.default_rng())


@noticed_by(_EXACT)
def scales_that_follow_from_the_update_without_its_noise(patch: pytest.MonkeyPatch) -> None:
    kept: list[np.ndarray] = []
    real_release, real_leaving = PrivateStreams.release, client_app.leaving_arrays

    def release(self: PrivateStreams, clipped_sum: np.ndarray, plan: PrivacyPlan) -> np.ndarray:
        kept.append(clipped_sum)
        return real_release(self, clipped_sum, plan)

    def leaving(*args: Any, **more: Any) -> Arrays:
        sent = real_leaving(*args, **more)
        largest = np.abs(kept[-1]).max().astype(np.float32)
        return sent | {SCALES: np.full_like(sent[SCALES], largest / 127)} if SCALES in sent else sent

    patch.setattr(PrivateStreams, "release", release)
    patch.setattr(client_app, "leaving_arrays", leaving)


@noticed_by(client.test_a_request_that_comes_again_gets_the_stored_codes)
def a_stored_reply_in_32_bits_that_is_rounded_each_time(patch: pytest.MonkeyPatch) -> None:
    real = client_app._answer
    patch.setattr(client_app, "leaving_arrays", lambda trained, *_, **__: trained)

    def answer(kind: str, work: Any, sessions: Any, asked: Any, context: Any) -> Any:
        patch.setattr(client_app, "check_release", lambda content, **_: content)
        content = real(kind, work, sessions, asked, context)
        if kind == "train":
            model = {name: array.numpy() for name, array in content.array_records["arrays"].items()}
            zero = {name: np.zeros_like(array) for name, array in model.items()}
            update = rounded_update.round_update(model, zero, np.random.default_rng())
            content["arrays"] = client_app.encode_update(update, 1, None)["arrays"]
        return content

    patch.setattr(client_app, "_answer", answer)


planted(
    every_case(rounding.test_seed_client_and_round_each_have_a_stream_of_their_own),
    rounded_update.leaving_arrays,
    {
        "one rounding stream for all rounds": ("client, server_round))", "client))"),
        "one rounding stream for all clients": ('"rounding", client, ', '"rounding", '),
        "one rounding stream for all seeds": ("public_stream(seed, ", "public_stream(0, "),
    },
)
planted(
    rounding.test_the_mean_over_streams_is_the_update,
    rounded_update.round_update,
    {
        "rounding to the nearest code": ("rng.random(update.size) < whole - low", "whole - low > 0.5"),
        "rounding down": ("rng.random(update.size) < whole - low", "0 * whole > 0"),
    },
)
planted(
    every_case(rounding.test_no_value_is_off_by_a_scale),
    rounded_update._scales,
    {
        "a scale that the largest value does not fit": ("np.where(short, ", "np.where(short & False, "),
    },
)
planted(
    rounding.test_a_large_tensor_does_not_coarsen_its_neighbours,
    rounded_update.round_update,
    {
        "one scale for the whole update": (
            "_scales(np.maximum.reduceat(np.abs(update), np.arange(0, update.size, _RUN)))",
            "np.full(_num_runs(update.size), max(np.abs(trained[n] - incoming[n]).max(initial=0) for n in incoming)"
            " / 127, dtype=np.float32)",
        ),
    },
)
planted(
    every_case(rounding.test_an_update_that_is_not_finite_shows_or_counts_as_zero_where_the_server_adds_noise),
    rounded_update.leaving_arrays,
    {
        "a diverged client that the server tells apart": ("releases.mechanism.noise_at_server and ", "False and "),
        "divergence that nobody hears of": ("releases.mechanism.noise_at_server and ", ""),
    },
)
_REFUSED = every_case(server.test_a_hostile_update_costs_its_sender_its_place)
planted(
    _REFUSED,
    checks._check_numbers,
    {
        "scales that are not finite where the server clips": ("and not releases.rounded", ""),
        "codes of any type": ("types=_BYTES if codes else _FLOATS", 'types=("|i1", "|u1", "<i2", "<f4")'),
        "scales of 64 bits": ("not codes and values.dtype != wanted", "False"),
    },
)
planted(
    every_case(server.test_a_scale_beyond_float32_is_left_out),
    replies.ReplyCollector._restore,
    {
        "a finite scale that leads beyond float32": ("not clipped and ", "False and "),
    },
)
planted(
    server.test_a_round_counts_the_bytes_that_came,
    loop._Exchange.__init__,
    {
        "bytes of the restored model": (
            "collector.received[name] for name in self.accepted",
            "content_bytes(reply.content) for reply, _ in self.accepted.values()",
        ),
    },
)
planted(
    rounding.test_shapes_and_bytes_follow_from_the_model_alone,
    Releases.rounded,
    {
        "32 bits where 8 are asked for": ("self.update_bits < 32", "False"),
    },
)
