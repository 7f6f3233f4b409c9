"""Card of a stored model, read as data that nobody has vouched for."""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from common.config.loading import defaults, override, parse
from common.config.sections import Head, HexDigest, Personal
from common.data.tones.rendering import Tones, tones_of
from common.errors import ConfigError, ModelError

CARD_FILE, WEIGHTS_FILE = "card.json", "model.safetensors"
# Key of the class list in the metadata of the weights' file.
CLASSES_KEY = "classes"
_MAX_CARD_BYTES = 16_000_000
_MAX_SIDE = 1024


class EarlierModelFacts(BaseModel):
    """Facts of the model that a run started from, in its own card."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    private: bool


class ModelCard(BaseModel):
    """The facts of `card.json` that a model's use depends on.

    Cards of 0.1.0 have no digest of their weights, no seed and no privacy statement.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    format: Literal[1]
    classes: tuple[str, ...] = Field(min_length=2, max_length=100_000)
    backbone: str = Field(min_length=1, max_length=200)
    backbone_sha256: HexDigest
    weights: str = Field(max_length=255)
    seed: int = Field(ge=0, lt=2**63, default=0)
    head: Head
    tuning: str
    personal: Personal
    input_shape: tuple[int, ...]
    tensors: dict[str, tuple[int, ...]] = Field(min_length=1)
    preprocessing: dict[str, Any]
    model_sha256: HexDigest = ""
    mechanism: str = Field(max_length=100, default="")
    private: bool = False
    epsilon_max: float | None = None
    delta: float | None = None
    statement: str = Field(max_length=4000, default="")
    started_from: EarlierModelFacts | None = None

    @property
    def private_from_the_start(self) -> bool:
        """True if the run and those that it started from were private."""
        return self.private and (self.started_from is None or self.started_from.private)

    @property
    def privacy_text(self) -> str:
        """The privacy statement of the run, as the card has it."""
        if self.statement:
            return self.statement
        # Cards of earlier versions have its figures only.
        spent = f"epsilon <= {self.epsilon_max} at delta {self.delta}, mechanism {self.mechanism}"
        return f"{spent}; the run's privacy.json says more" if self.private else "NOT PRIVATE"

    @property
    def caches_features(self) -> bool:
        """True if the head was trained on stored features of a frozen backbone."""
        return len(self.input_shape) == 1

    @property
    def side(self) -> int:
        """Side of the square input in pixels."""
        return int(self.preprocessing["image_size"])

    @property
    def channels(self) -> int:
        """Channels of the input, 1 or 3."""
        return int(self.preprocessing["channels"])

    @property
    def tones(self) -> Tones:
        """Conversion of stored values to the 8 bits that the network was trained on."""
        values = dict(self.preprocessing.get("values", {}))
        if window := values.get("gray-window"):
            values["gray-window"] = ",".join(map(str, window))
        # A card is not trusted, so its values pass the checks of the settings that they come from.
        return tones_of(parse(override(defaults(), {f"data.{name}": value for name, value in values.items()})).data)

    @field_validator("weights")
    @classmethod
    def _is_a_plain_name(cls, value: str) -> str:
        # The file is looked for beside the card, so a path could name any file of this machine.
        if value != Path(value).name or "\0" in value or "\\" in value:
            raise ValueError("must be a file's name without a folder")
        return value

    @field_validator("backbone")
    @classmethod
    def _names_no_file(cls, value: str) -> str:
        # OpenCLIP would read a file of that name as the backbone's architecture.
        if value.endswith(".json") or ".." in value or ":/" in value or value.startswith(("/", "~")):
            raise ValueError("must be a backbone's name, not a file's")
        return value

    @model_validator(mode="after")
    def _parts_fit_each_other(self) -> "ModelCard":
        if len(set(self.classes)) < len(self.classes):
            raise ValueError("classes: a name stands there twice")
        side, channels = (self.preprocessing.get(key) for key in ("image_size", "channels"))
        if type(side) is not int or not 2 <= side <= _MAX_SIDE:
            raise ValueError(f"preprocessing.image_size must be a whole number up to {_MAX_SIDE}")
        if type(channels) is not int or channels not in (1, 3):
            raise ValueError("preprocessing.channels must be 1 or 3")
        try:
            _ = self.tones
        except (TypeError, AttributeError, ConfigError):
            raise ValueError("preprocessing.values is not of the kind that Bract writes") from None
        if self.caches_features:
            return self
        height, width, depth = self.input_shape if len(self.input_shape) == 3 else (0, 0, 0)
        if (height, width, depth) != (side, side, channels):
            raise ValueError("input_shape and preprocessing disagree")
        return self


def find_model(place: Path) -> Path:
    """Return the folder that holds a model's card.

    The place is such a folder or that of a run.

    Raises:
        ModelError: There is no model.
    """
    for folder in (place / "model", place):
        if (folder / CARD_FILE).is_file():
            return folder
    raise ModelError(f"{place} does not hold a model: name the folder of a run, or its model/ with {CARD_FILE}")


def read_card(folder: Path) -> ModelCard:
    """Read the card of a model's folder.

    Raises:
        ModelError: The card is missing, too large, or not one that Bract writes.
    """
    file = folder / CARD_FILE
    try:
        with file.open("rb") as stream:
            content = stream.read(_MAX_CARD_BYTES + 1)
    except OSError as error:
        raise ModelError(f"{file} cannot be read ({error.strerror})") from None
    if len(content) > _MAX_CARD_BYTES:
        raise ModelError(f"{file} has more than {_MAX_CARD_BYTES // 1_000_000} MB, which is not a model's card")
    try:
        return ModelCard.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise ModelError(f"{file} is not a model's card ({f'{where}: ' if where else ''}{message})") from None
