"""Model of an earlier run as the start of a new one."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.arrays import Arrays
from common.config.sections import ModelConfig
from common.errors import ConfigError, ModelError
from common.inference.card import WEIGHTS_FILE, ModelCard, find_model, read_card
from common.inference.weights import read_weights

# Tensors of the classifier, which belong to the classes.
_HEADS = ("head.", "output.")


@dataclass(frozen=True)
class EarlierModel:
    """Model of an earlier run.

    Attributes:
        folder: Folder of its card.
        card: The card.
        arrays: Tensor name -> values, float32.
        statement: Privacy statement of the earlier run; None if it is not beside the model.
    """

    folder: Path
    card: ModelCard
    arrays: Arrays
    statement: Mapping[str, Any] | None

    def start(
        self,
        model: ModelConfig,
        fresh: Arrays,
        *,
        classes: Sequence[str],
        input_shape: Sequence[int],
        backbone_sha256: str | None = None,
    ) -> dict[str, Any]:
        """Return the tensors that a run starts from.

        For the same classes all of them are the earlier model's. For other classes the head is new.

        Args:
            model: Settings of the new run's model.
            fresh: Its tensors as they would be without an earlier model.
            classes: Its classes.
            input_shape: Shape of its inputs.
            backbone_sha256: Digest of its backbone; None if it is not known.

        Raises:
            ConfigError: The earlier model has another network, or would leave nothing in the new one.
        """
        card = self.card
        self._compare("backbone", card.backbone_sha256, backbone_sha256 or card.backbone_sha256)
        self._compare("shape of the inputs", card.input_shape, tuple(input_shape))
        self.check(model, classes)
        same = card.classes == tuple(classes)
        kept = {name: array for name, array in self.arrays.items() if same or not name.startswith(_HEADS)}
        odd = sorted(name for name in kept if name not in fresh or fresh[name].shape != kept[name].shape)
        depth = sum(name.startswith("conv") and name.endswith(".weight") for name in kept)
        if odd and depth:
            raise ConfigError(
                f"model.initial={self.folder}: its network has {depth} convolutions; set model.cnn-depth={depth}"
            )
        if odd or (same and set(kept) != set(fresh)):
            raise ConfigError(f"model.initial={self.folder}: its tensors do not fit this run's network, such as {odd}")
        return {**fresh, **kept}

    def check(self, model: ModelConfig, classes: Sequence[str]) -> None:
        """Refuse a run whose settings do not fit the model.

        Args:
            model: Settings of the new run's model.
            classes: Its classes; empty if they are not known yet.

        Raises:
            ConfigError: See `start`.
        """
        card = self.card
        self._compare("head", card.head, model.head)
        self._compare("model.tuning", card.tuning, model.tuning)
        self._compare("model.personal", card.personal, model.personal)
        if model.personal:
            raise ConfigError("model.initial with model.personal: personal tensors are not in a model that was stored")
        if not classes or card.classes == tuple(classes):
            return
        if sorted(card.classes) == sorted(classes):
            raise ConfigError(
                f"model.initial={self.folder}: it has the same classes in another order; set "
                f"data.classes={','.join(card.classes)}"
            )
        if all(name.startswith(_HEADS) for name in self.arrays):
            raise ConfigError(
                f"model.initial={self.folder}: it was trained for other classes ({', '.join(card.classes[:5])}...), "
                f"and with model.tuning={model.tuning!r} it has only a head, so nothing of it would be left"
            )

    def _compare(self, name: str, theirs: object, ours: object) -> None:
        if theirs != ours:
            raise ConfigError(f"model.initial={self.folder}: its {name} is {theirs!r}, and this run has {ours!r}")


def open_earlier_model(model: ModelConfig, classes: Sequence[str] = ()) -> EarlierModel | None:
    """Open the model that a run starts from.

    None if it starts anew.

    Args:
        model: Settings of the new run's model.
        classes: Its classes; empty if they are not known yet.

    Raises:
        ConfigError: The model does not fit the run's settings.
        ModelError: There is no model, or its weights differ from its card.
    """
    if not model.initial:
        return None
    folder = find_model(Path(model.initial))
    card = read_card(folder)
    earlier = EarlierModel(folder, card, read_weights(folder / WEIGHTS_FILE, card), _statement_beside(folder, card))
    earlier.check(model, classes)
    return earlier


def with_earlier_model(
    model: ModelConfig, fresh: Arrays, *, input_shape: tuple[int, ...], classes: Sequence[str]
) -> Arrays:
    """Return the trained tensors before round 1, also of a run with `model.initial`.

    Args:
        model: Settings of the run's model.
        fresh: Its tensors by `initial_arrays`.
        input_shape: Shape of its inputs.
        classes: Its classes.

    Raises:
        ConfigError: The earlier model does not fit the run.
        ModelError: There is no earlier model, or its weights differ from its card.
    """
    earlier = open_earlier_model(model)
    return fresh if earlier is None else earlier.start(model, fresh, classes=classes, input_shape=input_shape)


def _statement_beside(folder: Path, card: ModelCard) -> Mapping[str, Any] | None:
    file = folder.parent / "privacy.json"
    if not file.is_file():
        return None
    try:
        statement: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        fits = bool(statement["private"]) == card.private and (
            not card.private or statement["epsilon_max"] == card.epsilon_max
        )
    except (OSError, ValueError, KeyError, TypeError):
        raise ModelError(f"{file} is not a privacy statement that can be read") from None
    # A model that was moved beside the statement of another run must not borrow its guarantee.
    if not fits:
        raise ModelError(f"{file} is not the statement of the model beside it: their epsilons differ")
    return statement
