"""T1, T2, T8: sums over features, released beyond what one Gaussian covers."""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from flwr.app import RecordDict

import client.app as client_app
import client.training.trainer as trainer_module
from client.app import Answer
from client.session import ClientSession
from client.training import statistics as client_statistics
from client.training.dp_sgd import PrivateStreams
from common.arrays import Arrays
from common.config.loading import Scalar
from common.ledger.transactions import LedgerSession
from common.privacy.plan import PrivacyPlan
from common.statistics import head, sums
from tests.client.training import test_statistics as of_client
from tests.common.statistics import test_head as of_head
from tests.common.statistics import test_sums as of_sums
from tests.mutants.faults import every_case, planted
from tests.mutants.registry import mutant
from tests.server.aggregation import test_statistics_head as of_server

_TOO_FAR = "moves a sum by no more than C"
_MEANS: dict[str, Scalar] = {"training.statistics": "class-means"}


@mutant("T1", _TOO_FAR, mode="sums of groups")
def sums_are_clipped_by_image(patch: pytest.MonkeyPatch) -> None:
    """A patient of three images adds three times the bound."""
    real = client_statistics.unit_factors

    def factors(kind: Any, features: np.ndarray, labels: np.ndarray, units: np.ndarray, *, bound: float) -> np.ndarray:
        return real(kind, features, labels, np.arange(len(units)), bound=bound)

    patch.setattr(client_statistics, "unit_factors", factors)


@mutant("T1", _TOO_FAR, mode="sums")
def each_sum_is_clipped_alone(patch: pytest.MonkeyPatch) -> None:
    """The second moment and the class sums each get the whole bound."""

    def norm(kind: str, products: np.ndarray, labels: object = None) -> np.ndarray:
        moment = np.sqrt(np.square(products).sum(axis=(1, 2)) / 2)
        return np.asarray(np.maximum(moment, np.sqrt(np.maximum(products.sum(axis=(1, 2)), 0) / 2)))

    patch.setattr(sums, "_norm", norm)


@mutant("T1", _TOO_FAR, mode="sums")
def values_off_the_diagonal_count_once(patch: pytest.MonkeyPatch) -> None:
    """The norm is that of the triangle, in which each value off the diagonal stands for two."""

    def factors(kind: Any, features: np.ndarray, labels: np.ndarray, units: np.ndarray, *, bound: float) -> np.ndarray:
        with np.errstate(all="ignore"):
            squares = np.square(features.astype(np.float64))
            total = squares.sum(axis=1)
            triangle = (total**2 + np.square(squares).sum(axis=1)) / 2
            return np.asarray(sums.clip_factors(np.sqrt((triangle + total) / 2), max_grad_norm=bound))

    patch.setattr(client_statistics, "unit_factors", factors)


@mutant("T2", "noise of second-moment", mode="sums")
def the_triangle_is_noised_without_the_root_of_two(patch: pytest.MonkeyPatch) -> None:
    """All values get the same noise, and those off the diagonal are then weighed as if they had less."""
    real = sums._factor
    patch.setattr(sums, "_factor", lambda kind, name, tensors: real(kind, name, tensors)[:1])


@mutant("T2", "noise of class-counts", mode="sums", settings=_MEANS)
def class_counts_are_exact(patch: pytest.MonkeyPatch) -> None:
    """They are only numbers of images, so they leave as they are."""
    real = trainer_module.private_statistics

    def statistics(kind: Any, features: np.ndarray, labels: np.ndarray, *rest: Any, **more: Any) -> Arrays:
        noised = real(kind, features, labels, *rest, **more)
        exact = np.bincount(labels, minlength=len(noised["class-sums"])).astype(np.float64)
        return noised | {"class-counts": exact}

    patch.setattr(trainer_module, "private_statistics", statistics)


@mutant("T2", "noise of class-sums", mode="sums")
def class_sums_have_no_noise(patch: pytest.MonkeyPatch) -> None:
    """Only the matrix is noised, as it is the larger one."""
    real = PrivateStreams.release

    def release(self: PrivateStreams, total: np.ndarray, plan: PrivacyPlan) -> np.ndarray:
        noised = real(self, total, plan)
        noised[-3 * 48 :] = total[-3 * 48 :]
        return noised

    patch.setattr(PrivateStreams, "release", release)


@mutant("T2", "noise of all tensors has the declared scale", mode="sums")
def sums_have_the_noise_of_a_share(patch: pytest.MonkeyPatch) -> None:
    """Each client adds the noise of a fifth, and no secure sum adds the others."""
    real = PrivateStreams.release

    def release(self: PrivateStreams, total: np.ndarray, plan: PrivacyPlan) -> np.ndarray:
        return real(self, total, replace(plan, noise_multiplier=plan.noise_multiplier / np.sqrt(5)))

    patch.setattr(PrivateStreams, "release", release)


@mutant("T1", _TOO_FAR, mode="sums")
def the_matrix_is_repaired_by_exact_values(patch: pytest.MonkeyPatch) -> None:
    """Noise made the matrix indefinite, and the client gives it the trace back that it had."""
    real = trainer_module.private_statistics

    def statistics(kind: Any, features: np.ndarray, *rest: Any, **more: Any) -> Arrays:
        noised, size = real(kind, features, *rest, **more), features.shape[1]
        rows, columns = np.triu_indices(size)
        with np.errstate(all="ignore"):
            trace = np.nan_to_num(np.square(features.astype(np.float64)).sum(), nan=0.0, posinf=0.0)
        noised["second-moment"][rows == columns] += (trace - noised["second-moment"][rows == columns].sum()) / size
        return noised

    patch.setattr(trainer_module, "private_statistics", statistics)


@mutant("T8", "a race spends what the plan has", mode="sums")
def sums_are_released_again_in_a_later_round(patch: pytest.MonkeyPatch) -> None:
    """The server sets a number of rounds, and a ledger that looks at nothing else follows it."""
    real = client_app.train

    def train(content: RecordDict, session: ClientSession) -> Answer:
        trainer = session.trainer
        longer = trainer.config.model_copy(update={"num_rounds": 9})
        return real(content, replace(session, trainer=replace(trainer, config=longer)))

    patch.setattr(client_app, "train", train)
    patch.setattr(LedgerSession, "_check_room", lambda *_: None)


planted(
    every_case(of_client.test_a_plan_of_more_than_one_release_is_refused),
    client_statistics.clipped_contribution,
    {"sums under a plan of several releases": ("!= (1.0, 1, 1)", "== ()")},
)
planted(
    partial(
        of_sums.test_a_unit_that_is_not_finite_counts_for_nothing_and_spoils_nothing, kind="second-moments", odd=np.nan
    ),
    sums.statistics_of,
    {"a sum that one NaN spoils": ("rows[weights == 0] = 0.0", "pass")},
)
planted(
    partial(of_head.test_a_noised_second_moment_is_repaired_by_the_noise_that_was_declared, stddev=3.0),
    head.solve_head,
    {"a noised matrix that is not repaired": ("np.maximum(values, floor)", "np.abs(values)")},
)
planted(
    of_server.test_the_head_is_that_of_the_clients_that_answered,
    of_server.head_solver,
    {"noise of clients that add up as if they were one": ("** 2 for name in names", "** 1 for name in names")},
)
