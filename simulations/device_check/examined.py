"""The networks that a device check examines, with the settings of their training."""

from typing import Any

from common.config.loading import defaults, override, parse
from common.config.schema import RunConfig
from simulations.device_check.findings import Sizes

CLASSES = tuple(str(name) for name in range(10))
STEPS = 2
_FEATURES = 1280


def networks(sizes: Sizes) -> list[tuple[str, dict[str, Any], tuple[int, ...]]]:
    """Return name, settings and input shape of each part that is trained."""
    side = sizes.side
    tuned = [(name, {"model.tuning": name, "data.image-size": side}, (side, side, 3)) for name in sizes.tunings]
    heads = [("head (NumPy)", {}, (_FEATURES,)), ("head mlp", {"model.head": "mlp"}, (_FEATURES,))]
    return [*heads, *tuned, ("cnn", {"model.backbone": "cnn"}, (32, 32, 3))]


def config_of(settings: dict[str, Any], *, batch: int, device: str, private: bool = True) -> RunConfig:
    """Return a run whose clients take `STEPS` steps a round.

    Args:
        settings: Settings of the network.
        batch: Images of a step, the expected number where it is private. Clients have `STEPS` times as many.
        device: Where networks are trained.
        private: Train under DP-SGD.
    """
    chosen = {
        "num-clients": 2,
        "training.learning-rate": 0.01,
        "training.local-epochs": 1,
        "training.batch-size": batch,
        "system.device": device,
        **settings,
    }
    mechanism = {"privacy.noise-multiplier": 1.0, "privacy.max-grad-norm": 1.0}
    return parse(override(defaults(), chosen | (mechanism if private else {"privacy.mechanism": "none"})))
