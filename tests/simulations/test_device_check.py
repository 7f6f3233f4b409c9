"""The check of a GPU, on the processor against itself and with faults that it must find.

Drives `simulations.device_check.check`, `simulations.device_check.examined`, `simulations.device_check.features`,
`simulations.device_check.findings`, `simulations.device_check.gradients`, `simulations.device_check.memory`,
`simulations.device_check.steps`, `simulations.device_check.whole_run`, `simulations.device_check.__main__` and
`simulations.harness.noiseless_round`.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from common.data.feature_extraction import FeatureExtractor, choose_device
from simulations.device_check import __main__ as program
from simulations.device_check import check, features, gradients, memory, steps, whole_run
from simulations.device_check.findings import QUICK, Finding, failures

CNN = {"model.backbone": "cnn"}
SHAPE = (8, 8, 1)


def gradient_failures() -> list[str]:
    return failures(gradients.check_gradients("cnn", CNN, "cpu", shape=SHAPE, number=4))


def spoiled(spoil: Callable[[list[np.ndarray], int], list[np.ndarray]]) -> Callable[..., Iterator[np.ndarray]]:
    """Gradients in slots whose values are changed, by the number of the call."""
    right, calls = gradients.gradients_in_slots, iter(range(100))

    def found(*arguments: Any, **more: Any) -> Iterator[np.ndarray]:
        yield from spoil(list(right(*arguments, **more)), next(calls))

    return found


def test_gradients_of_the_processor_pass() -> None:
    assert gradient_failures() == []


@pytest.mark.parametrize(
    ("spoil", "figure"),
    [
        (lambda rows, call: [1.01 * row for row in rows], "distance of a gradient"),
        (lambda rows, call: [row * (1 + len(rows) % 2 * 1e-6) for row in rows], "gradients moved by other images"),
        (lambda rows, call: [row * (1 + call // 2 * 1e-6) for row in rows], "gradients moved by repeating"),
        (lambda rows, call: [np.full_like(row, np.nan) for row in rows], "distance of a gradient"),
    ],
    ids=["rounded", "by neighbours", "by repeating", "not a number"],
)
def test_wrong_gradients_are_found(
    spoil: Callable[[list[np.ndarray], int], list[np.ndarray]], figure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gradients, "gradients_in_slots", spoiled(spoil))

    assert figure in "\n".join(gradient_failures())


def test_slots_that_the_trainer_would_refuse_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradients, "providers_agree", lambda *_: False)

    assert gradient_failures() == ["cnn: slots refused by the trainer is 1.00, at most 0 passes"]


def test_a_round_of_a_device_that_learns_otherwise_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "_LEAST", 0.0)
    found = list(steps.check_steps("cnn", CNN, "cpu", shape=SHAPE, batch=2))
    monkeypatch.setattr(steps._Rounds, "update", lambda self: np.full(3, 1.0 + 0.01 * next(turns)))
    turns = iter((1, 0))

    wrong = failures(steps.check_steps("cnn", CNN, "cpu", shape=SHAPE, batch=2))

    assert failures(found) == []
    assert [one.figure for one in found if one.value > 0] == [
        "private steps/s, batches of 2",
        "steps/s without privacy",
    ]
    assert wrong == ["cnn: distance of a round's update is 0.0100, at most 0.00100 passes"]


def test_features_of_the_processor_pass_and_those_that_know_their_neighbours_do_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small = {"model.backbone": "timm:mobilenetv3_small_050", "model.weights": "random", "data.image-size": 32}
    found = list(features.check_features(small, "cpu", QUICK))
    forward = FeatureExtractor._forward

    def mixed(self: FeatureExtractor, chunk: np.ndarray) -> np.ndarray:
        rows = forward(self, chunk)
        return np.asarray(rows + 1e-6 * rows.mean(axis=0), np.float32)

    monkeypatch.setattr(FeatureExtractor, "_forward", mixed)
    wrong = failures(features.check_features(small, "cpu", QUICK))

    assert failures(found) == []
    rate = next(one for one in found if one.figure.startswith("images/s"))
    assert rate.value > 0
    assert (rate.processor or 0) > 0
    assert len(wrong) == 1
    assert "images moved by other images" in wrong[0]


def test_whole_runs_are_compared_by_accuracy(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def simulate(settings: dict[str, Any], device: str) -> tuple[dict[str, Any], float]:
        asked.append((settings["num-rounds"], device))
        return {"accuracy": 0.9 if device == "cpu" else 0.7}, 1.0

    monkeypatch.setattr(whole_run, "_simulate", simulate)

    wrong = failures(whole_run.check_whole_runs("cuda", QUICK))

    assert asked == [(1, "cuda"), (1, "cpu")] * 2
    assert [line.partition(":")[0] for line in wrong] == ["run, head", "run, private cnn"]


@pytest.mark.slow
def test_a_whole_run_is_a_command_of_its_own() -> None:
    small = {"model.backbone": "cnn", "num-rounds": 1, "num-clients": 2, "privacy.mechanism": "none"}

    summary, seconds = whole_run._simulate({**small, "training.local-epochs": 1}, "cpu")

    assert summary["status"] == "complete"
    assert summary["accuracy"] > 0
    assert seconds > 0


def test_every_network_of_the_check_is_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []
    for module, name in ((check, "check_gradients"), (check, "check_steps")):
        monkeypatch.setattr(module, name, lambda part, *_, name=name, **__: iter(asked.append((name, part)) or ()))
    for name in ("check_features", "check_whole_runs"):
        monkeypatch.setattr(check, name, lambda *_: iter([Finding("other", "x", 0)]))

    assert len(list(check.check_device("cpu", check.Sizes()))) == 2
    assert [part for name, part in asked if name == "check_steps"] == [
        *("head (NumPy)", "head mlp", "norm", "full", "cnn")
    ]
    assert [part for name, part in asked if name == "check_gradients"] == ["head mlp", "norm", "full", "cnn"]


def run(arguments: list[str], found: list[Finding], monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    monkeypatch.setattr(check, "check_device", lambda *_: iter(found))
    app = program.typer.Typer()
    app.command()(program.check)
    done = CliRunner().invoke(app, arguments)
    return done.exit_code, done.output


@pytest.mark.parametrize(("value", "code"), [(0.5, 0), (2.0, 1), (float("nan"), 1)])
def test_the_program_ends_by_its_findings_and_writes_them(
    value: float, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [Finding("features", "images/s", 9.0, processor=3.0), Finding("norm", "distance", value, 1.0)]

    ended, output = run(["--device", "cpu", "--json", str(tmp_path / "x.json")], found, monkeypatch)

    stored = json.loads((tmp_path / "x.json").read_text())
    assert ended == code
    assert ("FAILS" in output) == bool(code)
    assert "features: images/s 9.00 (processor 3.00)" in output
    assert stored["complete"]
    assert [one["passed"] for one in stored["findings"]] == [True, code == 0]
    assert len(stored["failures"]) == code
    assert stored["machine"]["cores"]


def test_figures_are_kept_when_the_device_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stops(*_: object) -> Iterator[Finding]:
        yield Finding("features", "images/s", 9.0)
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(check, "check_device", stops)
    app = program.typer.Typer()
    app.command()(program.check)
    done = CliRunner().invoke(app, ["--device", "cpu", "--json", str(tmp_path / "x.json")])

    assert done.exit_code == 1
    assert "out of memory" in done.output
    assert len(json.loads((tmp_path / "x.json").read_text())["findings"]) == 1


def test_figures_are_shown_when_their_file_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs a device that is full")
    _, output = run(["--device", "cpu", "--json", "/dev/full"], [Finding("features", "images/s", 9.0)], monkeypatch)

    assert "No space left on device" in output
    assert output.count("images/s") == 2


def test_without_a_gpu_nothing_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)

    ended, output = run([], [], monkeypatch)

    assert ended == 2
    assert "sees no GPU on this machine, so nothing was checked" in output
    assert memory.peak_mb("cpu") is None


@pytest.fixture
def loose_kernels() -> Iterator[dict[tuple[Any, str], bool]]:
    """Each of PyTorch's flags turned to what a GPU must not compute with, and the right value."""
    right = {(torch.backends.cudnn, "allow_tf32"): False, (torch.backends.cudnn, "deterministic"): True}
    right |= {(torch.backends.cudnn, "benchmark"): False, (torch.backends.cuda.matmul, "allow_tf32"): False}
    before = {flag: getattr(*flag) for flag in right}
    for flag, value in right.items():
        setattr(*flag, not value)
    yield right
    for flag, value in before.items():
        setattr(*flag, value)


def test_a_gpu_computes_in_full_float32_with_kernels_that_repeat(
    loose_kernels: dict[tuple[Any, str], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

    assert choose_device("cpu") == "cpu"
    assert [getattr(*flag) for flag in loose_kernels] == [not value for value in loose_kernels.values()]
    assert choose_device("auto") == choose_device("cuda") == "cuda"
    assert [getattr(*flag) for flag in loose_kernels] == list(loose_kernels.values())
