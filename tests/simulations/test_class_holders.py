"""A class that few clients hold is named, and refused by strict rows, where one machine knows who holds it.

Drives `simulations.class_holders`, `common.commands.early_checks`.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from common.commands.early_checks import refuse_unknown_rows
from common.config.loading import defaults, override, parse
from common.config.secure_sum import SecureSum
from common.errors import ConfigError
from server.deployment.submit_run import run_config_of
from simulations.app import make_context
from simulations.class_holders import exposed_rows
from simulations.simulate import run_job
from tests.support.inference.stored_models import shaded_images

EXACT: dict[str, Any] = {
    "num-clients": 4,
    "num-rounds": 1,
    "round-retries": 0,
    "data.image-size": 32,
    "data.partitioner": "pathological",
    "data.classes-per-client": 1,
    "model.backbone": "timm:test_resnet",
    "model.weights": "random",
    "privacy.mechanism": "none",
    "privacy.metrics": "none",
    "privacy.aggregation": "secure",
}


def rows(*holders: int, colluding: int = 1, strict: bool = False) -> tuple[str, ...]:
    """The sentences on classes of which the first so many of six clients have images."""
    counts = np.array([[3] * number + [0] * (6 - number) for number in holders])
    return exposed_rows(counts, [f"c{number}" for number in holders], SecureSum(6, colluding, 2), strict=strict)


def test_a_row_is_exposed_if_at_most_one_client_is_left_beside_the_colluding_ones() -> None:
    found = rows(0, 1, 2, 3)

    assert [line.split(" is held by ")[0] for line in found] == ["Class 'c1'", "Class 'c2'"]
    assert "client 0 alone" in found[0]
    assert "clients 0, 1 alone" in found[1]
    # With two colluding clients, three holders hide nobody either.
    assert len(rows(0, 1, 2, 3, 4, colluding=2)) == 3


def test_strict_rows_refuse_what_is_exposed_and_nothing_else() -> None:
    assert rows(0, 3, 6, strict=True) == ()
    with pytest.raises(ConfigError, match=r"privacy.strict-rows: add noise .*\n  Class 'c2' is held by clients 0, 1"):
        rows(2, 3, strict=True)


def test_sums_with_noise_and_plain_updates_have_no_such_row() -> None:
    assert exposed_rows(np.eye(4, dtype=np.int64), list("abcd"), None, strict=True) == ()
    for settings in ({"privacy.mechanism": "dp-sgd", "privacy.metrics": ""}, {"privacy.aggregation": "plain"}):
        assert not parse(override(defaults(), EXACT | settings)).sums_exactly
    assert parse(override(defaults(), EXACT)).sums_exactly


@pytest.fixture(name="images", scope="module")
def images_fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shaded_images(tmp_path_factory.mktemp("images") / "pets", per_class=12)


def test_a_simulation_says_who_holds_a_class_alone_and_strict_rows_refuse_it(images: Path, tmp_path: Path) -> None:
    settings = EXACT | {"data.source": str(images), "output-dir": str(tmp_path / "run")}
    strict = parse(override(defaults(), settings | {"privacy.strict-rows": True}))

    with pytest.raises(ConfigError, match=r"privacy.strict-rows: add noise"):
        make_context(strict)
    assert not (tmp_path / "run").exists()

    _, folder = run_job(
        parse(override(defaults(), settings)), engine="in-process", baselines=False, console=Console(quiet=True)
    )
    warnings = json.loads((folder / "summary.json").read_text())["warnings"]
    assert any("alone: its row in each secure sum without noise may be one client's" in line for line in warnings)


def test_over_real_clients_every_exact_sum_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal by what they hold would tell it, and so would a count of holders."""
    config = parse(override(defaults(), EXACT | {"data.source": "clients", "data.classes": "a,b"}))
    strict = parse(override(defaults(), EXACT | {"data.source": "clients", "privacy.strict-rows": True}))

    make_context(config)
    with pytest.raises(ConfigError, match="nobody may know which classes they hold"):
        make_context(strict)
    home: Any = None
    with pytest.raises(ConfigError, match="nobody may know which classes they hold"):
        run_config_of(home, EXACT | {"data.classes": "a,b", "privacy.strict-rows": True})
    noised = strict.privacy.model_copy(update={"mechanism": "dp-sgd"})
    refuse_unknown_rows(noised, exact_sums=False)
