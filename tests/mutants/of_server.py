"""T1 and T2 where the server clips clients' updates and adds the noise."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from common.privacy.noise import SecureStream
from common.privacy.plan import PrivacyPlan
from server.aggregation import central_dp as central_noise
from server.rounds import loop as rounds
from tests.mutants.registry import CENTRAL, mutant

_TOO_FAR = "moves a sum by no more than C"


@mutant("T1", f"a nan {_TOO_FAR}", mode=CENTRAL)
def an_update_that_is_no_number_passes(patch: pytest.MonkeyPatch) -> None:
    """Python's `min(1, nan)` is 1: such an update is added as it is.

    Source: flwr 1.41.0, `flwr/supercore/differential_privacy.py`, `clip_inputs_inplace`.
    """

    def clipped(updates: np.ndarray, *, max_grad_norm: float) -> np.ndarray:
        norm = float(np.sqrt(np.square(updates).sum()))
        return np.asarray(updates[0] * (min(1, max_grad_norm / norm) if norm else 1.0))

    patch.setattr(central_noise, "clipped_sum", clipped)


@mutant("T1", f"norm 0 {_TOO_FAR}", mode=CENTRAL)
def an_update_of_zero_is_divided_by_its_norm(patch: pytest.MonkeyPatch) -> None:
    """A client that changed nothing makes the round no number, for all to see.

    Source: flwrlabs/flower pull request 7631 (there the division by zero ends the round).
    """

    def clipped(updates: np.ndarray, *, max_grad_norm: float) -> np.ndarray:
        with np.errstate(all="ignore"):
            norm = np.linalg.norm(updates)
            return np.asarray(np.nan_to_num(updates[0]) / norm * np.minimum(norm, max_grad_norm))

    patch.setattr(central_noise, "clipped_sum", clipped)


@mutant("T1", _TOO_FAR, mode=CENTRAL)
def the_bound_follows_from_the_updates(patch: pytest.MonkeyPatch) -> None:
    """Updates are clipped to the mean of their norms, and noised for the bound that was agreed on."""
    real = central_noise.noised_average

    def average(start: Any, ended: Iterable[Mapping[str, np.ndarray]], plan: PrivacyPlan, **more: Any) -> Any:
        models = list(ended)
        norms = [np.sqrt(sum(float(np.square(model[name] - start[name]).sum()) for name in start)) for model in models]
        bound = float(np.mean([norm for norm in norms if np.isfinite(norm)]))
        wider = replace(plan, max_grad_norm=bound, noise_multiplier=plan.noise_multiplier * plan.max_grad_norm / bound)
        return real(start, models, wider, **more)

    patch.setattr(rounds, "noised_average", average)


@mutant("T1", _TOO_FAR, mode=CENTRAL)
def only_the_average_is_clipped(patch: pytest.MonkeyPatch) -> None:
    """The average over clients is clipped, and none of them.

    Source: raptor7197/caamas issue 36 ("clips a global L2 norm across already-aggregated params").
    """

    def clipped(updates: np.ndarray, *, max_grad_norm: float) -> np.ndarray:
        return np.asarray(np.nan_to_num(updates[0]) * min(1.0, 100 * max_grad_norm / (1e-12 + np.linalg.norm(updates))))

    patch.setattr(central_noise, "clipped_sum", clipped)


@mutant("T1", _TOO_FAR, mode=CENTRAL)
def the_clients_that_answered_are_the_divisor(patch: pytest.MonkeyPatch) -> None:
    """The noised sum is divided by how many updates came, which one client more changes.

    Source: flwr 1.41.0 aggregates over the clients that answered, and warns of it (`CLIENTS_DISCREPANCY_WARNING`).
    """
    real = central_noise.noised_average

    def average(start: Any, ended: Iterable[Any], plan: PrivacyPlan, **more: Any) -> Any:
        models = list(ended)
        return real(start, models, replace(plan, num_units=len(models)), **more)

    patch.setattr(rounds, "noised_average", average)


@mutant("T1", _TOO_FAR, mode=CENTRAL)
def large_clients_weigh_more(patch: pytest.MonkeyPatch) -> None:
    """Clipped updates are weighted by `num-examples`: a client of many examples moves the sum by more than C.

    Source: what `_validate_uniform_weights` of flwr 1.41.0, `dp_fixed_clipping.py`, is there to refuse.
    """
    real = central_noise.clipped_sum
    sizes: list[float] = []

    def as_one(messages: Sequence[Any], *rest: Any) -> Any:
        sizes[:] = [message.content.metric_records["metrics"]["num-examples"] / 100 for message in messages]
        return real_noised_message(messages, *rest)

    real_noised_message = rounds._noised_message
    patch.setattr(rounds, "_noised_message", as_one)
    patch.setattr(central_noise, "clipped_sum", lambda update, **more: sizes.pop(0) * real(update, **more))


@mutant("T2", "the server's noise has the declared scale", mode=CENTRAL, listed="noise for the next clip bound")
def noise_is_for_the_next_bound(patch: pytest.MonkeyPatch) -> None:
    """The bound adapts before the noise is drawn: updates clipped at C get the noise of 0.9 C.

    Source: flwr 1.41.0, `dp_adaptive_clipping.py`: `_geometric_update` stands before `_add_noise_to_aggregated_arrays`.
    """
    real = central_noise.add_noise

    def add(total: np.ndarray, *, noise_stddev: float, **more: Any) -> np.ndarray:
        return real(total, noise_stddev=noise_stddev * float(np.exp(-0.2 * 0.5)), **more)

    patch.setattr(central_noise, "add_noise", add)


@mutant("T2", "the server's noise is new in each round", mode=CENTRAL)
def the_server_repeats_its_noise(patch: pytest.MonkeyPatch) -> None:
    """One stream is made when the server starts, and copied for each round."""
    kept = SecureStream().random_bytes(100_000)

    class Kept:
        def random_bytes(self, size: int) -> bytes:
            return kept[:size]

    patch.setattr(rounds, "SecureStream", Kept)


@mutant("T1", "changes no use of streams", mode=CENTRAL)
def noise_is_drawn_for_each_client(patch: pytest.MonkeyPatch) -> None:
    """One number more a client: noise tells who answered, and runs out of step with what was frozen."""
    real = central_noise.noised_average

    def average(start: Any, ended: Iterable[Mapping[str, np.ndarray]], plan: PrivacyPlan, *, stream: Any) -> Any:
        models = list(ended)
        stream.random_bytes(len(models))
        return real(start, models, plan, stream=stream)

    patch.setattr(rounds, "noised_average", average)
