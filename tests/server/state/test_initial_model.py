"""Runs that start from the model of an earlier run, and what they state of both.

Drives `common.inference.earlier_model`.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import load_file

from common.config.loading import Scalar
from common.config.schema import RunConfig
from common.data.preprocessing import Prepared
from common.errors import ConfigError, ModelError
from common.inference.earlier_model import open_earlier_model
from common.privacy.accounting import spent_by
from common.privacy.events import from_json
from server.audit.audit import audit_run
from server.state.initial_model import facts_of, keep_facts
from simulations.simulate import run_job
from tests.support.clients.own_clients import OwnClient, write_images

MakeConfig = Callable[..., RunConfig]
Start = Callable[..., Path]
OPEN: dict[str, Scalar] = {"privacy.mechanism": "none"}
CNN: dict[str, Scalar] = {"model.backbone": "cnn", "training.local-epochs": 1, "num-rounds": 1}


@pytest.fixture(name="start")
def start_fixture(tmp_path: Path, make_config: MakeConfig, digits: Prepared) -> Start:
    def start(name: str, before: Path | str = "", **settings: Scalar) -> Path:
        given = {key.replace("__", ".").replace("_", "-"): value for key, value in settings.items()}
        given = {"num-rounds": 2, "output-dir": str(tmp_path / name), "model.initial": str(before)} | given
        return run_job(make_config(given), engine="in-process", baselines=False, console=Console(quiet=True))[1]

    return start


def statement_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "privacy.json").read_text())
    return content


def accuracies(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    return [line["accuracy"] for line in lines]


@pytest.mark.parametrize("place", [".", "model"])
def test_a_run_goes_on_where_the_earlier_one_ended(start: Start, place: str) -> None:
    first = start("first", **OPEN)
    second = start("second", first / place, **OPEN)

    ended = json.loads((first / "summary.json").read_text())["accuracy"]
    assert accuracies(second)[0] == ended > accuracies(first)[0]
    assert json.loads((second / "model" / "card.json").read_text())["started_from"]["private"] is False


def test_a_private_run_states_what_both_runs_cost_together(start: Start) -> None:
    first = start("first")
    second = start("second", first, privacy__target_epsilon=2.0)

    stated, before = statement_of(second), statement_of(first)
    together = stated["initial_model"]["composed_epsilon"]
    events = [
        [from_json(event) for event in next(iter(each["clients"].values()))["events"]["training"]]
        for each in (before, stated)
    ]
    one_pair = spent_by([*events[0], *events[1]], delta=stated["delta"]).pld
    assert max(before["epsilon_max"], stated["epsilon_max"]) < one_pair <= together + 1e-6
    # Epsilons are composed. Their sum is larger.
    assert together < before["epsilon_max"] + stated["epsilon_max"]
    assert stated["statement"].endswith(
        f"; started from a private model: each image of both runs has epsilon <= {together:.4f}"
    )
    assert audit_run(second).remarks.doubts == []


def test_a_third_run_counts_the_first_one_too(start: Start) -> None:
    runs = [Path()]
    for name in ("first", "second", "third"):
        runs.append(start(name, runs[-1] if name != "first" else "", privacy__metrics="none", num_clients=2))

    together = [statement_of(run)["initial_model"]["composed_epsilon"] for run in runs[2:]]

    assert together[0] < together[1]
    assert audit_run(runs[3]).remarks.doubts == []


def test_a_start_that_is_not_private_is_said_for_ever(start: Start) -> None:
    first = start("first", **OPEN)
    second = start("second", first)
    third = start("third", second)

    for run in (second, third):
        stated = statement_of(run)
        assert stated["private"] is True
        assert stated["statement"].endswith(
            "STARTED FROM A MODEL THAT IS NOT PRIVATE: the images of that run are not protected"
        )
        assert audit_run(run).remarks.doubts == []


def test_a_start_that_is_not_private_is_known_from_the_model_alone(start: Start, tmp_path: Path) -> None:
    shutil.copytree(start("second", start("first", **OPEN)) / "model", tmp_path / "passed on")

    stated = statement_of(start("third", tmp_path / "passed on"))

    assert stated["initial_model"]["private"] is False
    assert "STARTED FROM A MODEL THAT IS NOT PRIVATE" in stated["statement"]
    card = json.loads((tmp_path / "passed on" / "card.json").read_text())
    assert card["statement"].endswith(
        "STARTED FROM A MODEL THAT IS NOT PRIVATE: the images of that run are not protected"
    )
    assert "differential-privacy" not in (tmp_path / "passed on" / "README.md").read_text()


def test_both_runs_are_composed_at_the_smaller_delta(start: Start) -> None:
    loose = start("loose", privacy__delta=1e-3, num_clients=2)

    stated = statement_of(start("strict", loose, privacy__delta=1e-5, num_clients=2))

    events = [
        [
            from_json(event)
            for event in max(each["clients"].values(), key=lambda one: one["epsilon"])["events"]["training"]
        ]
        for each in (statement_of(loose), stated)
    ]
    at_strict = spent_by([*events[0], *events[1]], delta=1e-5).pld
    assert stated["initial_model"]["composed_epsilon"] >= at_strict - 1e-6


def test_a_statement_with_fewer_events_than_its_epsilon_is_refused(start: Start) -> None:
    first = start("first")
    stated = statement_of(first)
    for client in stated["clients"].values():
        client["events"]["training"] = client["events"]["evaluation"] = []
    (first / "privacy.json").write_text(json.dumps(stated))

    with pytest.raises(ConfigError, match="another epsilon than its events"):
        start("second", first)


def test_a_model_without_its_statement_is_composed_by_nobody(start: Start, tmp_path: Path) -> None:
    shutil.copytree(start("first") / "model", tmp_path / "given")

    stated = statement_of(start("second", tmp_path / "given"))

    assert stated["initial_model"]["composed_epsilon"] is None
    assert "its holder's ledger says it" in stated["statement"]


@pytest.mark.parametrize(
    ("change", "doubt"),
    [
        ({"composed_epsilon": 0.1}, "initial_model says composed_epsilon 0.1"),
        ({"composed_epsilon": None}, "initial_model says composed_epsilon None"),
        ({"private": False}, "says something else of the model"),
        (None, "disagree on whether the run started from an earlier model"),
    ],
)
def test_an_audit_finds_a_changed_start(start: Start, change: dict[str, Any] | None, doubt: str) -> None:
    run = start("second", start("first", num_clients=2), num_clients=2)
    stated = statement_of(run)
    if change is None:
        del stated["initial_model"]
    else:
        stated["initial_model"] |= change
    (run / "privacy.json").write_text(json.dumps(stated))

    assert any(doubt in found for found in audit_run(run).remarks.doubts)


def test_another_epsilon_beside_the_model_is_refused(start: Start) -> None:
    first, other = start("first"), start("other", privacy__target_epsilon=1.0)
    shutil.copy(other / "privacy.json", first / "privacy.json")

    with pytest.raises(ModelError, match="is not the statement of the model beside it"):
        start("second", first)


def test_for_other_classes_the_head_is_new(start: Start) -> None:
    first = start("first", **OPEN, **CNN)
    second = start("second", first, **OPEN, **CNN, data__classes="0,1,2", training__learning_rate=1e-9)

    before, after = (load_file(run / "model" / "model.safetensors") for run in (first, second))
    heads = [name for name in after if name.startswith("output.")]
    assert {after[name].shape[0] for name in heads} == {3}
    for name in after.keys() - set(heads):
        assert np.allclose(before[name], after[name], atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"model.head": "mlp"}, "its head is 'linear', and this run has 'mlp'"),
        ({"model.backbone": "cnn"}, "its model.tuning is 'head', and this run has 'full'"),
        ({"data.classes": "1,0,2,3,4,5,6,7,8,9"}, "same classes in another order"),
        ({"data.classes": "0,1,2"}, "it has only a head, so nothing of it would be left"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    start: Start, tmp_path: Path, settings: dict[str, Scalar], error: str
) -> None:
    first = start("first", **OPEN)

    with pytest.raises(ConfigError, match=error):
        start("second", first, **OPEN, **{key.replace(".", "__"): value for key, value in settings.items()})
    assert not (tmp_path / "second").exists()


def test_a_network_of_another_depth_names_the_setting(start: Start) -> None:
    deep = CNN | {"model.cnn-depth": 3, "data.image-size": 16}
    first = start("first", **OPEN, **deep)

    with pytest.raises(ConfigError, match=r"set model\.cnn-depth=3"):
        start("second", first, **OPEN, **deep | {"model.cnn-depth": 2})


def test_a_resumed_run_keeps_its_start(start: Start, make_config: MakeConfig, tmp_path: Path) -> None:
    first, other = start("first"), start("other")
    config = make_config({"model.initial": str(first)})
    earlier = open_earlier_model(config.model)
    assert earlier is not None
    written: dict[str, Any] = {}
    folder = tmp_path / "begun"
    folder.mkdir()

    facts = keep_facts(folder, earlier, lambda name, value: written.update({name: value}))

    assert written == {"initial.json": facts}
    (folder / "initial.json").write_text(json.dumps(facts))
    assert keep_facts(folder, None, pytest.fail) == facts
    assert keep_facts(folder, earlier, pytest.fail) == facts
    changed = open_earlier_model(make_config({"model.initial": str(other)}).model)
    with pytest.raises(ConfigError, match="is not the model that this run began from"):
        keep_facts(folder, changed, pytest.fail)


def test_a_model_of_unknown_digest_is_not_private_by_its_word_alone(start: Start, make_config: MakeConfig) -> None:
    first = start("first", **OPEN)
    card = json.loads((first / "model" / "card.json").read_text())
    (first / "model" / "card.json").write_text(json.dumps(card | {"private": True, "epsilon_max": 1.0, "delta": 1e-5}))

    with pytest.raises(ModelError, match="their epsilons differ"):
        open_earlier_model(make_config({"model.initial": str(first)}).model)
    (first / "privacy.json").unlink()
    earlier = open_earlier_model(make_config({"model.initial": str(first)}).model)
    assert earlier is not None
    assert facts_of(earlier)["histories"] is None


def test_a_client_opens_no_file_that_the_server_names_as_its_start(
    tmp_path: Path, own_home: Path, make_config: MakeConfig
) -> None:
    """The path is the server's. A client that looked there would tell whether a file exists."""
    from tests.support.clients.own_clients import SMALL

    client = OwnClient(tmp_path, write_images(tmp_path / "images", range(40)))

    replies = [
        client.ask(make_config(SMALL | {"model.initial": place}), "query", run=f"run {place}")
        for place in ("", str(tmp_path / "images"), "/nowhere")
    ]

    assert not any(reply.has_error() for reply in replies)
