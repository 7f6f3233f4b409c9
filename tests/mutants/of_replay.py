"""T1: something besides the clipped sum depends on one unit."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array
from torch import nn

import client.app as client_app
import client.training.dp_sgd as head_training
from client.training import network_sgd as network_training
from client.training.gradients.opacus_gradients import opacus_gradients
from client.training.gradients.outer_gradients import SplitGradient
from client.training.gradients.per_example_gradients import Examples
from client.training.round_settings import LocalSettings
from client.training.trainer import Trainer
from common.data import client_dataset as shards
from common.models.classifier import AnyNetwork
from common.models.frozen_batch_norm import FrozenBatchNorm
from common.privacy.plan import PrivacyPlan
from tests.mutants.registry import mutant

_TOO_FAR = "moves a sum by no more than C"


@mutant("T1", _TOO_FAR)
def the_batch_that_was_drawn_is_the_divisor(patch: pytest.MonkeyPatch) -> None:
    """The noised sum is divided by the number of examples in the batch, which is a secret.

    Source: meta-pytorch/opacus issue 420 asks for it.
    """
    real_batch, real_noise, drawn = head_training.poisson_batch, head_training.add_noise, [1.0]

    def batch(*args: Any, **more: Any) -> np.ndarray:
        found = real_batch(*args, **more)
        drawn[0] = max(1, len(found))
        return found

    patch.setattr(head_training, "poisson_batch", batch)
    patch.setattr(head_training, "add_noise", lambda *args, **more: real_noise(*args, **more) * 20 / drawn[0])


@mutant("T1", _TOO_FAR)
def the_units_that_were_found_make_the_divisor(patch: pytest.MonkeyPatch) -> None:
    """The expected batch size follows from the images that are there: neighbours have different ones.

    Source: meta-pytorch/opacus issue 571 (2 to 3 examples, epsilon 2.5 where 1.2 is stated).
    """
    real = head_training.private_steps

    def steps(start: np.ndarray, num_units: int, clipped: Any, plan: PrivacyPlan, *rest: Any) -> np.ndarray:
        return real(start, num_units, clipped, replace(plan, num_units=max(1, num_units)), *rest)

    patch.setattr(head_training, "private_steps", steps)


@mutant("T1", "changes nothing else")
def the_weight_is_the_number_that_was_found(patch: pytest.MonkeyPatch) -> None:
    """`num-examples` is how many images there are, as Flower's examples send it, not the declared number."""
    real_train, real_update, found = Trainer.train, client_app.encode_update, [0]

    def train(self: Trainer, arrays: Any, shard: shards.Shard, **more: Any) -> Any:
        found[0] = len(shard.train_labels)
        return real_train(self, arrays, shard, **more)

    patch.setattr(Trainer, "train", train)
    patch.setattr(client_app, "encode_update", lambda arrays, _, findings: real_update(arrays, found[0], findings))


@mutant("T1", "changes nothing else")
def a_log_line_tells_the_batch(patch: pytest.MonkeyPatch) -> None:
    """Logs are shipped and shared: a line for each step says how many units are in it."""
    real = head_training.poisson_batch

    def batch(*args: Any, **more: Any) -> np.ndarray:
        found = real(*args, **more)
        logging.getLogger("bract.client").info("a batch of %d", len(found))
        return found

    patch.setattr(head_training, "poisson_batch", batch)


@mutant("T1", "1 units against 0")
def a_step_without_examples_has_no_noise(patch: pytest.MonkeyPatch) -> None:
    """An empty batch gives a zero sum, so "there is nothing to protect": the zero says that nobody was there."""
    real = head_training.add_noise
    patch.setattr(
        head_training, "add_noise", lambda total, **more: real(total, **more) if total.any() else np.zeros(total.shape)
    )


@mutant("T1", "three rows moves the counts", mode="head of groups", listed="a unit's images voting twice")
def each_image_of_a_unit_votes(patch: pytest.MonkeyPatch) -> None:
    """All held-out images of a unit are counted, and the noise is for one of them."""

    def evaluation_units(units: np.ndarray, trained: np.ndarray, digests: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        voting = ~np.isin(units, trained)
        return np.flatnonzero(voting), voting

    patch.setattr(shards, "_evaluation_rows", evaluation_units)


def send_statistics(patch: pytest.MonkeyPatch) -> None:
    """Layers keep statistics of what they see, and a reply holds the whole `state_dict`."""
    real, networks = client_app.encode_update, _moving_statistics(patch)

    def update(arrays: Any, *rest: Any) -> Any:
        content = real(arrays, *rest)
        for name, buffer in networks[-1].named_buffers():
            if "running" in name:
                content.array_records["arrays"][name] = Array(buffer.numpy().copy())
        return content

    patch.setattr(client_app, "encode_update", update)
    patch.setattr(client_app, "check_release", lambda content, **_: content)


def _moving_statistics(patch: pytest.MonkeyPatch) -> list[AnyNetwork]:
    """Each forward pass of a training step moves the running statistics; returns networks that trained."""
    real_forward, real_provider, networks = FrozenBatchNorm.forward, network_training._provider, list[AnyNetwork]()

    def forward(self: FrozenBatchNorm, maps: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled():
            with torch.no_grad():
                self.get_buffer("running_mean").lerp_(maps.mean(dim=(0, 2, 3)), 0.1)
        return real_forward(self, maps)

    def provider(network: AnyNetwork, *rest: Any) -> network_training.Provider:
        networks.append(network)
        return real_provider(network, *rest)

    patch.setattr(FrozenBatchNorm, "forward", forward)
    patch.setattr(network_training, "_provider", provider)
    return networks


@mutant("T1", "changes nothing else", mode="norm", listed="BatchNorm statistics in the payload")
def statistics_of_layers_leave(patch: pytest.MonkeyPatch) -> None:
    """BatchNorm's running mean goes along with the tensors, without noise.

    Source: a federation that averages whole state dicts does this; see NVIDIA/NVFlare issue 1718 and, for DP-SGD,
    meta-pytorch/opacus issue 319 ("BatchNorm2D is not compatible with DP").
    """
    send_statistics(patch)


@mutant("T1", "joins no step moves nothing", mode="norm")
def statistics_of_layers_move(patch: pytest.MonkeyPatch) -> None:
    """A buffer that no gradient goes through remembers images from one example, and one message, to the next.

    Source: asked for as "frozen running stats" in meta-pytorch/opacus issue 472.
    """
    _moving_statistics(patch)


@mutant("T1", "changes no other one's gradient", mode="cnn")
def gradients_come_in_batches(patch: pytest.MonkeyPatch) -> None:
    """A batched product rounds a row by the number of its rows, and hostile weights multiply the difference.

    Source: Opacus computes gradients so, and `training.gradients=opacus` names it; here nobody has asked for it.
    """

    def provider(network: AnyNetwork, _: object, settings: LocalSettings, *__: object) -> network_training.Provider:
        return lambda examples, _: map(SplitGradient.undivided, opacus_gradients(network, examples, settings))

    patch.setattr(network_training, "_provider", provider)
    patch.setattr(network_training, "_takes_one_by_one", lambda *_: False)


@mutant("T1", _TOO_FAR, mode="norm")
def examples_see_each_other(patch: pytest.MonkeyPatch) -> None:
    """BatchNorm in training mode over a whole batch: one example changes the clipped gradients of all others.

    Source: meta-pytorch/opacus issue 319.
    """

    def forward(self: FrozenBatchNorm, maps: torch.Tensor) -> torch.Tensor:
        mean = maps.mean(dim=(0, 2, 3), keepdim=True)
        var = torch.square(maps - mean).mean(dim=(0, 2, 3), keepdim=True)
        scaled = (maps - mean) / torch.sqrt(var + self.eps) * self.weight[:, None, None] + self.bias[:, None, None]
        out: torch.Tensor = self.act(self.drop(scaled))
        return out

    def together(network: AnyNetwork, examples: Examples, settings: LocalSettings) -> Iterator[np.ndarray]:
        named = dict(network.named_parameters())
        trained = [named[name] for name in network.trained]
        for row in range(len(examples)):
            logits = network(examples.inputs)[row : row + 1]
            loss = nn.functional.cross_entropy(logits, examples.labels[row : row + 1], reduction="sum")
            yield torch.cat([part.ravel() for part in torch.autograd.grad(loss, trained)]).numpy()

    patch.setattr(FrozenBatchNorm, "forward", forward)
    patch.setattr(network_training, "_weights_apart", lambda *_: ())
    patch.setattr(network_training, "gradients_one_by_one", together)
