"""Backbone and head as one network that names what is trained."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from common.arrays import Arrays
from common.config.schema import RunConfig
from common.config.sections import ModelConfig
from common.errors import ConfigError
from common.models.backbone import Backbone
from common.models.backbone_info import backbone_info, load_backbone, scaling_of
from common.models.frozen_batch_norm import FrozenBatchNorm
from common.models.names import BackboneSpec
from common.models.small_cnn import SmallCnn, to_pixels
from common.models.torch_heads import build_head, scale_features
from common.models.torch_seed import seeded_torch
from common.models.tuning import norm_names, parse_tuning, tuned_names

_ROTATIONS = 4


class Network(nn.Module):
    """A classifier with a frozen or tuned backbone.

    The body is None where the inputs are its cached features. `rotation` is a second head that predicts rotations, or
    None. `trained` names the parameters that are trained, in order; all others are frozen. `engine` names what computes
    its features where the backbone is frozen, see `accelerated`.
    """

    def __init__(
        self, body: Backbone | None, head: nn.Module, *, scaling: str, flat: bool, rotation: nn.Module | None
    ) -> None:
        super().__init__()
        self.body = body
        self.head = head
        self.rotation = rotation
        self.trained: tuple[str, ...] = ()
        self.engine = "eager-float32"
        self._scaling = scaling
        self._flat = flat
        if body is not None:
            mean, std = body.preprocessing.mean, body.preprocessing.std
            self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
            self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def prepare(self, cached: np.ndarray) -> torch.Tensor:
        """Convert cached features or images to the network's input.

        Features (n, d) stay as they are; images (n, side, side, channels) uint8 become normalised (n, 3, side, side),
        which are on the network's device.
        """
        inputs = torch.from_numpy(np.ascontiguousarray(cached))
        if self.body is None:
            return inputs
        mean, std = self.get_buffer("mean"), self.get_buffer("std")
        # As bytes they are on the way to the device for a quarter of the time.
        pixels = inputs.to(mean.device).permute(0, 3, 1, 2).float()
        return (pixels.expand(-1, 3, -1, -1) - mean) / std

    def features(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return scaled features (n, d) of prepared inputs."""
        return inputs if self.body is None else self.pooled(self.feature_maps(inputs))

    def feature_maps(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the backbone's last maps (n, ...) of prepared images.

        Raises:
            ConfigError: The network has no backbone.
        """
        return self._backbone.feature_maps(inputs)

    def pooled(self, maps: torch.Tensor) -> torch.Tensor:
        """Return scaled features (n, d) of `feature_maps`.

        Raises:
            ConfigError: The network has no backbone.
        """
        return scale_features(self._unscaled(maps), self._scaling)

    def unscaled_features(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return features (n, d) of prepared inputs as the backbone gives them."""
        return inputs if self.body is None else self._unscaled(self.feature_maps(inputs))

    def _unscaled(self, maps: torch.Tensor) -> torch.Tensor:
        return maps.flatten(1) if self._flat and maps.ndim == 4 else self._backbone.pooled(maps)

    @property
    def _backbone(self) -> Backbone:
        if self.body is None:
            raise ConfigError("a network over cached features has no maps")
        return self.body

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return logits (n, classes) of prepared inputs."""
        logits: torch.Tensor = self.head(self.features(inputs))
        return logits

    def rotation_logits(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return logits (n, 4) of the number of quarter turns.

        Raises:
            ConfigError: The network has no head for rotations.
        """
        if self.rotation is None:
            raise ConfigError("the network has no head for rotations: training.rotation-weight is 0")
        logits: torch.Tensor = self.rotation(self.features(inputs))
        return logits


class CnnNetwork(SmallCnn):
    """The small network, trained from scratch and used like a `Network`."""

    @property
    def head(self) -> nn.Module:
        """Last layer, from features to logits."""
        return self.output

    @property
    def trained(self) -> tuple[str, ...]:
        """Names of all parameters, in order."""
        return tuple(name for name, _ in self.named_parameters())

    def prepare(self, cached: np.ndarray) -> torch.Tensor:
        """Convert (n, side, side, channels) uint8 to (n, channels, side, side) in [-1, 1]."""
        return to_pixels(np.ascontiguousarray(cached))


AnyNetwork = Network | CnnNetwork


# The values that constructors draw are overwritten later. The seed keeps torch's global generator unchanged.
@seeded_torch(0)
def build_network(config: RunConfig, input_shape: tuple[int, ...], num_classes: int) -> AnyNetwork:
    """Build the run's network with its backbone's weights.

    The values of the heads are undefined until `load_arrays`. `input_shape` is (features,) where a frozen backbone's
    features are cached, else (side, side, channels).

    Raises:
        ConfigError: The tuning does not go with the backbone.
        WeightsError: Pretrained weights are missing or wrong.
    """
    if config.model.backbone == "cnn":
        return CnnNetwork(input_shape[0], input_shape[2], num_classes, config.cnn_depth)
    spec, flat = config.backbone_spec, config.model.head == "mlp"
    body, tuned = None, set[str]()
    size = input_shape[0]
    if not config.caches_features:
        body, facts = load_backbone(spec), backbone_info(spec)
        size = facts.num_flattened if flat else facts.num_features
        if config.mechanism.clips_units:
            _unfuse_attention(body)
        prepare = parse_tuning(config.tuning)[0].prepare
        if prepare is not None:
            prepare(body, config.model.lora_rank)
        tuned = {f"body.{name}" for name in tuned_names(body, config.tuning, spec.name)}
    head = build_head(config.model.head, size, num_classes)
    rotation = nn.Linear(size, _ROTATIONS, bias=False) if config.training.rotation_weight else None
    network = Network(body, head, scaling=scaling_of(config.model), flat=flat, rotation=rotation)
    named = dict(network.named_parameters())
    network.trained = tuple(name for name in named if name in tuned or not name.startswith("body."))
    for name, parameter in named.items():
        parameter.requires_grad_(name in network.trained)
    return network.eval()


def _unfuse_attention(body: Backbone) -> None:
    """Turn off fused attention in all layers, in place."""
    # `torch.func` cannot batch it over examples and would fall back to a slow loop.
    for layer in body.modules():
        if hasattr(layer, "fused_attn"):
            layer.fused_attn = False  # type: ignore[assignment]


def feature_network(model: ModelConfig, spec: BackboneSpec) -> Network:
    """Build the frozen backbone that turns images into scaled features.

    Raises:
        ConfigError: The backbone is unknown or cannot take such images.
        WeightsError: Pretrained weights are missing or wrong.
    """
    flat, scaling = model.head == "mlp", scaling_of(model)
    network = Network(load_backbone(spec), nn.Identity(), scaling=scaling, flat=flat, rotation=None).eval()
    network.engine = backbone_info(spec).engine
    return network


def load_arrays(network: AnyNetwork, arrays: Mapping[str, np.ndarray]) -> None:
    """Copy values into the trained parameters, in place."""
    named = dict(network.named_parameters())
    for name in network.trained:
        values = named[name].detach()
        if values.device.type == "cpu" and values.dtype == torch.float32:
            # Not by a tensor between them, which would copy large models twice for each client.
            np.copyto(values.numpy(), arrays[name])
        else:
            values.copy_(torch.tensor(arrays[name]))


def trained_arrays(network: AnyNetwork) -> Arrays:
    """Return copies of the trained parameters, float32, in order."""
    named = dict(network.named_parameters())
    return {name: named[name].detach().float().cpu().numpy().copy() for name in network.trained}


def personal_names(network: AnyNetwork, model: ModelConfig) -> frozenset[str]:
    """Return the names of trained tensors that stay at the client.

    Raises:
        ConfigError: None of the trained tensors would be personal.
    """
    if not model.personal:
        return frozenset()
    if model.personal == "head":
        return frozenset(name for name in network.trained if name.startswith("head."))
    body = network.body
    affine = {f"body.{name}" for name in norm_names(body, (FrozenBatchNorm,))} if isinstance(body, Backbone) else set()
    personal = frozenset(name for name in network.trained if name in affine)
    if not personal:
        raise ConfigError(
            f"model.personal='batchnorm-affine' with model.backbone={model.backbone!r} and "
            f"model.tuning={model.tuning!r}: no BatchNorm is trained; use a backbone that has it, and norm or full"
        )
    return personal
