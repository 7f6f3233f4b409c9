"""Checking and completing a run's configuration.

Drives `common.config.sections`, `common.config.run_fields`, `common.config.listed_values`.
"""

import math
import re
import tomllib
from collections.abc import Callable
from dataclasses import asdict

import pytest
import tomli_w
from pydantic import ValidationError

from common.config.loading import Scalar, defaults, flatten, nest, override, parse, resolved
from common.config.schema import RunConfig
from common.errors import ConfigError
from tests.support.paths import ROOT

MakeConfig = Callable[..., RunConfig]
_PYPROJECT = ROOT / "pyproject.toml"


def test_defaults_come_from_pyproject() -> None:
    declared = tomllib.loads(_PYPROJECT.read_text())["tool"]["flwr"]["app"]["config"]

    assert defaults() == flatten(declared)
    assert parse(defaults()).num_rounds == declared["num-rounds"]


def test_defaults_name_every_field_of_the_model() -> None:
    assert set(resolved(parse(defaults()))) == set(defaults())


@pytest.mark.parametrize("key", sorted(defaults()))
def test_parse_refuses_when_a_setting_is_missing(key: str) -> None:
    settings = defaults()
    del settings[key]
    table = key.split(".", maxsplit=1)[0]
    named = key if any(other.startswith(f"{table}.") for other in settings) else table

    with pytest.raises(ConfigError) as caught:
        parse(settings)

    assert str(caught.value) == f"{named}: Field required"


def test_parse_refuses_a_key_it_does_not_know() -> None:
    with pytest.raises(ConfigError, match=r"data\.colour: Extra inputs are not permitted"):
        parse(defaults() | {"data.colour": "red"})


@pytest.mark.parametrize("rivals", [("", ""), (1.0, 8.0)], ids=["neither", "both"])
def test_parse_needs_exactly_one_rival_under_privacy(rivals: tuple[Scalar, Scalar]) -> None:
    noise, target = rivals
    settings = defaults() | {"privacy.noise-multiplier": noise, "privacy.target-epsilon": target}

    with pytest.raises(ConfigError, match="exactly one of"):
        parse(settings)
    assert not parse(settings | {"privacy.mechanism": "none"}).private


@pytest.mark.parametrize(
    ("key", "value", "fragment"),
    [
        ("seed", -1, "greater than or equal to 0"),
        ("seed", 2**63, "less than 9223372036854775808"),
        ("seed", "0", "valid integer"),
        ("seed", 1.5, "valid integer"),
        ("seed", True, "valid integer"),
        ("num-rounds", 0, "greater than or equal to 1"),
        ("num-rounds", "", "valid integer"),
        ("num-clients", 0, "greater than or equal to 1"),
        ("client-fraction", 0, "greater than 0"),
        ("client-fraction", 1.01, "less than or equal to 1"),
        ("client-fraction", math.nan, "less than or equal to 1"),
        ("client-fraction", True, "valid number"),
        ("output-dir", 3, "valid string"),
        ("data.source", "", "at least 1 character"),
        ("data.source", 10, "valid string"),
        ("data.partitioner", "even", "'shards'"),
        ("data.alpha", 0.0, "greater than 0"),
        ("data.alpha", math.inf, "finite number"),
        ("data.alpha", "1.0", "valid number"),
        ("data.image-size", 3, "greater than or equal to 4"),
        ("data.image-size", 1025, "less than or equal to 1024"),
        ("data.image-size", 64.0, "valid integer"),
        ("data.test-fraction", 0.0, "greater than 0"),
        ("data.test-fraction", 1, "less than 1"),
        ("model.backbone", "", "at least 1 character"),
        ("model.tuning", "both", "head, bias, norm, lora, last:<n>, full"),
        ("training.learning-rate", 0, "greater than 0"),
        ("training.learning-rate", math.nan, "finite number"),
        ("training.momentum", 1.0, "less than 1"),
        ("training.momentum", -0.1, "greater than or equal to 0"),
        ("training.momentum", math.nan, "less than 1"),
        ("training.local-epochs", 0, "greater than or equal to 1"),
        ("training.batch-size", 0, "greater than or equal to 1"),
        ("training.class-weights", "1, much", "use balanced, or one number"),
        ("training.class-weights", "1, 0", "from 0.001 to 1000"),
        ("training.class-weights", "nan, 1", "from 0.001 to 1000"),
        ("training.batch-size", "most", "must be a whole number or 'all'"),
        ("strategy.name", "fedavg", "nearest is 'FedAvg'"),
        ("privacy.mechanism", "dp", "none, dp-sgd, client-dp"),
        ("privacy.target-epsilon", 0.0, "greater than 0"),
        ("privacy.target-epsilon", math.inf, "less than or equal to 100"),
        ("privacy.noise-multiplier", -1.0, "greater than 0"),
        ("privacy.delta", 0.0, "greater than or equal to"),
        ("privacy.delta", 1, "less than 1"),
        ("privacy.max-grad-norm", math.inf, "finite number"),
        ("system.device", "gpu", "'auto', 'cpu', 'cuda' or 'mps'"),
    ],
)
def test_parse_names_the_setting_and_what_is_allowed(key: str, value: Scalar, fragment: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(override(defaults(), {key: value}))

    lines = str(caught.value).splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"{key}: ")
    assert fragment in lines[0]
    assert "got " in lines[0]


def test_parse_names_every_wrong_setting_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse(defaults() | {"seed": -1, "data.alpha": 0.0})

    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == ["seed", "data.alpha"]


@pytest.mark.parametrize(("backbone", "tuning"), [("cnn", "head"), ("cnn", "last:1")])
def test_parse_refuses_a_tuning_that_does_not_go_with_the_backbone(backbone: str, tuning: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(defaults() | {"model.backbone": backbone, "model.tuning": tuning})

    assert all(word in str(caught.value) for word in ("model.tuning", "model.backbone", backbone, tuning, "'full'"))


@pytest.mark.parametrize(
    ("backbone", "tuning", "rate", "norm"), [("efficientnet_lite0", "head", None, 0.1), ("cnn", "full", 0.05, 1.0)]
)
def test_parse_fills_open_values_by_what_is_trained(
    make_config: MakeConfig, backbone: str, tuning: str, rate: float | None, norm: float
) -> None:
    config = make_config({"model.backbone": backbone})

    chosen = (config.model.tuning, config.training.learning_rate, config.privacy.max_grad_norm)
    assert chosen == (tuning, rate, norm)


@pytest.mark.parametrize(
    ("changes", "batch_size", "epochs"),
    [
        ({}, None, 1),
        ({"training.batch-size": "all"}, None, 1),
        ({"training.batch-size": 32, "training.local-epochs": 2}, 32, 2),
        ({"privacy.mechanism": "none"}, 64, 4),
        ({"privacy.mechanism": "none", "training.batch-size": "all"}, None, 1),
        ({"training.optimizer": "adamw"}, 64, 4),
        ({"model.backbone": "cnn"}, 64, 4),
        ({"model.tuning": "norm"}, 64, 4),
        ({"training.augmentation": "flip"}, 64, 4),
    ],
)
def test_private_heads_take_full_batches_by_default(
    make_config: MakeConfig, changes: dict[str, Scalar], batch_size: int | None, epochs: int
) -> None:
    config = make_config(changes)

    assert (config.batch_size, config.local_epochs) == (batch_size, epochs)


@pytest.mark.parametrize(
    ("changes", "norm"),
    [
        ({}, 0.3),
        ({"privacy.max-grad-norm": 0.1}, 0.1),
        ({"training.class-weights": "1,2"}, 0.1),
        ({"privacy.mechanism": "none"}, 0.1),
        ({"model.tuning": "norm"}, 1.0),
        ({"model.head": "mlp"}, 1.0),
    ],
)
def test_a_head_whose_classes_are_balanced_has_a_longer_bound(
    make_config: MakeConfig, changes: dict[str, Scalar], norm: float
) -> None:
    config = make_config({"training.class-weights": "balanced"} | changes)

    assert config.privacy.max_grad_norm == norm


def test_parse_keeps_values_that_were_given(make_config: MakeConfig) -> None:
    config = make_config({"training.learning-rate": 3, "privacy.max-grad-norm": 0.5})

    assert (config.training.learning_rate, config.privacy.max_grad_norm) == (3.0, 0.5)


def test_config_cannot_be_changed_afterwards(make_config: MakeConfig) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        make_config().privacy.delta = 0.5


@pytest.mark.parametrize(
    ("clients", "fraction", "expected"),
    [(5, 1.0, 5), (5, 0.2, 1), (10, 0.3, 3), (10, 0.39, 3), (3, 0.1, 1), (100, 0.29, 29), (1, 1.0, 1)],
)
def test_cohort_size_rounds_down_to_at_least_one(
    make_config: MakeConfig, clients: int, fraction: float, expected: int
) -> None:
    assert make_config({"num-clients": clients, "client-fraction": fraction}).cohort_size == expected


@pytest.mark.parametrize(
    ("rounds", "clients", "fraction", "expected"),
    [(30, 5, 1.0, 30), (30, 5, 0.2, 6), (7, 5, 0.4, 3), (1, 10, 0.1, 1), (10, 3, 0.34, 4)],
)
def test_participations_is_the_even_share_of_rounds_rounded_up(
    make_config: MakeConfig, rounds: int, clients: int, fraction: float, expected: int
) -> None:
    config = make_config({"num-rounds": rounds, "num-clients": clients, "client-fraction": fraction})

    assert config.participations == expected


def test_system_settings_cannot_change_the_privacy_plan(make_config: MakeConfig) -> None:
    choices: dict[str, list[Scalar]] = {
        "system.device": ["auto", "cpu", "cuda", "mps"],
        "system.physical-batch-size": [1, 16],
        "system.ledger": ["simulated", "durable"],
        "system.bundle": ["", "ab" * 32],
    }
    assert {key for key in defaults() if key.startswith("system.")} == set(choices), "a new setting needs a row here"
    private: dict[str, Scalar] = {"privacy.noise-multiplier": 1.0, "num-rounds": 2}
    plan = make_config(private).plan(400)

    for key, values in choices.items():
        for value in values:
            other = make_config(private | {key: value}).plan(400)
            assert asdict(other) == asdict(plan)
            assert other.event() == plan.event()
    assert make_config(private | {"num-rounds": 3}).plan(400) != plan


_RUNS: list[dict[str, Scalar]] = [
    {},
    {"model.backbone": "cnn", "data.image-size": 28, "data.path": 'C:\\a "b"\n', "output-dir": "ü"},
    {"privacy.noise-multiplier": 3, "client-fraction": 0.1, "seed": 2**63 - 1},
    {"privacy.mechanism": "none", "training.learning-rate": 1e-7, "system.device": "cpu"},
]


@pytest.mark.parametrize("settings", _RUNS)
def test_resolved_is_the_inverse_of_parse(make_config: MakeConfig, settings: dict[str, Scalar]) -> None:
    config = make_config(settings)

    flat = resolved(config)

    assert parse(flat) == config
    assert parse(flatten(tomllib.loads(tomli_w.dumps(nest(flat))))) == config
    assert parse(flatten(tomllib.loads(tomli_w.dumps(flat)))) == config


def test_parse_takes_whole_numbers_for_floats_when_a_writer_dropped_the_point(make_config: MakeConfig) -> None:
    floats = {key: value for key, value in resolved(make_config()).items() if isinstance(value, float)}
    whole = {key: int(value) for key, value in floats.items() if value.is_integer()}

    config = parse(resolved(make_config()) | whole)

    assert len(whole) >= 4
    assert config == make_config()
    assert all(type(resolved(config)[key]) is float for key in whole)


@pytest.mark.parametrize("chosen", [{"stopping.patience": 2}, {"stopping.keep": "best"}])
@pytest.mark.parametrize("mechanism", ["dp-sgd", "client-dp"])
def test_parse_refuses_to_choose_by_exact_counts_under_dp(chosen: dict[str, Scalar], mechanism: str) -> None:
    settings: dict[str, Scalar] = {"privacy.mechanism": mechanism, "privacy.metrics": "exact"}
    parse(override(defaults(), settings))

    with pytest.raises(ConfigError, match="exact counts"):
        parse(override(defaults(), settings | chosen))


@pytest.mark.parametrize("bits", [0, 4, 16, "8", True])
def test_parse_takes_8_or_32_bits_of_an_update(make_config: MakeConfig, bits: Scalar) -> None:
    assert make_config({"training.update-bits": 8}).training.update_bits == 8

    with pytest.raises(ConfigError, match=r"training\.update-bits: Input should be 8 or 32"):
        make_config({"training.update-bits": bits})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"evaluation.every": 31}, r"evaluation\.every=31 counts none of num-rounds=30"),
        ({"evaluation.every": 2, "strategy.name": "QFedAvg", "privacy.mechanism": "none"}, "loss in every round"),
    ],
)
def test_parse_refuses_rounds_of_counts_that_cannot_be(
    make_config: MakeConfig, settings: dict[str, Scalar], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        make_config(settings)


SUMS: dict[str, Scalar] = {"training.method": "statistics", "privacy.mechanism": "none"}


@pytest.mark.parametrize("settings", [SUMS, {"privacy.mechanism": "dp-statistics", "num-rounds": 50}])
def test_a_head_from_sums_takes_one_round(make_config: MakeConfig, settings: dict[str, Scalar]) -> None:
    config = make_config(settings)

    assert config.takes_statistics
    assert (config.num_rounds, config.participations, config.privacy.max_grad_norm) == (1, 1, 1.0)
    assert parse(resolved(config)) == config
    assert not make_config({"privacy.mechanism": "dp-sgd"}).takes_statistics


@pytest.mark.parametrize(
    ("settings", "fragment"),
    [
        ({"training.method": "statistics"}, "goes with privacy.mechanism='none' or 'dp-statistics'"),
        ({"training.method": "statistics", "privacy.mechanism": "client-dp"}, "goes with privacy.mechanism='none' or"),
        ({"training.method": "rounds", "privacy.mechanism": "dp-statistics"}, "'none' or 'dp-sgd' or 'client-dp'"),
        (SUMS | {"model.tuning": "norm"}, "makes a linear head on stored features"),
        (SUMS | {"model.head": "mlp"}, "makes a linear head on stored features"),
        (SUMS | {"training.augmentation": "flip"}, "makes a linear head on stored features"),
        (SUMS | {"strategy.name": "FedAvgM"}, "strategy.name='FedAvgM' does not go with"),
        (SUMS | {"training.update-bits": 8}, "training.update-bits=8 does not go with"),
        (SUMS | {"training.class-weights": "balanced"}, "training.class-weights='balanced' does not go with"),
        (SUMS | {"max-update-norm": 3.0}, "max-update-norm=3.0 does not go with"),
        (SUMS | {"model.initial": "runs/a"}, "model.initial='runs/a' does not go with"),
        (SUMS | {"evaluation.every": 2}, "evaluation.every=2 counts none of num-rounds=1"),
    ],
)
def test_parse_refuses_what_sums_would_ignore(
    make_config: MakeConfig, settings: dict[str, Scalar], fragment: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(fragment)):
        make_config(settings)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"privacy.mechanism": "none"}, "goes with privacy.mechanism='dp-sgd', which clips"),
        ({"privacy.mechanism": "client-dp"}, "goes with privacy.mechanism='dp-sgd', which clips"),
        ({"privacy.mechanism": "dp-statistics"}, "goes with privacy.mechanism='dp-sgd', which clips"),
        ({"model.backbone": "resnet18"}, "a linear head on stored features needs no torch"),
        (
            {"model.backbone": "cnn", "privacy.aggregation": "secure", "training.batch-size": "", "round-retries": 0}
            | {"training.local-epochs": 1},
            "training.gradients does not go with privacy.aggregation='secure'",
        ),
        ({"model.backbone": "cnn", "training.gradients": "ghost"}, "Input should be 'auto' or 'opacus'"),
    ],
)
def test_parse_takes_gradients_of_opacus_only_where_networks_are_clipped(
    settings: dict[str, Scalar], said: str
) -> None:
    more: dict[str, Scalar] = {"training.gradients": "opacus"} | settings

    with pytest.raises(ConfigError, match=re.escape(said)):
        parse(override(defaults(), more))


@pytest.mark.parametrize("settings", [{"model.backbone": "cnn"}, {"model.head": "mlp"}, {"model.tuning": "norm"}])
def test_gradients_of_opacus_change_no_plan(settings: dict[str, Scalar]) -> None:
    named, before = (
        parse(override(defaults(), settings | {"training.gradients": name})) for name in ("opacus", "auto")
    )

    assert named.public_constants == before.public_constants
