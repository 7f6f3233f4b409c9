"""Whole simulations in this process, and what they leave.

Drives `common.data.partition_plot`, `server.app`, `server.reporting.artifacts`, `simulations.app`,
`simulations.baselines`, `simulations.engines.in_process`.
"""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message
from PIL import Image
from rich.console import Console
from safetensors.numpy import load_file

from client.app import app as client_app
from common.config.loading import Scalar, resolved
from common.config.schema import RunConfig
from common.data.preprocessing import Prepared
from common.errors import ConfigError, DataError
from server import federation
from server.app import create_app
from server.audit.audit import audit_run
from server.reporting.run_page import report
from simulations.app import make_context
from simulations.engines.in_process import InProcessGrid, run_in_process
from simulations.simulate import run_job
from tests.support.data.divided_table import BY_SEX, NOISY, write_divided

MakeConfig = Callable[..., RunConfig]
QUIET = Console(quiet=True)


@pytest.fixture
def run(tmp_path: Path, make_config: MakeConfig, digits: Prepared) -> Callable[..., tuple[dict[str, Any], Path]]:
    def start(name: str = "run", settings: dict[str, Scalar] | None = None, **more: Any) -> tuple[dict[str, Any], Path]:
        config = make_config({"num-rounds": 3, "output-dir": str(tmp_path / name)} | (settings or {}))
        return run_job(config, engine="in-process", baselines=more.get("baselines", False), console=QUIET)

    return start


OPEN: dict[str, Scalar] = {"privacy.mechanism": "none"}
SMALL_CNN: dict[str, Scalar] = {"model.backbone": "cnn", "num-rounds": 2, "training.local-epochs": 1}


@pytest.mark.pictures
def test_run_job_leaves_every_file_of_a_private_run(run: Callable[..., tuple[dict[str, Any], Path]]) -> None:
    summary, folder = run()

    assert {file.name for file in folder.iterdir()} == {
        "config.toml",
        "run-id.txt",
        "images.npz",
        "rounds.jsonl",
        "rounds.csv",
        "report.html",
        "counts.json",
        "summary.json",
        "privacy.json",
        "model",
        "confusion.png",
        "curves.png",
        "partition.png",
        "checkpoint.safetensors",
        "heads.jsonl",
        "ledgers",
    }
    for picture in folder.glob("*.png"):
        with Image.open(picture) as image:
            assert min(image.size) > 300
            assert len(image.convert("L").getcolors()) > 20
    assert {file.name for file in (folder / "ledgers").iterdir()} == {f"{client:05d}.sqlite" for client in range(5)}
    assert summary["status"] == "complete"
    assert summary["private"] is True
    assert summary["simulation_only"] is True
    assert 0 < summary["epsilon_max"] <= 8.0
    assert summary["private_metrics"]["evaluated_model"] == 3
    assert summary["accuracy"] > 0.5
    assert 0 <= summary["backbone_share_of_time"] < 1
    assert len((folder / "rounds.jsonl").read_text().splitlines()) == 3
    assert load_file(folder / "model" / "model.safetensors")["head.weight"].shape == (10, 1280)
    card = json.loads((folder / "model" / "card.json").read_text())
    assert card["backbone"] == "efficientnet_lite0"
    assert len(card["backbone_sha256"]) == 64
    assert card["classes"] == [str(digit) for digit in range(10)]
    statement = json.loads((folder / "privacy.json").read_text())["statement"]
    readme = (folder / "model" / "README.md").read_text()
    assert card["statement"] == statement
    assert statement in readme
    # Exact figures of the simulation's images are not for those who get the model.
    assert f"{summary['accuracy']:.4f}" not in readme


def test_run_job_under_dp_lets_only_arrays_noised_counts_heads_and_declared_constants_leave(
    make_config: MakeConfig, digits: Prepared, tmp_path: Path
) -> None:
    config = make_config({"num-rounds": 2, "output-dir": str(tmp_path / "run")})
    seen: list[Message] = []

    run_in_process(create_app(make_context), client_app, resolved(config), num_clients=5, observer=seen.append)

    kinds = [message.metadata.message_type for message in seen]
    assert kinds == ["query"] * 5 + ["train"] * 10 + ["evaluate"] * 5 + ["query.close"] * 5
    declared = {m.metadata.src_node_id: m.content.config_records["client"]["num-units"] for m in seen[:5]}
    for message in seen[5:15]:
        assert set(message.content) == {"arrays", "metrics", "ledger"}
        metrics = message.content.metric_records["metrics"]
        assert set(metrics) == {"num-examples", "noised-correct", "noised-wrong"}
        assert metrics["num-examples"] == declared[message.metadata.src_node_id]
        arrays = message.content.array_records["arrays"]
        assert {name: array.numpy().shape for name, array in arrays.items()} == {"head.weight": (10, 1280)}


def test_run_job_without_privacy_repeats_to_the_bit_and_seeds_differ(
    run: Callable[..., tuple[dict[str, Any], Path]],
) -> None:
    folders = [run(name, OPEN | {"seed": seed})[1] for name, seed in (("a", 0), ("b", 0), ("c", 1))]

    models = [(folder / "model" / "model.safetensors").read_bytes() for folder in folders]
    cards = [(folder / "model" / "card.json").read_bytes() for folder in folders]
    assert models[0] == models[1] != models[2]
    assert cards[0] == cards[1]


def test_run_job_under_dp_does_not_repeat(run: Callable[..., tuple[dict[str, Any], Path]]) -> None:
    folders = [run(name)[1] for name in ("a", "b")]

    first, second = (folder / "model" / "model.safetensors" for folder in folders)
    assert first.read_bytes() != second.read_bytes()


def test_run_job_without_privacy_sums_counts_of_all_clients(run: Callable[..., tuple[dict[str, Any], Path]]) -> None:
    summary, folder = run(settings=OPEN | {"num-rounds": 8})

    lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    assert summary["epsilon_max"] is None
    assert summary["accuracy"] > 0.85
    assert {line["examples"] for line in lines} == {summary["evaluated_examples"]}
    assert lines[0]["loss"] == pytest.approx(2.302585, abs=1e-5)  # a head of zeros knows nothing
    assert set(summary["per_class"]) == {str(digit) for digit in range(10)}
    assert summary["spread_over_clients"]["accuracy"]["min"] <= summary["accuracy"]


@pytest.mark.parametrize("mechanism", ["none", "dp-sgd"])
def test_run_job_trains_a_network_from_scratch(run: Callable[..., tuple[dict[str, Any], Path]], mechanism: str) -> None:
    summary, folder = run(settings=SMALL_CNN | {"privacy.mechanism": mechanism, "training.batch-size": 256})

    assert summary["status"] == "complete"
    assert "conv1.weight" in load_file(folder / "model" / "model.safetensors")


@pytest.mark.parametrize("settings", [OPEN, SMALL_CNN | OPEN])
def test_run_job_with_workers_side_by_side_gives_the_same_bytes(
    settings: dict[str, Any], run: Callable[..., tuple[dict[str, Any], Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def model_of(name: str, *, side_by_side: bool) -> bytes:
        # As in a real run, the first message of a type is answered alone.
        worth = lambda grid, message: side_by_side and message.metadata.message_type in grid._cpu_seconds  # noqa: E731
        monkeypatch.setattr(InProcessGrid, "_is_worth_threads", worth)
        monkeypatch.setattr(InProcessGrid, "_has_become_short", lambda *_: False)
        return (run(name, settings)[1] / "model" / "model.safetensors").read_bytes()

    assert model_of("a", side_by_side=True) == model_of("b", side_by_side=False)


def test_run_job_with_a_cohort_asks_only_so_many(run: Callable[..., tuple[dict[str, Any], Path]]) -> None:
    summary, folder = run(settings={"num-clients": 20, "client-fraction": 0.2, "num-rounds": 5})

    lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    assert {line["clients"] for line in lines} == {4}
    statement = json.loads((folder / "privacy.json").read_text())
    assert {client["rounds"] for client in statement["clients"].values()} == {1}
    assert summary["epsilon_max"] <= 8.0


def test_run_job_with_baselines_scores_alone_and_pooled(run: Callable[..., tuple[dict[str, Any], Path]]) -> None:
    summary, _ = run(settings=OPEN | {"num-rounds": 5}, baselines=True)

    assert summary["baselines"]["alone"]["clients"] == 5
    assert summary["baselines"]["alone"]["max"] < summary["baselines"]["pooled"]["accuracy"]


def test_run_job_interrupted_keeps_complete_rounds_and_charges_the_whole_plan(
    run: Callable[..., tuple[dict[str, Any], Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine = federation.run_rounds

    def interrupted(*args: Any, **more: Any) -> Any:
        for result in genuine(*args, **more):
            if result.record.server_round == 3:
                raise KeyboardInterrupt
            yield result

    monkeypatch.setattr(federation, "run_rounds", interrupted)
    summary, folder = run(settings={"num-rounds": 4})

    assert (summary["status"], summary["rounds"], summary["rounds_planned"]) == ("interrupted", 2, 4)
    statement = json.loads((folder / "privacy.json").read_text())
    assert {client["rounds"] for client in statement["clients"].values()} == {4}
    assert len((folder / "rounds.jsonl").read_text().splitlines()) == 2
    assert (folder / "model" / "model.safetensors").is_file()


def test_run_job_interrupted_without_privacy_says_which_model_was_evaluated(
    run: Callable[..., tuple[dict[str, Any], Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine = federation.run_rounds

    def interrupted(*args: Any, **more: Any) -> Any:
        yield from itertools.islice(genuine(*args, **more), 2)
        raise KeyboardInterrupt

    monkeypatch.setattr(federation, "run_rounds", interrupted)
    summary, _ = run(settings=OPEN | {"num-rounds": 4})

    assert (summary["rounds"], summary["evaluated_model"]) == (2, 1)


def test_run_job_complete_evaluates_the_final_model(run: Callable[..., tuple[dict[str, Any], Path]]) -> None:
    for name, settings in (("a", OPEN), ("b", {})):
        summary, _ = run(name, settings)
        assert summary["evaluated_model"] == summary["rounds"] == 3


def test_run_job_refuses_a_plan_beyond_the_budget(run: Callable[..., tuple[dict[str, Any], Path]]) -> None:
    """`flwr run` and the Python parts below the commands make no shorter plan."""
    settings = {"privacy.mechanism": "client-dp", "privacy.target-epsilon": "", "privacy.noise-multiplier": 0.5}

    with pytest.raises(ConfigError, match="but 3 rounds cost epsilon"):
        run("beyond", settings | {"stopping.max-epsilon": 1.0})


def test_run_job_that_stops_early_states_the_cost_of_the_whole_plan(
    run: Callable[..., tuple[dict[str, Any], Path]],
) -> None:
    """It has released its closing counts, and the choice of its last round."""
    summary, _ = run("early", {"stopping.patience": 1, "num-rounds": 12, "training.learning-rate": 1e-6})

    assert summary["stopped_early"]
    assert summary["epsilon_so_far"] == summary["epsilon_max"] > 0


def test_a_run_over_clients_of_their_own_is_no_simulation(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config({"data.source": "clients", "data.classes": "a,b", "output-dir": str(tmp_path / "run")})

    with pytest.raises(ConfigError, match="`bract run` runs"):
        run_job(config, engine="in-process", baselines=False, console=QUIET)
    around = make_context(config)

    assert not (tmp_path / "run").exists()
    assert (around.simulated, around.evaluate, around.class_counts) == (False, None, None)  # out of the server's reach


def test_a_run_that_counts_every_second_round_is_whole_and_is_verified(
    run: Callable[..., tuple[dict[str, Any], Path]],
) -> None:
    settings: dict[str, Scalar] = {"evaluation.every": 2, "num-rounds": 4, "client-fraction": 0.5}

    summary, folder = run("seldom", settings)

    lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    assert ["private" in line for line in lines] == [False, True, False, True]
    assert summary["private_metrics"]["evaluated_model"] == 4
    assert (audit_run(folder).verdict, audit_run(folder).remarks.doubts) == ("verified", [])


@pytest.mark.parametrize("mechanism", ["dp-sgd", "none"])
def test_a_run_with_histograms_states_them_and_is_verified(
    run: Callable[..., tuple[dict[str, Any], Path]], mechanism: str
) -> None:
    names = tuple(map(str, range(10)))
    settings: dict[str, Scalar] = {"privacy.closing": "full", "data.classes": ",".join(names), "num-rounds": 2}

    summary, folder = run("histograms", settings | {"privacy.mechanism": mechanism})

    found = summary["score_metrics"]
    assert (found["evaluated_model"], found["clients"], found["noised"]) == (2, 5, mechanism == "dp-sgd")
    assert tuple(found["classes"]) == names
    if mechanism == "none":
        assert sum(row["units"] for row in found["classes"].values()) == summary["evaluated_examples"]
        assert 0.5 < found["macro_auroc"] <= 1.0
        return
    stated = json.loads((folder / "privacy.json").read_text())
    assert stated["metrics"]["scores_noise_stddev"] > stated["metrics"]["closing_noise_stddev"]
    charged = stated["clients"]["00000"]["events"]["evaluation"]
    assert [event.get("l2-sensitivity", 1.0) for event in charged] == [1.0, 1.0, pytest.approx(10**0.5), 1.0]
    assert (audit_run(folder).verdict, audit_run(folder).remarks.doubts) == ("verified", [])
    stated["metrics"]["scores_noise_stddev"] /= 2
    (folder / "privacy.json").write_text(json.dumps(stated))
    assert any("less noise" in doubt for doubt in audit_run(folder).remarks.doubts)


@pytest.mark.parametrize("mechanism", ["dp-sgd", "none"])
def test_a_run_by_subgroup_states_it_and_is_verified(
    tmp_path: Path, run: Callable[..., tuple[dict[str, Any], Path]], mechanism: str
) -> None:
    table = write_divided(tmp_path / "scans", 80)
    settings = SMALL_CNN | BY_SEX | {"data.source": str(table), "num-clients": 2, "privacy.mechanism": mechanism}
    settings |= NOISY if mechanism == "dp-sgd" else {}

    summary, folder = run("divided", settings | {"data.partitioner": "iid"})

    found = summary["subgroup_metrics"]
    assert (found["evaluated_model"], found["num_clients"], found["noised"]) == (2, 2, mechanism == "dp-sgd")
    assert (found["column"], list(found["subgroups"])) == ("sex", ["f", "m", "other"])
    assert json.loads((folder / "counts.json").read_text())["subgroups"] == found
    if mechanism == "none":
        right, wrong = (sum(one[key] for one in found["subgroups"].values()) for key in ("right", "wrong"))
        assert right + wrong == summary["evaluated_examples"]
        assert right / (right + wrong) == pytest.approx(summary["accuracy"])
        return
    stated = json.loads((folder / "privacy.json").read_text())
    charged = stated["clients"]["00000"]["events"]["evaluation"]
    assert charged[-1]["noise-stddev"] == stated["metrics"]["subgroups_noise_stddev"] == found["noise_stddev"]
    assert (audit_run(folder).verdict, audit_run(folder).remarks.doubts) == ("verified", [])
    for change in ({"subgroups_noise_stddev": found["noise_stddev"] / 2}, {"subgroups": ["m", "f", "other"]}):
        (folder / "privacy.json").write_text(json.dumps(stated | {"metrics": stated["metrics"] | change}))
        assert audit_run(folder).verdict != "verified"


def test_a_missing_column_stops_a_simulation_before_it_trains(
    tmp_path: Path, run: Callable[..., tuple[dict[str, Any], Path]]
) -> None:
    settings = SMALL_CNN | BY_SEX | {"data.source": str(write_divided(tmp_path / "scans", 80, column="scanner"))}

    with pytest.raises(DataError, match="lacks the column sex; its columns are path, label, scanner"):
        run("lacking", settings | {"num-clients": 2})


def test_a_run_writes_its_report_once_with_the_whole_summary(
    run: Callable[..., tuple[dict[str, Any], Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    genuine = report.write_report

    def write(folder: Path) -> Path:
        written.append(json.loads((folder / "summary.json").read_text()).get("engine", ""))
        return genuine(folder)

    monkeypatch.setattr(report, "write_report", write)
    run("once", OPEN | {"num-rounds": 1})

    assert written == ["in-process"]


def test_a_run_that_breaks_down_has_a_report(
    run: Callable[..., tuple[dict[str, Any], Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("planted")

    monkeypatch.setattr(federation, "run_rounds", broken)
    with pytest.raises(Exception, match="planted"):
        run("broken", OPEN)

    assert (tmp_path / "broken" / report.REPORT).is_file()


@pytest.mark.parametrize(
    "settings",
    [
        {"privacy.mechanism": "dp-statistics"},
        {"privacy.mechanism": "dp-statistics", "training.statistics": "class-means"},
        {"privacy.mechanism": "none", "training.method": "statistics"},
    ],
    ids=["dp", "class means", "no noise"],
)
def test_a_head_from_sums_is_a_run_like_any_other(
    run: Callable[..., tuple[dict[str, Any], Path]], settings: dict[str, Scalar]
) -> None:
    summary, folder = run("sums", settings)

    assert (summary["status"], summary["rounds"]) == ("complete", 1)
    assert summary["accuracy"] > (0.4 if summary["private"] else 0.93)
    if summary["private"]:
        assert 7.9 < summary["epsilon_max"] <= 8.0
        assert audit_run(folder).verdict == "verified"
        assert "dp-statistics" in (folder / "report.html").read_text()


def test_one_holder_of_all_images_gets_the_head_of_the_split(
    run: Callable[..., tuple[dict[str, Any], Path]],
) -> None:
    summary, _ = run("split", {"privacy.mechanism": "none", "training.method": "statistics"}, baselines=True)

    assert summary["baselines"]["pooled"]["accuracy"] == summary["accuracy"]
