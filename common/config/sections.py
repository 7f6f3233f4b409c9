"""The sections of a run's settings as frozen typed models."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from common.config.listed_values import BALANCED, listed_weights, listed_window, split_list, split_names
from common.models.tuning import TUNINGS, parse_tuning
from common.privacy.calibration import LEAST_COUNTS_NOISE
from common.privacy.mechanisms.registry import MECHANISMS
from common.statistics.sums import StatisticsKind
from common.strategies import STRATEGIES, known_strategy
from common.subgroup_counts import OTHER

Unit = Literal["image", "group"]
Closing = Literal["matrix", "full"]
Aggregation = Literal["plain", "secure"]
Gradients = Literal["auto", "opacus"]
Metrics = Literal["exact", "private", "none"]
Partitioner = Literal["dirichlet", "iid", "pathological", "shards", "size-skew", "natural"]
Head = Literal["linear", "mlp", "text"]
Personal = Literal["", "head", "batchnorm-affine"]
_LEAST_WEIGHT, _LARGEST_WEIGHT = 1e-3, 1e3
# Values that 16 bits can store, with and without a sign.
_LEAST_VALUE, _LARGEST_VALUE = -(1 << 15), (1 << 16) - 1
# Value of `training.batch-size` that puts every image into every step.
ALL_IMAGES = "all"
_MOST_SUBGROUPS = 100
AUGMENTATIONS = ("crop", "flip", "colour", "trivial")


def _is_mechanism(value: str) -> str:
    if value not in MECHANISMS:
        raise ValueError(f"{value!r} is not a privacy mechanism; there are {', '.join(MECHANISMS)}")
    return value


def kebab(name: str) -> str:
    """Return a field's name as a setting's key.

    >>> kebab("learning_rate")
    'learning-rate'
    """
    return name.replace("_", "-")


def _unset_to_none(value: Any) -> Any:
    return None if value == "" else value


def _check_tuning(value: str) -> str:
    parse_tuning(value)
    return value


def _check_augmentations(value: str) -> str:
    unknown = set(split_list(value)) - set(AUGMENTATIONS)
    if unknown:
        raise ValueError(f"{', '.join(sorted(unknown))} unknown; use {', '.join(AUGMENTATIONS)}, joined by commas")
    return value


def _check_subgroups(value: str) -> str:
    names = split_names(value)
    if OTHER in names or len(set(names)) < len(names) or len(names) > _MOST_SUBGROUPS:
        raise ValueError(f"use up to {_MOST_SUBGROUPS} different values; {OTHER!r} stands for all others by itself")
    return value


def _check_class_weights(value: str) -> str:
    if value == BALANCED:
        return value
    try:
        weights = listed_weights(value)
    except ValueError:
        raise ValueError(f"use {BALANCED}, or one number for each class, joined by commas") from None
    if not all(_LEAST_WEIGHT <= weight <= _LARGEST_WEIGHT for weight in weights):
        raise ValueError(f"each weight must be from {_LEAST_WEIGHT:g} to {_LARGEST_WEIGHT:g}")
    return value


def _check_window(value: str) -> str:
    window = listed_window(value)
    if window is not None and not _LEAST_VALUE <= window[0] < window[1] <= _LARGEST_VALUE:
        raise ValueError(f"use two values from {_LEAST_VALUE} to {_LARGEST_VALUE}, the lower one first")
    return value


def _check_batch_size(value: int | str | None) -> int | str | None:
    if isinstance(value, str) and value != ALL_IMAGES:
        raise ValueError(f"must be a whole number or {ALL_IMAGES!r}")
    if isinstance(value, int) and value < 1:
        raise ValueError("must be greater than or equal to 1")
    return value


class Section(BaseModel):
    """A group of settings, frozen and strict about types, whose keys are kebab-case."""

    model_config = ConfigDict(alias_generator=kebab, extra="forbid", frozen=True, strict=True, populate_by_name=True)


EmptyIsNone = BeforeValidator(_unset_to_none)
MechanismName = Annotated[str, AfterValidator(_is_mechanism)]
PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
OpenInt = Annotated[PositiveInt | None, EmptyIsNone]
OpenFloat = Annotated[PositiveFloat | None, EmptyIsNone]
# Beyond these bounds floating point, not the mechanism, would decide how far a clipped gradient reaches.
OpenBound = Annotated[Annotated[float, Field(ge=1e-6, le=1e6, allow_inf_nan=False)] | None, EmptyIsNone]
OpenCountsNoise = Annotated[Annotated[float, Field(ge=LEAST_COUNTS_NOISE, le=1e6)] | None, EmptyIsNone]
OpenNotNegative = Annotated[NotNegative | None, EmptyIsNone]
OpenBelowOne = Annotated[BelowOne | None, EmptyIsNone]
HexDigest = Annotated[str, Field(pattern="^([0-9a-f]{64})?$")]


class DataConfig(Section):
    """The source of the images and their partition into clients."""

    source: str = Field(
        min_length=1,
        description="Where images come from: a folder, a table (CSV, TSV, Excel or Parquet), or a known name.",
    )
    path: str = Field(description="Where the files of the source are. Empty: its usual place, or a download.")
    classes: str = Field(
        description="Class names in order, joined by commas; a name with a comma stands in double quotes. Empty: those "
        "of the source."
    )
    validation: Literal["drop", "train", "test"] = Field(
        description="Use of a part `val`, also named `validation` or `dev`, of a folder or a data set. A real client "
        "has its own."
    )
    max_bad_fraction: float = Field(
        ge=0, le=1, description="Largest share of unusable files with which a run or a client may start."
    )
    partitioner: Partitioner = Field(description="How training images are divided among simulated clients.")
    alpha: PositiveFloat = Field(description="Concentration of `dirichlet`. A smaller one gives more uneven classes.")
    classes_per_client: PositiveInt = Field(description="Number of classes that `pathological` gives to each client.")
    shards_per_client: PositiveInt = Field(description="Number of shards that `shards` gives to each client.")
    size_skew: Literal["linear", "square", "exponential"] = Field(
        description="How the sizes of clients grow from the first to the last under `size-skew`."
    )
    min_client_size: PositiveInt = Field(description="Fewest training images that a client may get.")
    image_size: Annotated[int | None, Field(ge=4, le=1024), EmptyIsNone] = Field(
        description="Side of the square input in pixels. Empty: 128 for convolutions, the backbone's own for "
        "transformers, the images' own for `cnn`."
    )
    bit_depth: Literal[8, 10, 12, 14, 16] = Field(
        description="Bits that images of more than 8 bits use. Larger values become white; images of 8 bits stay as "
        "they are."
    )
    gray_window: Annotated[str, AfterValidator(_check_window)] = Field(
        description="Stored values of gray images that become black and white, joined by a comma. Empty: the whole "
        "bit depth."
    )
    background: Literal["keep", "white", "black"] = Field(
        description="What is under transparent pixels; `keep` takes the stored colour and ignores transparency."
    )
    test_fraction: float = Field(
        gt=0, lt=1, description="Share of its images that a client holds out, where the source has no test set."
    )
    subgroup_column: str = Field(
        description="Column of each client's own table, such as `sex`, by whose values closing counts are divided. "
        "Empty: none."
    )
    subgroups: Annotated[str, AfterValidator(_check_subgroups)] = Field(
        description="Public list of that column's values, joined by commas; any other value counts as `other`. "
        "Empty: none."
    )

    @property
    def subgroup_names(self) -> tuple[str, ...]:
        """Subgroups in order, the last for all other values, none without a list."""
        names = split_names(self.subgroups)
        return (*names, OTHER) if names else ()

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names in `classes`, none where those of the source are used."""
        return split_names(self.classes)


class ModelConfig(Section):
    """The shared model and the part of it that is trained."""

    backbone: str = Field(min_length=1, description="Name of the network, see `bract list backbones`.")
    weights: str = Field(
        description="File with pretrained weights, or `random`. Empty: the installed package or the model hub."
    )
    weights_sha256: HexDigest = Field(
        description="Digest that the pretrained weights must have at every client. Empty: not checked."
    )
    initial: str = Field(
        description="Folder of an earlier run, or its `model/`, whose model the run starts from. For other classes the "
        "head is new. Empty: none."
    )
    head: Head = Field(description="Classifier on top of the backbone; `text` starts from the class names (CLIP only).")
    tuning: Annotated[Annotated[str, AfterValidator(_check_tuning)] | None, EmptyIsNone] = Field(
        description="Part of the network that is trained. Empty: `full` for `cnn`, else `head`.",
        json_schema_extra={"enum": [*TUNINGS, ""]},
    )
    cnn_depth: Annotated[Annotated[int, Field(ge=2, le=10)] | None, EmptyIsNone] = Field(
        description="Number of convolutions of `cnn`, each followed by a pooling that halves the image; more than 2 "
        "are normalised too. Empty: 2 under `dp-sgd` and up to 35 pixels, else by size, so that at most 8 x 8 are left."
    )
    lora_rank: PositiveInt = Field(description="Rank of the layers that `lora` adds.")
    personal: Personal = Field(description="Trained tensors that stay at each client. Empty: none.")


class TrainingConfig(Section):
    """The local training of a client."""

    method: Annotated[Literal["rounds", "statistics"] | None, EmptyIsNone] = Field(
        description="How a linear head is trained: in `rounds`, or in one round from sums over the features "
        "(`statistics`), whatever `num-rounds` says. Empty: `statistics` under `dp-statistics`, else `rounds`."
    )
    statistics: StatisticsKind = Field(
        description="Sums that `statistics` takes: `second-moments` of the features with sums by class, or "
        "`class-means`, which are few bytes and make a worse head."
    )
    optimizer: Literal["sgd", "adamw"] = Field(description="Optimizer of the local steps.")
    learning_rate: Annotated[float | None, Field(gt=0, le=1e6, allow_inf_nan=False), EmptyIsNone] = Field(
        description="Step size of the optimizer. Empty: by a public rule for a linear head under `dp-sgd`, else chosen "
        "by what is trained."
    )
    momentum: BelowOne = Field(description="Momentum of `sgd`.")
    weight_decay: NotNegative = Field(description="Weight decay of the optimizer.")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        description="How the learning rate falls over the rounds."
    )
    warmup_rounds: int = Field(ge=0, description="Number of first rounds in which the learning rate rises.")
    local_epochs: OpenInt = Field(
        description="Passes over a client's images in one round. Empty: 4; with every image in every step 1, or up to "
        "4 by the rule for a private head with a target epsilon."
    )
    batch_size: Annotated[int | str | None, AfterValidator(_check_batch_size), EmptyIsNone] = Field(
        description="Images of a step; under `dp-sgd` their expected number. `all`: each image in each step. Empty: "
        "`all` for a linear head on stored features under `dp-sgd` and `sgd`, else 64, or all where there are fewer."
    )
    class_weights: Annotated[str, AfterValidator(_check_class_weights)] = Field(
        description="Weight of each class's loss, in the order of the classes and joined by commas, or `balanced`: by "
        "each client's own number of images of each class, with charged noise under `dp-sgd`. Empty: all equal."
    )
    label_smoothing: BelowOne = Field(description="Share of each label that is spread over all classes.")
    augmentation: Annotated[str, AfterValidator(_check_augmentations)] = Field(
        description="Random changes of training images, joined by commas. Empty: none, and features are cached.",
        json_schema_extra={"enum": [*AUGMENTATIONS, ""]},
    )
    rotation_weight: NotNegative = Field(
        description="Weight of an auxiliary task, the prediction of how an image was turned."
    )
    autocast: Literal["none", "bfloat16"] = Field(description="Number format of the forward and backward pass.")
    gradients: Gradients = Field(
        description="How gradients of single images are computed where `dp-sgd` trains a network: `auto`, so that none "
        "depends on another image, or by `opacus` in batches, whose rounding no epsilon covers."
    )
    update_bits: Literal[8, 32] = Field(
        description="Bits of each value that a client sends. 8: the difference to the model it received, rounded at "
        "random by a public stream, after the noise under `dp-sgd`."
    )
    step_rule: Literal[1, 2] = Field(
        description="Version of the public rule for the server's steps along sums with noise in shares. 1: that of "
        "earlier runs."
    )


class StrategyConfig(Section):
    """The Flower strategy that aggregates updates.

    A parameter that is empty keeps Flower's own default.
    """

    name: Annotated[str, AfterValidator(known_strategy)] = Field(
        description="Flower's strategy, see `bract list strategies`."
    )
    server_learning_rate: OpenFloat = Field(description="Step size of the server in FedAvgM and adaptive strategies.")
    server_momentum: OpenBelowOne = Field(description="Momentum of the server in FedAvgM.")
    beta_1: OpenBelowOne = Field(description="Decay of the first moment in FedAdam and FedYogi.")
    beta_2: OpenBelowOne = Field(description="Decay of the second moment in FedAdam and FedYogi.")
    tau: OpenFloat = Field(description="Floor of the step's denominator in FedAdam, FedYogi and FedAdagrad.")
    proximal_mu: OpenNotNegative = Field(description="Weight of FedProx's term that holds clients near the model.")
    trim_fraction: OpenBelowOne = Field(description="Share of values that FedTrimmedAvg cuts off at each end.")
    num_malicious: Annotated[int | None, Field(ge=0), EmptyIsNone] = Field(
        description="Number of hostile clients that Krum, MultiKrum and Bulyan tolerate."
    )
    num_selected: OpenInt = Field(description="Number of models that MultiKrum averages.")
    q: OpenNotNegative = Field(description="How strongly QFedAvg favours clients with a high loss.")

    @property
    def set_values(self) -> dict[str, Any]:
        """The parameters that are not empty, by field name."""
        return {key: value for key, value in self if key != "name" and value is not None}

    @property
    def min_cohort(self) -> tuple[int, str]:
        """Smallest cohort for the strategy's guarantee and the reason for it."""
        return STRATEGIES[self.name].min_cohort(self.set_values)


class PrivacyConfig(Section):
    """The settings that decide the privacy guarantee."""

    mechanism: MechanismName = Field(
        description="Who adds noise: each client in rounds (`dp-sgd`) or once to sums over its features "
        "(`dp-statistics`), the server (`client-dp`; each client in a secure sum), or nobody (`none`)."
    )
    unit: Unit = Field(description="What is protected: each image, or all images of a group such as a patient.")
    # More than 100 promises nothing, and costs the accountant gigabytes.
    target_epsilon: Annotated[float | None, Field(gt=0, le=100), EmptyIsNone] = Field(
        description="Epsilon of the whole run, which determines the noise. Empty: `privacy.noise-multiplier` does."
    )
    noise_multiplier: OpenFloat = Field(
        description="Standard deviation of the noise over the clipping bound. Empty: follows from the target epsilon."
    )
    delta: float = Field(
        ge=1e-12, lt=1, description="Delta of the guarantee, which must stay below 1 / the number of units."
    )
    max_grad_norm: OpenBound = Field(
        description="Clipping bound of one unit's gradient under `dp-sgd`, and of its joint contribution under "
        "`dp-statistics`. Empty: 0.1 for a linear head in rounds, 0.3 where its classes are balanced, else 1."
    )
    clipping_norm: OpenBound = Field(
        description="Clipping bound of one client's whole update under `client-dp`. Empty: by a public rule for a "
        "linear head, else 1."
    )
    metrics: Annotated[Metrics | None, EmptyIsNone] = Field(
        description="How counts of held-out images leave a client. Empty: `private` with noise at the clients, `none` "
        "under `client-dp`, `exact` without a mechanism."
    )
    counts_noise: OpenCountsNoise = Field(
        description="Standard deviation of the noise of each round's private counts, in units. Empty: follows from the "
        "target epsilon, or 25 without one."
    )
    closing_noise: OpenCountsNoise = Field(
        description="Standard deviation of the noise of the final private confusion matrix, in units. Empty: follows "
        "from the target epsilon, or 4 without one."
    )
    closing: Closing = Field(
        description="Counts of the final model that leave with the confusion matrix: `full` adds histograms of scores "
        "and confidence, for AUROC and calibration."
    )
    aggregation: Aggregation = Field(
        description="What the server sees of a round: each client's update (`plain`), or only their sum (`secure`)."
    )
    secure_colluding: PositiveInt = Field(
        description="Clients of a secure sum that may collude with the server without learning another's update."
    )
    secure_honest: OpenInt = Field(
        description="Fewest honest clients that a secure sum must hold. Empty: as many as the shares themselves need."
    )
    strict_rows: bool = Field(
        description="Refuse a secure sum without noise in which a class's row may be that of one client, once the most "
        "clients are lost and collude. Only a simulation knows who holds which class, so over real clients every such "
        "sum is refused."
    )
    policy: str = Field(description="Policy file that simulated clients follow. Empty: they allow every run.")


class SystemConfig(Section):
    """The settings of speed, memory and bookkeeping.

    None of them can change the guarantee.
    """

    device: Literal["auto", "cpu", "cuda", "mps"] = Field(description="Processor that trains.")
    physical_batch_size: OpenInt = Field(
        description="Most images that are in memory at once in a step. Empty: chosen by the device."
    )
    ledger: Literal["simulated", "durable"] = Field(
        description="Whether simulated ledgers survive a power failure (`durable`); real ledgers always do."
    )
    bundle: HexDigest = Field(description="Digest of the clients' code; set by `bract run`. Empty: not recorded.")
