"""A class that few clients hold is named, and refused by strict rows, where one machine knows who holds it.

Drives `simulations.class_holders`, `common.commands.early_checks`.
"""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from common.commands.early_checks import refuse_unknown_rows
from common.config.loading import defaults, override, parse
from common.config.secure_sum import SecureSum
from common.data.partitioning.partition import Partition, class_counts
from common.errors import ConfigError
from server.deployment.submit_run import run_config_of
from simulations.app import make_context
from simulations.class_holders import counts_by_kind, exposed_rows
from simulations.commands.dry_run import foresee
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


def rows(*holders: int, colluding: int = 1, lost: int = 0, strict: bool = False) -> tuple[str, ...]:
    """The sentences on classes of which the first so many of six clients have images."""
    counts = {"training": np.array([[3] * number + [0] * (6 - number) for number in holders])}
    exact = SecureSum(6, colluding, 6 - lost - colluding)
    return exposed_rows(counts, [f"c{number}" for number in holders], exact, strict=strict)


def test_a_row_is_exposed_if_at_most_one_client_is_left_beside_the_colluding_ones() -> None:
    (found,) = rows(0, 1, 2, 3)

    assert found.startswith("2 of 4 classes have so few holders")
    assert "'c1' (training images at client 0 alone), 'c2' (training images at clients 0, 1 alone). To hide" in found
    # With two colluding clients, three holders hide nobody either.
    assert rows(0, 1, 2, 3, 4, colluding=2)[0].startswith("3 of 5 classes")


def test_many_classes_are_one_line_with_what_to_do() -> None:
    counts = {"training": np.eye(40, 6, dtype=np.int64) + np.eye(40, 6, -6, dtype=np.int64)}
    (many,) = exposed_rows(counts, [f"c{number}" for number in range(40)], SecureSum(6, 1, 5), strict=False)

    assert many.startswith("12 of 40 classes")
    assert many.count("alone)") == 5
    assert " and 7 more. To hide them, add noise (privacy.mechanism), or divide the classes among more" in many
    assert many.endswith("privacy.strict-rows=true refuses such a run")


def test_clients_that_may_be_lost_hide_nobody() -> None:
    assert rows(0, 1, 2, 3, 4, 5, lost=2)[0].startswith("4 of 6 classes")
    # Ten clients of which two collude open a sum of seven: of four holders the sum may hold one.
    counts = {"training": np.array([[5] * 10, [5] * 4 + [0] * 6, [5] * 6 + [0] * 4])}
    (found,) = exposed_rows(counts, ("all", "four", "six"), SecureSum.of(10, 2), strict=False)
    assert found.startswith("2 of 3 classes")
    assert "'six' (training images at clients 0, 1, 2, 3, 4 and 1 more alone)" in found


@pytest.mark.parametrize(("held_out_at", "kind"), [((1, 2, 3), "training"), ((0,), "held-out")])
def test_a_holder_counts_only_where_its_images_enter_the_sum(held_out_at: tuple[int, ...], kind: str) -> None:
    """A client whose images of a class are held out adds nothing to its trained row, and the other way round."""
    owner = np.arange(4, dtype=np.int32).repeat(2)
    labels, held = np.tile([0, 1], 4), np.zeros(8, dtype=bool)
    held[[2 * client + 1 for client in held_out_at]] = True
    scan: Any = SimpleNamespace(usable=np.ones(8, dtype=bool), classes=("a", "b"), labels=labels)
    partition = Partition(owner, held, np.full(4, 2), np.full(4, 2), images_unused=0)
    sides = counts_by_kind(scan, partition, counted=True)

    (found,) = exposed_rows(sides, scan.classes, SecureSum(4, 1, 3), strict=False)

    assert list(counts_by_kind(scan, partition, counted=False)) == ["training"]
    assert (class_counts(scan, partition) == sum(sides.values())).all()
    assert f"'b' ({kind} images at client 0 alone" in found.replace("training images at clients 1, 2, 3 alone; ", "")


def test_strict_rows_refuse_what_is_exposed_and_nothing_else() -> None:
    assert rows(0, 3, 6, strict=True) == ()
    with pytest.raises(
        ConfigError, match=r"strict-rows refuses this run.*'c2' \(training images at clients 0, 1 alone\)\. To go on"
    ):
        rows(2, 3, strict=True)


def test_sums_with_noise_and_plain_updates_have_no_such_row() -> None:
    assert exposed_rows({"training": np.eye(4, dtype=np.int64)}, list("abcd"), None, strict=True) == ()
    for settings in ({"privacy.mechanism": "dp-sgd", "privacy.metrics": ""}, {"privacy.aggregation": "plain"}):
        assert not parse(override(defaults(), EXACT | settings)).sums_exactly
    assert parse(override(defaults(), EXACT)).sums_exactly


@pytest.fixture(name="images", scope="module")
def images_fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shaded_images(tmp_path_factory.mktemp("images") / "pets", per_class=12)


def test_a_simulation_says_who_holds_a_class_alone_and_strict_rows_refuse_it(images: Path, tmp_path: Path) -> None:
    settings = EXACT | {"data.source": str(images), "output-dir": str(tmp_path / "run")}
    strict = parse(override(defaults(), settings | {"privacy.strict-rows": True}))

    with pytest.raises(ConfigError, match=r"privacy.strict-rows refuses this run"):
        make_context(strict)
    with pytest.raises(ConfigError, match=r"privacy.strict-rows refuses this run"):
        foresee(strict)
    assert not (tmp_path / "run").exists()

    _, folder = run_job(
        parse(override(defaults(), settings)), engine="in-process", baselines=False, console=Console(quiet=True)
    )
    warnings = json.loads((folder / "summary.json").read_text())["warnings"]
    (said,) = [line for line in warnings if "have so few holders that their rows" in line]
    foreseen = foresee(parse(override(defaults(), settings)).model_copy(update={"output_dir": ""}))
    # A dry run decodes nothing, so it cannot know which images are held out.
    assert [re.sub("training |; held-out[^)]*", "", said)] == foreseen["exposed_rows"]


def test_strict_rows_go_with_secure_sums_alone() -> None:
    """Plain updates show the server more than any row, so strict rows would promise what nothing keeps."""
    plain = EXACT | {"privacy.aggregation": "plain", "privacy.strict-rows": True}

    with pytest.raises(ConfigError, match=r"set privacy.aggregation='secure', or leave privacy.strict-rows at false"):
        parse(override(defaults(), plain))
    # Noise hides rows too.
    noised = {"privacy.aggregation": "secure", "privacy.mechanism": "dp-sgd", "privacy.metrics": ""}
    parse(override(defaults(), plain | noised))


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
