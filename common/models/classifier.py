"""Backbone and head as one network that names what is trained."""

import threading
from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from common.config.schema import RunConfig
from common.errors import ConfigError
from common.models.backbone import Backbone
from common.models.backbone_info import backbone_info, load_backbone, scaling_of
from common.models.frozen_batch_norm import FrozenBatchNorm
from common.models.small_cnn import SmallCnn, to_pixels
from common.models.torch_heads import build_head, scale_features
from common.models.torch_seed import seeded_torch
from common.models.tuning import add_lora, norm_names, tuned_names

_ROTATIONS = 4
_local = threading.local()


class Network(nn.Module):
    """A classifier: a frozen or tuned backbone, a head, maybe a head that predicts rotations.

    Attributes:
        trained: Names of the parameters that are trained, in order; all others are frozen.
    """

    def __init__(
        self, body: Backbone | None, head: nn.Module, *, scaling: str, flat: bool, rotation: nn.Module | None
    ) -> None:
        super().__init__()
        self.body = body
        self.head = head
        self.rotation = rotation
        self.trained: tuple[str, ...] = ()
        self._scaling = scaling
        self._flat = flat
        if body is not None:
            mean, std = body.preprocessing.mean, body.preprocessing.std
            self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
            self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def prepare(self, rows: np.ndarray) -> torch.Tensor:
        """Rows as they lie in the cache to the network's input: features as they are, pixels to (n, 3, side, side)."""
        if self.body is None:
            return torch.from_numpy(np.ascontiguousarray(rows))
        pixels = torch.from_numpy(np.ascontiguousarray(rows)).permute(0, 3, 1, 2).float()
        return (pixels.expand(-1, 3, -1, -1) - self.get_buffer("mean").cpu()) / self.get_buffer("std").cpu()

    def features(self, inputs: torch.Tensor) -> torch.Tensor:
        """(n, d) scaled features of prepared inputs."""
        if self.body is None:
            return inputs
        maps = self.body.feature_maps(inputs)
        raw = maps.flatten(1) if self._flat and maps.ndim == 4 else self.body.pooled(maps)
        return scale_features(raw, self._scaling)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Logits (n, classes) of prepared inputs."""
        logits: torch.Tensor = self.head(self.features(inputs))
        return logits

    def rotation_logits(self, inputs: torch.Tensor) -> torch.Tensor:
        """Logits (n, 4) of how often each image was turned by a quarter."""
        if self.rotation is None:
            raise ConfigError("the network has no head for rotations: training.rotation-weight is 0")
        logits: torch.Tensor = self.rotation(self.features(inputs))
        return logits


class CnnNetwork(SmallCnn):
    """The small network from scratch, seen as a `Network`: everything is trained."""

    @property
    def trained(self) -> tuple[str, ...]:
        """All parameters, in order."""
        return tuple(name for name, _ in self.named_parameters())

    def prepare(self, rows: np.ndarray) -> torch.Tensor:
        """(n, side, side, channels) uint8 to (n, channels, side, side) in [-1, 1]."""
        return to_pixels(np.ascontiguousarray(rows))


AnyNetwork = Network | CnnNetwork


@seeded_torch(0)
def build_network(config: RunConfig, input_shape: tuple[int, ...], num_classes: int) -> AnyNetwork:
    """The run's network with its backbone's weights; the head's are undefined until `load_arrays`.

    Args:
        config: The run.
        input_shape: (features,) where a frozen backbone's features are cached, else
            (side, side, channels).
        num_classes: Length of the output.

    Raises:
        ConfigError: The way of tuning does not go with the backbone.
        WeightsError: Pretrained weights are missing or wrong.
    """
    if config.model.backbone == "cnn":
        return CnnNetwork(input_shape[0], input_shape[2], num_classes)
    flat = config.model.head == "mlp"
    body = None if config.caches_features else load_backbone(config)
    if body is None:
        size = input_shape[0]
    else:
        facts = backbone_info(config)
        size = facts.num_flattened if flat else facts.num_features
        if config.is_local_dp:
            _unfuse_attention(body)
        if config.tuning == "lora":
            add_lora(body, config.model.lora_rank)
            body.eval().requires_grad_(False)
    head = build_head(config.model.head, size, num_classes)
    rotation = nn.Linear(size, _ROTATIONS, bias=False) if config.training.rotation_weight else None
    network = Network(body, head, scaling=scaling_of(config), flat=flat, rotation=rotation)
    names = {f"body.{name}" for name in tuned_names(body, config.tuning, config.model.backbone)} if body else set()
    named = dict(network.named_parameters())
    network.trained = tuple(name for name in named if name in names or not name.startswith("body."))
    for name, parameter in named.items():
        parameter.requires_grad_(name in network.trained)
    return network.eval()


def _unfuse_attention(body: Backbone) -> None:
    """Fused attention has no batched form: per-example gradients in chunks would fall back to a loop."""
    for layer in body.modules():
        if hasattr(layer, "fused_attn"):
            layer.fused_attn = False  # type: ignore[assignment]


def feature_network(config: RunConfig) -> Network:
    """The frozen backbone as the feature cache needs it: pixels in, scaled features out.

    Raises:
        ConfigError: The backbone is unknown or cannot take such images.
        WeightsError: Pretrained weights are missing or wrong.
    """
    flat = config.model.head == "mlp"
    return Network(load_backbone(config), nn.Identity(), scaling=scaling_of(config), flat=flat, rotation=None).eval()


def network_for(config: RunConfig, input_shape: tuple[int, ...], num_classes: int) -> AnyNetwork:
    """The network of this thread; built once, then refilled by `load_arrays`."""
    key = (
        config.seed,
        config.is_local_dp,
        config.model,
        config.data.image_size,
        config.training,
        input_shape,
        num_classes,
    )
    if getattr(_local, "key", None) != key:
        _local.network = build_network(config, input_shape, num_classes)
        _local.key = key
    found: AnyNetwork = _local.network
    return found


def load_arrays(network: AnyNetwork, arrays: Mapping[str, np.ndarray]) -> None:
    """Copy values into the trained parameters, in place."""
    named = dict(network.named_parameters())
    with torch.no_grad():
        for name in network.trained:
            named[name].copy_(torch.tensor(arrays[name]))


def trained_arrays(network: AnyNetwork) -> dict[str, np.ndarray]:
    """Copies of the trained parameters, float32, in order."""
    named = dict(network.named_parameters())
    return {name: named[name].detach().float().cpu().numpy().copy() for name in network.trained}


def personal_names(config: RunConfig, input_shape: tuple[int, ...], num_classes: int) -> frozenset[str]:
    """Names of trained tensors that stay at the client, by `model.personal`.

    Raises:
        ConfigError: Nothing that is trained would be personal, or nothing would travel.
    """
    if not config.model.personal:
        return frozenset()
    network = network_for(config, input_shape, num_classes)
    if config.model.personal == "head":
        return frozenset(name for name in network.trained if name.startswith("head."))
    body = network.body
    affine = {f"body.{name}" for name in norm_names(body, (FrozenBatchNorm,))} if isinstance(body, Backbone) else set()
    found = frozenset(name for name in network.trained if name in affine)
    if not found:
        raise ConfigError(
            f"model.personal='batchnorm-affine' with model.backbone={config.model.backbone!r} and "
            f"model.tuning={config.tuning!r}: no BatchNorm is trained; use a backbone that has it, and norm or full"
        )
    return found
