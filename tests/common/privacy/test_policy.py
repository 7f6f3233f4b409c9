"""Each key of a policy refuses what it is there for, and a policy that cannot be read allows nothing."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from common.config.loading import Scalar
from common.config.schema import RunConfig
from common.errors import ConfigError, PolicyError
from common.privacy.accounting import Spent
from common.privacy.policy import ANYTHING, Policy, load_policy
from tests.support.ledger.builders import PLAN

MakeConfig = Callable[..., RunConfig]
LEAST = "max-epsilon = 8.0\ndelta = 1e-5\n"
EVERY_KEY = """
max-epsilon = 3
delta = 1e-6
accountant = "rdp"
min-noise-multiplier = 1.5
mechanisms = ["dp-sgd", "none"]
tunings = ["head", "last"]
metrics = ["none"]
closing = ["full"]
subgroup-columns = ["sex"]
units = ["group"]
min-cohort = 4
accept-group-bound = true
expires = 2031-02-03
classes = ["tumour", "normal"]
bundle = "abababababababababababababababababababababababababababababababab"
aggregations = ["secure"]
accept-honest-shares = true
max-epsilon-alone = 20
gradients = ["opacus"]
roster = "cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd"
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str | bytes], Path]:
    def make(content: str | bytes) -> Path:
        file = tmp_path / "policy.toml"
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return file

    return make


def test_load_policy_reads_every_key(write: Callable[[str], Path]) -> None:
    found = load_policy(write(EVERY_KEY))

    assert found == Policy(
        max_epsilon=3.0,
        delta=1e-6,
        accountant="rdp",
        min_noise_multiplier=1.5,
        mechanisms=("dp-sgd", "none"),
        tunings=("head", "last"),
        metrics=("none",),
        closing=("full",),
        subgroup_columns=("sex",),
        units=("group",),
        min_cohort=4,
        accept_group_bound=True,
        expires=date(2031, 2, 3),
        classes=("tumour", "normal"),
        bundle="ab" * 32,
        aggregations=("secure",),
        roster="cd" * 32,
        accept_honest_shares=True,
        max_epsilon_alone=20.0,
        gradients=("opacus",),
    )
    assert {name.replace("_", "-") for name in Policy.model_fields} == {
        line.partition(" =")[0] for line in EVERY_KEY.split("\n") if line
    }


def test_load_policy_is_strict_where_nothing_is_said(write: Callable[[str], Path]) -> None:
    found = load_policy(write(LEAST))

    assert (found.mechanisms, found.tunings, found.metrics) == (("dp-sgd",), ("head",), ("none", "private"))
    assert (found.accept_group_bound, found.expires) == (False, None)
    assert found.min_noise_multiplier > 0


OLD_KEYS = EVERY_KEY.replace("min-", "least-")


@pytest.mark.parametrize("content", [OLD_KEYS, OLD_KEYS.replace("least-cohort", "least_cohort")])
def test_load_policy_reads_old_keys_and_says_so(
    write: Callable[[str], Path], content: str, caplog: pytest.LogCaptureFixture
) -> None:
    policy, old = load_policy(write(EVERY_KEY)), load_policy(write(content))

    assert old == policy
    assert old.digest == policy.digest
    assert len(caplog.messages) == 2
    assert (
        "policy.toml: least-noise-multiplier is now called min-noise-multiplier; the old name still works"
        in caplog.messages
    )


@pytest.mark.parametrize("key", ["min-cohort", "min_cohort", "least_cohort"])
def test_load_policy_refuses_an_old_key_beside_the_same_key(write: Callable[[str], Path], key: str) -> None:
    with pytest.raises(ConfigError, match="gives min-cohort twice, also under its old name"):
        load_policy(write(LEAST + f"least-cohort = 2\n{key} = 4\n"))


@pytest.mark.parametrize("key", ["max-epsilon", "delta"])
def test_load_policy_refuses_a_policy_without(write: Callable[[str], Path], key: str) -> None:
    lines = [line for line in LEAST.splitlines() if not line.startswith(key)]

    with pytest.raises(ConfigError, match=f"{key}: Field required"):
        load_policy(write("\n".join(lines)))


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("max-epsilon = 0", "max-epsilon"),
        ("max-epsilon = -1.0", "max-epsilon"),
        ("max-epsilon = nan", "max-epsilon"),
        ("max-epsilon = '8'", "max-epsilon"),
        ("max-epsilon = true", "max-epsilon"),
        ("delta = 0.0", "delta"),
        ("delta = 1.0", "delta"),
        ("delta = nan", "delta"),
        ("accountant = 'gdp'", "accountant"),
        ("min-noise-multiplier = -0.1", "min-noise-multiplier"),
        ("min-noise-multiplier = nan", "min-noise-multiplier"),
        ("mechanisms = ['laplace']", "mechanisms"),
        ("mechanisms = 'dp-sgd'", "mechanisms"),
        ("tunings = ['last:2']", "tunings"),
        ("metrics = ['all']", "metrics"),
        ("units = ['client']", "units"),
        ("units = [1]", "units"),
        ("min-cohort = 0", "min-cohort"),
        ("min-cohort = 2.5", "min-cohort"),
        ("min-cohort = true", "min-cohort"),
        ("accept-group-bound = 1", "accept-group-bound"),
        ("accept-group-bound = 'yes'", "accept-group-bound"),
        ("expires = '2031-01-01'", "expires"),
        ("expires = 2031-01-01T10:00:00", "expires"),
        ("bundle = 'any'", "bundle"),
        ("classes = 'dark'", "classes"),
        ("classes = [1, 2]", "classes"),
        ("max-epsilom = 3", "max-epsilom"),
        ("MAX-EPSILON = 3", "MAX-EPSILON"),
        ("max_epsilon = 800", "max_epsilon"),  # the key a second time, in another spelling
        ("[limits]\nmax-epsilon = 3", "limits"),
    ],
)
def test_load_policy_refuses(write: Callable[[str], Path], line: str, key: str) -> None:
    name = line.partition(" =")[0]
    others = "".join(f"{other}\n" for other in LEAST.splitlines() if not other.startswith(f"{name} ="))

    with pytest.raises(ConfigError, match=rf"(?s)policy\.toml cannot be used.*  {key}(\.\d+)?: "):
        load_policy(write(others + line))


@pytest.mark.parametrize("content", ["max-epsilon = ", "= 3", "max-epsilon = 1\nmax-epsilon = 2", b"\xff\xfe", "\x00"])
def test_load_policy_refuses_what_is_no_toml(write: Callable[[str | bytes], Path], content: str | bytes) -> None:
    with pytest.raises(ConfigError, match=r"policy\.toml is not a TOML file"):
        load_policy(write(content))


def test_load_policy_refuses_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "missing.toml"):
        with pytest.raises(ConfigError, match="cannot be read"):
            load_policy(place)


def test_load_policy_reads_a_file_that_was_changed_anew(write: Callable[[str], Path]) -> None:
    before = load_policy(write(LEAST))
    after = load_policy(write(LEAST.replace("8.0", "2.0")))

    assert (before.max_epsilon, after.max_epsilon) == (8.0, 2.0)
    assert before.digest != after.digest


def test_digest_differs_in_every_key(write: Callable[[str], Path]) -> None:
    least = load_policy(write(LEAST))
    found = load_policy(write(EVERY_KEY))
    changes = [least.model_copy(update={name: getattr(found, name)}) for name in Policy.model_fields]

    assert len({least.digest, *(one.digest for one in changes)}) == 1 + len(Policy.model_fields)
    assert least.model_copy().digest == least.digest


REFUSED: list[tuple[dict[str, Scalar], dict[str, Any], str]] = [
    ({"privacy.mechanism": "none"}, {"mechanisms": ("dp-sgd",)}, "privacy.mechanism"),
    ({}, {"mechanisms": ("none",)}, "privacy.mechanism"),
    ({}, {"mechanisms": ()}, "only nothing"),
    ({}, {"tunings": ("last",)}, "model.tuning"),
    ({"privacy.metrics": "private"}, {"metrics": ("none", "exact")}, "privacy.metrics"),
    ({"privacy.unit": "image"}, {"units": ("group",)}, "privacy.unit"),
    ({"min-clients": 2}, {"min_cohort": 3}, "min-clients"),
    ({"data.classes": "normal,tumour"}, {"classes": ("tumour", "normal")}, "data.classes"),
    ({}, {"classes": ("tumour", "normal")}, "data.classes"),
]


@pytest.mark.parametrize(("wanted", "limits", "why"), REFUSED)
def test_check_run_refuses(
    make_config: MakeConfig, wanted: dict[str, Scalar], limits: dict[str, Any], why: str
) -> None:
    config = make_config(wanted)
    ANYTHING.check_run(config)  # nothing else is wrong with it

    with pytest.raises(PolicyError, match=why):
        ANYTHING.model_copy(update=limits).check_run(config)


def test_a_policy_decides_between_single_updates_and_secure_sums(make_config: MakeConfig) -> None:
    secure = make_config({"privacy.mechanism": "none", "privacy.aggregation": "secure", "round-retries": 0})
    plain, before = make_config({"privacy.mechanism": "none"}), ANYTHING.model_copy(update={"aggregations": ("plain",)})

    ANYTHING.check_run(secure)
    with pytest.raises(PolicyError, match=r"privacy\.aggregation='secure' is not allowed, only plain"):
        before.check_run(secure)
    with pytest.raises(PolicyError, match=r"privacy\.aggregation='plain' is not allowed, only secure"):
        ANYTHING.model_copy(update={"aggregations": ("secure",)}).check_run(plain)


def test_check_run_takes_as_many_clients_as_the_policy_wants(make_config: MakeConfig) -> None:
    ANYTHING.model_copy(update={"min_cohort": 3}).check_run(make_config({"min-clients": 3}))


def test_check_run_asks_for_no_unit_where_nothing_is_noised(make_config: MakeConfig) -> None:
    ANYTHING.model_copy(update={"units": ()}).check_run(make_config({"privacy.mechanism": "none"}))


def test_policy_allows_gradients_in_batches_only_where_its_holder_does(make_config: MakeConfig) -> None:
    policy = Policy(max_epsilon=10.0, delta=1e-5, tunings=("full",))
    alone, batched = (
        make_config({"model.backbone": "cnn", "training.gradients": named}) for named in ("auto", "opacus")
    )

    policy.check_run(alone)
    with pytest.raises(PolicyError, match=r"training\.gradients='opacus' is not allowed, only auto"):
        policy.check_run(batched)
    allowing = policy.model_copy(update={"gradients": ("opacus",)})
    allowing.check_run(batched)
    ANYTHING.check_run(batched)
    with pytest.raises(PolicyError, match=r"training\.gradients='auto' is not allowed, only opacus"):
        allowing.check_run(alone)
    assert allowing.digest != policy.digest


@pytest.mark.parametrize(("days", "allowed"), [(-1, False), (0, True), (1, True)])
def test_check_run_ends_after_the_last_day(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, days: int, allowed: bool
) -> None:
    class Noon(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> "Noon":
            assert tz is UTC
            return cls(2031, 1, 1, 12, tzinfo=UTC)

    monkeypatch.setattr("common.privacy.policy.datetime", Noon)
    policy = ANYTHING.model_copy(update={"expires": date(2031, 1, 1) + timedelta(days)})

    if allowed:
        policy.check_run(make_config())
    else:
        with pytest.raises(PolicyError, match="the policy ended on 2030-12-31"):
            policy.check_run(make_config())


def test_check_plan_takes_its_limits_and_refuses_beyond() -> None:
    policy = Policy(max_epsilon=1.0, delta=PLAN.delta, min_noise_multiplier=PLAN.noise_multiplier)
    policy.check_plan(PLAN)

    with pytest.raises(PolicyError, match="delta"):
        policy.check_plan(replace(PLAN, delta=1.01e-5))
    with pytest.raises(PolicyError, match="noise multiplier"):
        policy.check_plan(replace(PLAN, noise_multiplier=3.999))


@pytest.mark.parametrize(("accountant", "spent"), [("pld", Spent(3.0, 99.0)), ("rdp", Spent(2.0, 3.0))])
def test_check_spent_caps_the_figure_that_the_policy_names(accountant: str, spent: Spent) -> None:
    policy = Policy.model_validate({"max-epsilon": 3.0, "delta": 1e-5, "accountant": accountant})
    policy.check_spent(spent, spent)

    for more in (3.0 + 1e-9, float("inf"), float("nan")):
        with pytest.raises(PolicyError, match=f"{accountant.upper()}.*allows 3"):
            policy.check_spent(costs := replace(spent, **{accountant: more}), costs)


def test_anything_refuses_no_figure_but_one_that_is_none() -> None:
    ANYTHING.check_spent(Spent(1e9, 1e9), Spent(1e9, 1e9))

    with pytest.raises(PolicyError):
        ANYTHING.check_spent(Spent(float("nan"), 1.0), Spent(1.0, 1.0))


def test_policy_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        ANYTHING.max_epsilon = 1.0  # type: ignore[misc]


def test_check_run_lets_the_policys_own_list_of_classes_pass(make_config: Callable[..., RunConfig]) -> None:
    policy = ANYTHING.model_copy(update={"classes": ("tumour", "normal")})

    policy.check_run(make_config({"data.classes": "tumour, normal"}))
