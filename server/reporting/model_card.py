"""Card of a run's model, written to `model/card.json`."""

from functools import lru_cache
from pathlib import Path
from typing import Any

from common.config.schema import RunConfig
from common.data.tones.rendering import tones_of
from common.models.weight_files import RANDOM
from common.privacy.noise_error import in_words
from server.reporting.outcome_warnings import outcome_warnings
from server.reporting.privacy_statement import statement_sentence
from server.state.initial_model import OPEN_START, PRIVATE_START
from server.state.run_state import RunState


def model_card(state: RunState) -> dict[str, Any]:
    """Return everything that is needed to use the model.

    It has no times and no paths, so that equal models have equal cards. `weights` is empty for weights of an installed
    package or the hub, else `random` or a file's name.
    """
    config, privacy_cost = state.config, state.privacy_cost
    declared = next(iter(state.clients.values())).declaration
    card: dict[str, Any] = {
        "format": 1,
        "classes": list(state.classes),
        "backbone": config.model.backbone,
        "backbone_sha256": declared.backbone_hash,
        "weights": _weights(config.model.weights),
        # Random weights follow from the seed; no other weights do.
        **({"seed": config.seed} if config.model.weights == RANDOM else {}),
        "head": config.model.head,
        "tuning": config.model.tuning,
        "personal": config.model.personal,
        "input_shape": list(declared.input_shape),
        "tensors": {name: list(array.shape) for name, array in state.final.items()},
        "preprocessing": _preprocessing(config, declared.input_shape),
        "mechanism": config.privacy.mechanism,
        "private": privacy_cost is not None,
        "statement": statement_sentence(
            config.mechanism, privacy_cost, config.privacy, config.metrics, config.training.gradients
        ),
        "warnings": outcome_warnings(state, passed_on=True),
    }
    if state.initial is not None:
        # The guarantee below is of this run alone.
        names = ("model_sha256", "private", "mechanism", "epsilon_max", "delta")
        card["statement"] += PRIVATE_START if state.initial["private"] else OPEN_START
        card["started_from"] = {name: state.initial[name] for name in names}
    if privacy_cost is not None:
        noise = in_words([*share.events["training"]] for share in privacy_cost.distinct)
        card |= {"epsilon_max": privacy_cost.epsilon_max, "delta": config.privacy.delta, "noise": noise}
    return card


@lru_cache(maxsize=1)
def _preprocessing(config: RunConfig, input_shape: tuple[int, ...]) -> dict[str, Any]:
    from common.models.backbone_info import describe

    values = tones_of(config.data).as_json()
    facts = describe(config.model, config.backbone_spec, input_shape)
    # Left out where images are rendered as before there were such settings: equal models keep equal cards.
    return facts | {"values": values} if values else facts


def _weights(setting: str) -> str:
    return setting if setting in ("", RANDOM) else Path(setting).name
