"""T1: more of one unit in a sum than the bound allows."""

from collections.abc import Sequence

import numpy as np
import pytest

import client.training.dp_sgd as head_training
from client.training import network_sgd as network_training
from client.training.gradients import outer_gradients
from common.models.classifier import AnyNetwork
from common.privacy import clipping
from tests.mutants.registry import mutant

_TOO_FAR = "moves a sum by no more than C"


def _gradients(features: np.ndarray, residuals: np.ndarray) -> np.ndarray:
    """(n, classes, d) float64, each row's gradient."""
    return np.asarray(np.einsum("nc,nd->ncd", residuals.astype(np.float64), features.astype(np.float64)))


def _side_by_side(gradient: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([part.ravel() for part in gradient])


def _finite(gradients: np.ndarray) -> np.ndarray:
    return np.asarray(gradients[np.isfinite(gradients).all(axis=(1, 2))])


@mutant("T1", _TOO_FAR, listed="no clipping")
def nothing_is_clipped(patch: pytest.MonkeyPatch) -> None:
    """Every finite gradient keeps its length."""
    patch.setattr(clipping, "clip_factors", lambda norms, *, max_grad_norm: np.isfinite(norms).astype(np.float64))


@mutant("T1", _TOO_FAR, mode="full")
def nothing_is_clipped_in_a_network(patch: pytest.MonkeyPatch) -> None:
    """The same where the gradients are a network's."""
    patch.setattr(clipping, "clip_factors", lambda norms, *, max_grad_norm: np.isfinite(norms).astype(np.float64))


@mutant("T1", _TOO_FAR)
def the_bound_is_a_default(patch: pytest.MonkeyPatch) -> None:
    """The engine does not hand the run's bound on, and the clipper takes its own default.

    Source: meta-pytorch/opacus pull request 664 ("privacy engine erroneously wasn't using the max_grad_norm").
    """
    real = clipping.clip_factors
    patch.setattr(clipping, "clip_factors", lambda norms, *, max_grad_norm: real(norms, max_grad_norm=1.0))


@mutant("T1", _TOO_FAR, listed="clip per batch")
def the_batch_is_clipped_as_one(patch: pytest.MonkeyPatch) -> None:
    """The gradient of the mini-batch is clipped, not that of each example.

    Source: APPFL/APPFL issue 349 (`clip_grad_norm_` where examples must be clipped).
    """

    def clipped(features: np.ndarray, residuals: np.ndarray, *, max_grad_norm: float, **_: object) -> np.ndarray:
        total = np.asarray(_finite(_gradients(features, residuals)).sum(axis=0))
        return total * min(1.0, max_grad_norm / max(float(np.linalg.norm(total)), 1e-12))

    patch.setattr(head_training, "clipped_head_sum", clipped)


@mutant("T1", _TOO_FAR)
def microbatches_of_two_are_clipped_as_one(patch: pytest.MonkeyPatch) -> None:
    """Two examples' mean is clipped as if it were one gradient: one of them can turn it around, by 2 C.

    Source: TensorFlow Privacy clips "per microbatch gradients", and its documentation of `VectorizedDPAdagrad` has
    num_microbatches=1 as an example.
    """

    def clipped(features: np.ndarray, residuals: np.ndarray, *, max_grad_norm: float, **_: object) -> np.ndarray:
        each, total = _finite(_gradients(features, residuals)), np.zeros((residuals.shape[1], features.shape[1]))
        for at in range(0, len(each), 2):
            mean = each[at : at + 2].mean(axis=0)
            total += mean * min(1.0, max_grad_norm / max(float(np.linalg.norm(mean)), 1e-12))
        return total

    patch.setattr(head_training, "clipped_head_sum", clipped)


@mutant("T1", _TOO_FAR, mode="mlp head", listed="clip per tensor with one C")
def each_tensor_gets_the_whole_bound(patch: pytest.MonkeyPatch) -> None:
    """Every tensor is clipped at C by itself, so that k of them move by C sqrt(k).

    Source: fedbiomed/fedbiomed issue 1443 (`clip` is applied per parameter, not to the global norm); what noise a
    bound per layer needs: meta-pytorch/opacus issue 202.
    """
    real = outer_gradients.add_clipped

    def clipped(total: np.ndarray, gradient: Sequence[np.ndarray], *, max_grad_norm: float, **_: float) -> float:
        for part, values in zip(np.split(total, sizes), np.split(_side_by_side(gradient), sizes), strict=True):
            real(part, values, max_grad_norm=max_grad_norm)
        return 1.0

    sizes = _tensor_ends(patch)
    patch.setattr(outer_gradients, "add_clipped", clipped)


@mutant("T1", _TOO_FAR, mode="mlp head")
def one_tensor_is_no_part_of_the_norm(patch: pytest.MonkeyPatch) -> None:
    """The first tensor is clipped along with the others, but its own length is not counted."""

    def clipped(total: np.ndarray, gradient: Sequence[np.ndarray], *, max_grad_norm: float, **_: float) -> float:
        values = _side_by_side(gradient)
        rest = np.linalg.norm(values[ends[0] :])
        total += min(1.0, max_grad_norm / max(float(rest), 1e-12)) * values
        return 1.0

    ends = _tensor_ends(patch)
    patch.setattr(outer_gradients, "add_clipped", clipped)


@mutant("T1", _TOO_FAR, mode="mlp head")
def outer_products_are_no_part_of_the_norm(patch: pytest.MonkeyPatch) -> None:
    """The layers whose gradients are never formed are scaled along with the others, but not counted."""
    patch.setattr(outer_gradients, "outer_square", lambda *_: 0.0)


@mutant("T1", _TOO_FAR, mode="mlp head")
def outer_products_are_not_scaled(patch: pytest.MonkeyPatch) -> None:
    """The factor reaches the tensors that are formed, and not the others."""
    real = clipping.OuterProductSum.add

    def add(self: clipping.OuterProductSum, left: np.ndarray, right: np.ndarray, *, factor: float) -> None:
        real(self, left, right, factor=float(factor > 0))

    patch.setattr(clipping.OuterProductSum, "add", add)


@mutant("T1", f"nan {_TOO_FAR}", mode="mlp head")
def an_outer_product_that_is_no_number_is_multiplied_by_zero(patch: pytest.MonkeyPatch) -> None:
    """Factor 0 is taken for enough, but 0 x NaN is NaN."""
    real = clipping.OuterProductSum.add

    def add(self: clipping.OuterProductSum, left: np.ndarray, right: np.ndarray, *, factor: float) -> None:
        real(self, left, right, factor=factor or 1e-300)

    patch.setattr(clipping.OuterProductSum, "add", add)


def _tensor_ends(patch: pytest.MonkeyPatch) -> list[int]:
    """Where each tensor but the last ends in a flat gradient; known as soon as a network trains."""
    patch.setattr(network_training, "_weights_apart", lambda *_: ())
    ends: list[int] = []
    real = network_training._provider

    def watched(network: AnyNetwork, *rest: object) -> network_training.Provider:
        named = dict(network.named_parameters())
        ends[:] = np.cumsum([named[name].numel() for name in network.trained])[:-1].tolist()
        return real(network, *rest)  # type: ignore[arg-type]

    patch.setattr(network_training, "_provider", watched)
    return ends


@mutant("T1", f"nan {_TOO_FAR}", listed="NaN example unclipped")
def a_gradient_that_is_no_number_passes(patch: pytest.MonkeyPatch) -> None:
    """`norm > C` is false for a norm that is no number, so nothing is done about it."""

    def clipped(features: np.ndarray, residuals: np.ndarray, *, max_grad_norm: float, **_: object) -> np.ndarray:
        with np.errstate(all="ignore"):
            each = _gradients(features, residuals)
            norms = np.sqrt((each**2).sum(axis=(1, 2)))
            return np.asarray(
                (np.where(norms > max_grad_norm, max_grad_norm / norms, 1.0)[:, None, None] * each).sum(0)
            )

    patch.setattr(head_training, "clipped_head_sum", clipped)


@mutant("T1", f"a zero row {_TOO_FAR}")
def a_zero_gradient_is_divided_by_its_norm(patch: pytest.MonkeyPatch) -> None:
    """The direction of a zero gradient is 0 / 0, and one such example makes the whole sum no number.

    Source: tensorflow/tensorflow issue 22048 (`clip_by_norm` at zero).
    """

    def clipped(features: np.ndarray, residuals: np.ndarray, *, max_grad_norm: float, **_: object) -> np.ndarray:
        each = _finite(_gradients(features, residuals))
        norms = np.linalg.norm(each, axis=(1, 2), keepdims=True)
        with np.errstate(all="ignore"):
            return np.asarray((each / norms * np.minimum(norms, max_grad_norm)).sum(axis=0))

    patch.setattr(head_training, "clipped_head_sum", clipped)


# With one step, the gradients are those of the initial weights, whatever the noise. One of them is shorter than 1.
@mutant("T1", _TOO_FAR, mode="head, every image in every step")
def the_norm_lacks_its_root(patch: pytest.MonkeyPatch) -> None:
    """The bound is compared with the sum of squares: too far for gradients shorter than 1."""
    real = clipping.clip_factors
    patch.setattr(clipping, "clip_factors", lambda norms, **bound: real(np.square(norms), **bound))


@mutant("T1", _TOO_FAR)
def a_factor_is_at_least_one(patch: pytest.MonkeyPatch) -> None:
    """`max` in the place of `min`: what is short is made long, and what is long stays."""

    def factors(norms: np.ndarray, *, max_grad_norm: float) -> np.ndarray:
        with np.errstate(all="ignore"):
            return np.where(np.isfinite(norms) & (norms > 0), np.maximum(1.0, max_grad_norm / norms), 0.0)

    patch.setattr(clipping, "clip_factors", factors)


@mutant("T1", _TOO_FAR)
def values_are_clipped_in_place_of_vectors(patch: pytest.MonkeyPatch) -> None:
    """Each value is cut off at C, as `clip_grad_value_` does: a vector of d of them may still be C sqrt(d) long."""

    def clipped(features: np.ndarray, residuals: np.ndarray, *, max_grad_norm: float, **_: object) -> np.ndarray:
        return np.asarray(_finite(_gradients(features, residuals)).clip(-max_grad_norm, max_grad_norm).sum(axis=0))

    patch.setattr(head_training, "clipped_head_sum", clipped)


@mutant("T1", f"a unit of three rows {_TOO_FAR}", mode="head of groups", listed="augmentations clipped apart")
def views_of_a_unit_are_clipped_apart(patch: pytest.MonkeyPatch) -> None:
    """Each view of a unit is clipped by itself, so that a unit of k views moves the sum by k C.

    A unit's views are its images here: images have one view a step. Source: meta-pytorch/opacus issue 461 (an input
    that goes through the network N times counts N times); how it is done: issue 455.
    """

    def clipped(features: np.ndarray, residuals: np.ndarray, _: np.ndarray, *, max_grad_norm: float) -> np.ndarray:
        return clipping.clipped_head_sum(features, residuals, max_grad_norm=max_grad_norm)

    patch.setattr(head_training, "clipped_head_group_sum", clipped)
