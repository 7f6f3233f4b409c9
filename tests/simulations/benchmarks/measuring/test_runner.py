"""A benchmark from its command to its files, in real processes.

Drives `simulations.benchmarks.registry`, `simulations.benchmarks.engine`, `simulations.benchmarks.features`,
`simulations.benchmarks.scale`, `simulations.benchmarks.dp`, `simulations.benchmarks.synthetic`,
`simulations.benchmarks.stopwatch`, `simulations.benchmarks.end_to_end`, `simulations.benchmarks.cross_device`,
`simulations.benchmarks.peers.small_images`, `simulations.commands.bench`. The programs of others, run by hand only, are
`simulations.benchmarks.peers.flower_opacus`, `simulations.benchmarks.peers.pfl_rounds`,
`simulations.benchmarks.peers.blazefl_rounds`, with `simulations.benchmarks.peers.networks`.
"""

import json
import os
import sys
from itertools import count
from pathlib import Path

import pytest
from safetensors.numpy import load_file
from typer.testing import CliRunner

from bract import app
from common.errors import BractError
from common.system.progress import no_progress
from simulations.benchmarks.contract import Benchmark, Case, Figure, Options, Variant
from simulations.benchmarks.measuring.runner import Runner, run_benchmark
from simulations.benchmarks.measuring.tables import markdown
from simulations.benchmarks.registry import all_benchmarks
from simulations.image_record import ImageRecord

RUNNER = CliRunner()


def benchmark_of(*variants: Variant) -> Benchmark:
    return Benchmark("tiny", "Tiny.", "a second", (Figure("engine_seconds", "s"),), lambda _: [Case("one", variants)])


def test_the_list_has_each_benchmark_with_its_sentence_and_duration() -> None:
    result = RUNNER.invoke(app, ["bench"], env={"COLUMNS": "300"})

    assert result.exit_code == 0
    for benchmark in all_benchmarks():
        assert all(text in result.output for text in (benchmark.name, benchmark.about, benchmark.duration))
        assert benchmark.cases(Options(quick=True)), benchmark.name


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["engin"], "'engin' is not a benchmark: engine"),
        (["engine", "--quick", "--case", "million"], "has no case 'million'"),
        (["engine", "--environment", "pfl"], "takes NAME=FOLDER"),
        (["engine", "--environment", "pfl=."], "'pfl' is not an environment of engine: it uses none"),
        (["cross-device", "--environment", "pfll=."], "'pfll' is not an environment of cross-device: it uses blazefl,"),
        (["cross-device", "--environment", "pfl=.", "--out", "out"], "it has no bin/python"),
        (["accuracy", "--data", "cifar10"], "--data cifar10 is not a folder: --data takes a folder with train.parquet"),
        (["engine", "--json", "."], "--json . is a folder: name a file"),
        (["engine", "--json", "/dev/null/of.json"], "--json /dev/null/of.json cannot be written (file exists)"),
        (["engine", "--out", "/dev/null/out"], "--out /dev/null/out cannot be written (not a directory)"),
    ],
)
def test_a_mistake_is_explained_before_anything_is_measured(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Runner, "measure", lambda *_: pytest.fail("measured"))

    result = RUNNER.invoke(app, ["bench", *arguments], env={"COLUMNS": "300"})

    assert result.exit_code == 2
    assert said in " ".join(result.output.split())
    assert not list(tmp_path.iterdir())


def test_closed_places_for_results_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda _, mode: mode != os.W_OK)
    monkeypatch.setattr(Runner, "measure", lambda *_: pytest.fail("measured"))

    for option, target in (("--json", tmp_path / "of.json"), ("--out", tmp_path)):
        result = RUNNER.invoke(app, ["bench", "engine", option, str(target)])

        assert result.exit_code == 2
        assert "cannot be written (permission denied)" in " ".join(result.output.split())


@pytest.mark.parametrize("glue", [" ", "="])
def test_the_command_in_results_names_no_folder(glue: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "env" / "bin").mkdir(parents=True)
    (tmp_path / "env" / "bin" / "python").touch()
    monkeypatch.setattr(Runner, "measure", lambda *_: {"rounds_a_second": 1.0})
    monkeypatch.setattr(Runner, "why_not", lambda *_: "")
    options = f"--data{glue}{tmp_path} --environment{glue}pfl={tmp_path}/env --json{glue}{tmp_path}/of.json --quick"
    arguments = ["bench", "cross-device", *options.split()]
    monkeypatch.setattr(sys, "argv", ["bract", *arguments])

    result = RUNNER.invoke(app, arguments)

    assert result.exit_code == 0, result.output
    shown = f"bract bench cross-device --data {tmp_path.name} --environment pfl=FOLDER --quick"
    assert json.loads((tmp_path / "of.json").read_text())["command"] == shown


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is full")
def test_results_that_cannot_be_written_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = {"messages_a_second": 4321.0, "engine_seconds": 1.0, "start_up_seconds": 1.0}
    monkeypatch.setattr(Runner, "measure", lambda *_: figures)

    result = RUNNER.invoke(app, ["bench", "engine", "--pairs", "1", "--json", "/dev/full"])

    assert result.exit_code == 2, result.output
    assert "4,321" in result.output
    assert "could not be written (No space left on device): keep the table above" in " ".join(result.output.split())


def test_quick_benchmark_writes_its_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simulations.benchmarks.measuring.runner.is_installed", lambda _: False)

    result = RUNNER.invoke(app, ["bench", "engine", "--quick", "--pairs", "1", "--out", str(tmp_path / "out")])

    assert result.exit_code == 0, result.output
    assert "needs ray: install 'bract[ray]'" in " ".join(result.output.split())
    results = json.loads((tmp_path / "out" / "engine.json").read_text())
    ours, theirs = results["cases"][0]["variants"]
    assert len(ours["samples"]) == 1
    assert ours["figures"]["messages_a_second"]["min"] > 0
    assert theirs["samples"] == []
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"engine.json", "engine.md", "engine.png"}


def test_a_run_of_scale_has_synthetic_images_everywhere(tmp_path: Path) -> None:
    sizes = {"num_clients": 4, "cohort": 2, "number": 40, "width": 8, "num_rounds": 2}
    variant = Variant("Bract", "simulations.benchmarks.scale:run", {**sizes, "settings": {"privacy.mechanism": "none"}})

    figures = Runner(tmp_path, {}).measure(variant, 0)

    (run,) = tmp_path.glob("run-*")
    record = ImageRecord.load(run)
    assert record is not None
    assert len(record.names) == 40
    assert load_file(run / "model" / "model.safetensors")["head.weight"].shape == (10, 8)
    assert figures["round_seconds"] > 0


def test_a_variant_without_its_environment_is_left_out_with_advice(tmp_path: Path) -> None:
    foreign = Variant("theirs", "no_such_script.py", needs=("pfl",), environment="pfl", install="pfl==0.6")

    results = run_benchmark(benchmark_of(foreign), Options(), Runner(tmp_path, {}), pairs=1, progress=no_progress)

    assert "FOLDER/bin/pip install pfl==0.6" in results["cases"][0]["variants"][0]["skipped"]


def test_a_failed_variant_shows_the_end_of_its_output(tmp_path: Path) -> None:
    wrong = Variant("wrong", "json:loads")

    with pytest.raises(BractError, match=r"(?s)wrong failed.*TypeError") as raised:
        run_benchmark(benchmark_of(wrong), Options(), Runner(tmp_path, {}), pairs=1, progress=no_progress)

    assert "Traceback" in str(raised.value)


def test_a_job_that_cannot_be_done_one_way_is_said_and_measured_no_further(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner, calls = Runner(tmp_path, {}), list[str]()

    def measure(variant: Variant, repeat: int) -> dict[str, object]:
        calls.append(f"{variant.name}{repeat}")
        return {"not_possible": "fails with an error"} if variant.name == "b" else {"engine_seconds": 1.0}

    monkeypatch.setattr(runner, "measure", measure)
    variants = [Variant(name, "") for name in "abc"]

    results = run_benchmark(benchmark_of(*variants), Options(), runner, pairs=3, progress=no_progress)

    assert calls == ["a0", "b0", "c0", "c1", "a1", "a2", "c2"]
    assert [row["skipped"] for row in results["cases"][0]["variants"]] == ["", "fails with an error", ""]


@pytest.mark.parametrize(("fails_at", "kept"), [(1, 1), (2, 2), (0, 0)])
def test_a_variant_that_fails_late_keeps_its_earlier_pairs_and_the_others_go_on(
    fails_at: int, kept: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(_: Runner, variant: Variant, repeat: int) -> dict[str, float]:
        if variant.name.startswith("Flower") and repeat >= fails_at:
            raise BractError(f"{variant.name} failed; the end of what it wrote:\nout of memory")
        return {"messages_a_second": 4321.0 + repeat, "engine_seconds": 1.0, "start_up_seconds": 1.0}

    monkeypatch.setattr(Runner, "measure", measure)
    monkeypatch.setattr(Runner, "why_not", lambda *_: "")
    target = tmp_path / "out"

    done = RUNNER.invoke(app, ["bench", "engine", "--quick", "--pairs", "3", "--out", str(target)])

    assert done.exit_code == 2
    said = " ".join(done.output.split())
    assert f"failed in pair {fails_at + 1} of" in said
    assert "out of memory" in said
    ours, theirs = json.loads((target / "engine.json").read_text())["cases"][0]["variants"]
    assert (len(ours["samples"]), len(theirs["samples"])) == (3, kept)
    assert theirs["failed"].startswith(f"pair {fails_at + 1}: ")
    page = (target / "engine.md").read_text()
    assert ("its figures are of" if kept else "it has no figures") in page
    assert (theirs["ratios"].get("messages_a_second") is not None) == bool(kept)


@pytest.mark.parametrize("stops_at", [0, 1, 3])
def test_a_benchmark_that_is_stopped_keeps_what_was_measured(
    stops_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = count()

    def measure(*_: object) -> dict[str, float]:
        if next(calls) == stops_at:
            raise KeyboardInterrupt
        return {"messages_a_second": 4321.0, "engine_seconds": 1.0, "start_up_seconds": 1.0}

    monkeypatch.setattr(Runner, "measure", measure)
    monkeypatch.setattr(Runner, "why_not", lambda *_: "")
    target = tmp_path / "engine.json"

    done = RUNNER.invoke(app, ["bench", "engine", "--quick", "--pairs", "2", "--json", str(target)])

    assert done.exit_code == 130
    assert next(calls) == stops_at + 1
    if not stops_at:
        assert "nothing was written" in done.output
        assert not target.exists()
        return
    cases = json.loads(target.read_text())["cases"]
    assert sum(len(row["samples"]) for case in cases for row in case["variants"]) == stops_at
    assert "the figures until then" in done.output


@pytest.mark.parametrize("fails", ["why_not", "measure"])
def test_an_interruption_anywhere_in_a_later_case_keeps_the_earlier_ones(
    fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def figures(_: Runner, variant: Variant, *rest: object) -> dict[str, float]:
        if fails == "measure" and variant.name == "b":
            raise KeyboardInterrupt
        return {"engine_seconds": 1.0}

    def why_not(_: Runner, variant: Variant) -> str:
        if fails == "why_not" and variant.name == "b":
            raise KeyboardInterrupt
        return ""

    monkeypatch.setattr(Runner, "measure", figures)
    monkeypatch.setattr(Runner, "why_not", why_not)
    cases = [Case(name, (Variant(name, ""),)) for name in "abc"]
    tiny = Benchmark("tiny", "Tiny.", "a second", (Figure("engine_seconds", "s"),), lambda _: cases)

    results = run_benchmark(tiny, Options(), Runner(tmp_path, {}), pairs=2, progress=no_progress)

    assert results["stopped"] == "b"
    assert [(case["name"], len(case["variants"][0]["samples"])) for case in results["cases"]] == [("a", 2), ("b", 0)]
    page = markdown(tiny, results | {"command": "bract bench tiny"})
    assert "It was stopped in b." in page
    assert "Medians of at most 2 pairs" in page


def test_a_preparation_that_fails_in_a_later_case_keeps_the_earlier_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(_: Runner, variant: Variant, repeat: int) -> dict[str, float]:
        if variant.name.startswith("preparing"):
            raise BractError("no images")
        return {"engine_seconds": 1.0}

    monkeypatch.setattr(Runner, "measure", measure)
    monkeypatch.setattr(Runner, "why_not", lambda *_: "")
    cases = [
        Case("a", (Variant("x", ""),)),
        Case("b", (Variant("x", ""),), prepare="m:p"),
        Case("c", (Variant("x", ""),)),
    ]
    tiny = Benchmark("tiny", "Tiny.", "a second", (Figure("engine_seconds", "s"),), lambda _: cases)

    results = run_benchmark(tiny, Options(), Runner(tmp_path, {}), pairs=2, progress=no_progress)

    assert [len(case["variants"][0]["samples"]) for case in results["cases"]] == [2, 0, 2]
    assert results["cases"][1]["variants"][0]["failed"] == "the preparation: no images"
