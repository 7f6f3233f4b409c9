"""What the user gives: on the command line, in a file, and laid over the defaults.

Drives `common.commands.run_settings`, `common.system.paths`.
"""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.commands.run_settings import set_value
from common.config.loading import Scalar, defaults, flatten, load_file, nest, override, parse
from common.errors import ConfigError
from common.system.paths import bract_home

_NAMES = st.text("abcdefgh-", min_size=1, max_size=6)
_VALUES = st.one_of(st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=8))


@pytest.mark.parametrize(
    ("given_key", "named"),
    [
        ("data.alfa", "data.alpha"),
        ("num-round", "num-rounds"),
        ("num_rounds", "num-rounds"),
        ("privacy.epsilon", "privacy.target-epsilon"),
        ("alpha", "data.alpha"),
        ("momentum", "training.momentum"),
        ("name", "strategy.name"),
    ],
)
def test_override_names_the_nearest_key_when_one_is_unknown(given_key: str, named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        override(defaults(), {given_key: 1})

    assert f"unknown setting {given_key!r}; did you mean {named!r}?" in str(caught.value)


def test_override_lists_what_is_known_when_nothing_is_near() -> None:
    with pytest.raises(ConfigError) as caught:
        override(defaults(), {"zzzzzzzz": 1})

    assert "did you mean" not in str(caught.value)
    assert all(key in str(caught.value) for key in defaults())


def test_override_leaves_its_arguments_alone() -> None:
    base, settings = defaults(), {"privacy.noise-multiplier": 2}
    before = dict(base), dict(settings)

    override(base, settings)

    assert (base, settings) == before


def test_override_refuses_both_rivals() -> None:
    with pytest.raises(ConfigError, match="not both"):
        override(defaults(), {"privacy.noise-multiplier": 1.0, "privacy.target-epsilon": 8.0})


def test_override_unsets_the_target_when_a_noise_multiplier_is_given() -> None:
    merged = override(defaults(), {"privacy.noise-multiplier": 1.5})

    assert merged["privacy.target-epsilon"] == ""
    assert parse(merged).privacy.noise_multiplier == 1.5


def test_override_keeps_the_target_when_the_noise_multiplier_is_empty() -> None:
    merged = override(defaults(), {"privacy.noise-multiplier": "", "privacy.target-epsilon": 3.0})

    assert merged["privacy.target-epsilon"] == 3.0


# A busy machine draws inputs slowly, which says nothing about the code.
@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.tuples(_NAMES, _NAMES), _VALUES))
def test_flatten_is_the_inverse_of_nest(nested: dict[tuple[str, str], Any]) -> None:
    flat = {f"{table}.{leaf}": value for (table, leaf), value in nested.items()}

    assert flatten(nest(flat)) == flat


def test_bract_home_is_below_the_users_home_when_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRACT_HOME", "")
    assert bract_home() == Path.home() / ".bract"

    monkeypatch.setenv("BRACT_HOME", "/somewhere")
    assert bract_home() == Path("/somewhere")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seed=3", ("seed", 3)),
        ("data.alpha=0.5", ("data.alpha", 0.5)),
        ("data.alpha = 1e-3 ", ("data.alpha", 0.001)),
        ("x=true", ("x", True)),
        ("model.backbone=cnn", ("model.backbone", "cnn")),
        ("data.path='12'", ("data.path", "12")),
        ('data.path="a b"', ("data.path", "a b")),
        ("data.path=/data/a=b", ("data.path", "/data/a=b")),
        ("data.path=", ("data.path", "")),
    ],
)
def test_set_value_has_the_types_of_toml(text: str, expected: tuple[str, Scalar]) -> None:
    key, value = set_value(text)

    assert (key, value) == expected
    assert type(value) is type(expected[1])


@pytest.mark.parametrize("text", ["seed", "", "=3", " =3", "seed=[1, 2]", "data={alpha = 1}"])
def test_set_value_refuses_what_is_not_one_setting(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        set_value(text)

    assert f"--set {text!r}: " in str(caught.value)


def test_load_file_reads_tables_and_dotted_keys(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('seed = 3\ndata.alpha = 0.5\n[privacy]\nmechanism = "none"\n')

    assert load_file(file) == {"seed": 3, "data.alpha": 0.5, "privacy.mechanism": "none"}


@pytest.mark.parametrize(
    ("content", "fragment"),
    [(b"seed = \n", "not a TOML file"), (b"\xff\xfe", "not a TOML file"), (b"seed = [1]\n", "seed must be one number")],
)
def test_load_file_refuses_a_file_it_cannot_use(tmp_path: Path, content: bytes, fragment: str) -> None:
    file = tmp_path / "run.toml"
    file.write_bytes(content)

    with pytest.raises(ConfigError) as caught:
        load_file(file)

    assert str(caught.value).startswith(f"--config {file}: ")
    assert fragment in str(caught.value)


def test_load_file_says_when_there_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_file(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="directory"):
        load_file(tmp_path)


@pytest.mark.parametrize(("key", "before", "now"), [("model.cnn-depth", 2, '""'), ("training.step-rule", 1, "2")])
def test_a_run_of_before_keeps_what_it_did_and_a_users_own_file_gets_todays(
    tmp_path: Path, key: str, before: int, now: str
) -> None:
    (tmp_path / "run.toml").write_text('resume = false\n[model]\nbackbone = "cnn"\n')
    (tmp_path / "own.toml").write_text('[model]\nbackbone = "cnn"\n')
    (tmp_path / "new.toml").write_text(f"resume = false\n{key} = {now}\n")

    read = {name: load_file(tmp_path / f"{name}.toml").get(key) for name in ("run", "own", "new")}

    assert read == {"run": before, "own": None, "new": "" if now == '""' else int(now)}
