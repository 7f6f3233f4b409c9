"""Gradient inversion of one client's update with one training image.

What the attacker holds is what a server holds: the weights that went out, the
weights that came back, and the public constants of the run.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from client.training.gradients.per_example_gradients import Examples, loss_sum
from client.training.round_settings import LocalSettings
from common.arrays import Arrays
from common.models.classifier import CnnNetwork, load_arrays
from common.randomness import public_stream

_TINY = 1e-20
_MILESTONES = (3 / 8, 5 / 8, 7 / 8)  # of the steps: there the step length falls tenfold, as at Geiping et al.


@dataclass(frozen=True)
class Attack:
    """Effort of the attack.

    Attributes:
        restarts: Number of random images to start from; the best result is kept.
        steps: Steps of Adam on the sign of the image's gradient, for each restart.
        step_length: Length of the first steps, with pixels in [-1, 1].
        smoothness: Weight of total variation in the attacker's loss.
        seed: Seed of the random images; public.
    """

    restarts: int = 4
    steps: int = 400
    step_length: float = 0.1
    smoothness: float = 0.03
    seed: int = 0


@dataclass(frozen=True)
class Rebuilt:
    """Reconstruction from one update.

    Attributes:
        pixels: (side, side, channels) float64 in [0, 255].
        label: Class that the attacker infers.
        misfit: Loss that the attacker minimizes; 0 if the image explains the update exactly.
    """

    pixels: np.ndarray
    label: int
    misfit: float


def gradient_of(before: Arrays, after: Arrays, settings: LocalSettings) -> Arrays:
    """Return the gradient behind one step of SGD.

    Args:
        before: Weights that the server sent.
        after: Weights that came back.
        settings: The client's public settings; learning rate and weight decay are used.

    Returns:
        Name -> float32 gradient; clipped and noised if the client did that.
    """
    rate, decay = np.float32(settings.learning_rate), np.float32(settings.weight_decay)
    return {name: (before[name] - after[name]) / rate - decay * before[name] for name in before}


def label_of(gradient: Mapping[str, np.ndarray]) -> int:
    """Return the class of the one image behind a gradient.

    By the output's bias the gradient is probability minus label: negative for the image's own class alone.

    Source: Zhao et al. 2020, arXiv:2001.02610.

    >>> label_of({"output.bias": np.array([0.3, -0.8, 0.5])})
    1
    """
    return int(np.argmin(gradient["output.bias"]))


def inner_maps_of(gradient: Mapping[str, np.ndarray]) -> tuple[np.ndarray, float]:
    """Return the input of the dense layer and how far it can be trusted.

    For one image the gradient by the layer's weight is `slope x input` and by its bias `slope`; the maps are
    the input that fits both best in least squares. Without noise they are exact.

    Returns:
        (features,) float64, and in [0, 1] how much of the weight's gradient they explain beyond what they
        would of mere noise: 1 without noise.

    Source: Phong et al. 2018, doi:10.1109/TIFS.2017.2787987 (one neuron); least squares over neurons is ours.

    >>> slope, maps = np.array([0.5, -1.0]), np.array([1.0, 0.0, 3.0])
    >>> found, trust = inner_maps_of({"dense.weight": np.outer(slope, maps), "dense.bias": slope})
    >>> found.tolist(), round(trust, 6)
    ([1.0, 0.0, 3.0], 1.0)
    """
    slope, weight = (gradient[f"dense.{name}"].astype(np.float64) for name in ("bias", "weight"))
    length = max(float(slope @ slope), _TINY)
    maps = np.asarray(slope @ weight / length)
    share = length * float(maps @ maps) / max(float(np.sum(weight**2)), _TINY)
    by_chance = 1 / len(slope)
    return maps, max(0.0, (share - by_chance) / (1 - by_chance))


def rebuild(
    network: CnnNetwork,
    before: Arrays,
    after: Arrays,
    settings: LocalSettings,
    attack: Attack,
    *,
    input_shape: tuple[int, ...],
    advance: Callable[[int], None] = lambda _: None,
) -> Rebuilt:
    """Search for the image whose update looks most like a given one.

    Minimised are the cosine distance between the two gradients, the relative squared distance between the
    maps that enter the dense layer (as far as they can be trusted), and total variation.

    Args:
        network: On the CPU; its parameters are overwritten by `before`.
        before: Weights that the server sent.
        after: Weights that came back after one step on one image.
        settings: The client's settings, all public.
        attack: Steps, restarts and priors of the attack.
        input_shape: (side, side, channels), public.
        advance: Called with 1 after each of `attack.restarts * attack.steps` steps.

    Source: Geiping et al. 2020, arXiv:2003.14053 (cosine distance, total variation, signed Adam).
    """
    load_arrays(network, before)
    target = _Target(network, gradient_of(before, after, settings), settings)
    tries = []
    for restart in range(attack.restarts):
        rng = public_stream(attack.seed, "inversion", restart)
        side, _, channels = input_shape
        start = torch.from_numpy(rng.standard_normal((1, channels, side, side)).astype(np.float32))
        tries.append(_search(target, start, attack, advance))
    misfit, image = min(tries, key=lambda found: found[0])
    pixels = (image[0].permute(1, 2, 0).double() + 1.0) * 127.5
    return Rebuilt(pixels.numpy(), target.label, misfit)


class _Target:
    """Gradient to explain, with the misfit of an image to it."""

    def __init__(self, network: CnnNetwork, gradient: Arrays, settings: LocalSettings) -> None:
        self.label = label_of(gradient)
        self._network, self._settings = network, settings
        named = dict(network.named_parameters())
        self._weights = [named[name] for name in network.trained]
        self._gradient = torch.cat([torch.from_numpy(gradient[name]).ravel() for name in network.trained])
        maps, self._trust = inner_maps_of(gradient)
        self._maps = torch.from_numpy(maps.astype(np.float32))

    def misfit(self, image: torch.Tensor) -> torch.Tensor:
        """Return the misfit of an image as a scalar.

        It is twice differentiable as far as ReLU and pooling are.
        """
        entering: list[torch.Tensor] = []
        handle = self._network.dense.register_forward_pre_hook(lambda _, inputs: entering.append(inputs[0][0]))
        label = torch.tensor([self.label])
        try:
            loss = loss_sum(self._network, Examples(image, label, None, torch.zeros_like(label)), self._settings)
        finally:
            handle.remove()
        parts = torch.autograd.grad(loss, self._weights, create_graph=True)
        own = torch.cat([part.ravel() for part in parts])
        angle = 1.0 - torch.cosine_similarity(own, self._gradient, dim=0)
        distance = _squares(entering[0] - self._maps) / _squares(self._maps).clamp_min(_TINY)
        return angle + self._trust * distance


def _squares(values: torch.Tensor) -> torch.Tensor:
    return (values * values).sum()


def _search(
    target: _Target, start: torch.Tensor, attack: Attack, advance: Callable[[int], None]
) -> tuple[float, torch.Tensor]:
    """Return misfit and image of one restart.

    The misfit includes smoothness. The image is (1, channels, side, side) in [-1, 1].
    """
    image = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([image], lr=attack.step_length)
    falls = [round(attack.steps * milestone) for milestone in _MILESTONES]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, falls, gamma=0.1)
    misfit = torch.tensor(torch.inf)
    for _ in range(attack.steps):
        misfit = target.misfit(image) + attack.smoothness * _variation(image)
        image.grad = torch.autograd.grad(misfit, image)[0].sign()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            image.clamp_(-1.0, 1.0)
        advance(1)
    return float(misfit.detach()), image.detach()


def _variation(image: torch.Tensor) -> torch.Tensor:
    """Return the mean absolute difference of neighbouring pixels along both axes."""
    down, right = image[..., 1:, :] - image[..., :-1, :], image[..., 1:] - image[..., :-1]
    return down.abs().mean() + right.abs().mean()
