"""The loop over cases, pairs and variants, each variant in a fresh process."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from common.errors import BractError, ConfigError
from common.system.extras import is_installed
from common.system.progress import ProgressFactory
from simulations.benchmarks.contract import Benchmark, Case, Options, Variant
from simulations.benchmarks.measuring import measured_process
from simulations.benchmarks.measuring.machine import describe_machine
from simulations.benchmarks.measuring.results import OF_PROCESS, summarize

_PEERS = Path(__file__).parents[1] / "peers"
_ROOT = Path(__file__).parents[3]
# Below a longer folder the names of Ray's sockets exceed the 107 bytes that Unix allows.
_LONGEST_FOR_RAY = 39


class Runner:
    """The processes of one benchmark.

    Args:
        scratch: Folder that all processes share.
        environments: Name -> folder of a virtual environment.
    """

    def __init__(self, scratch: Path, environments: Mapping[str, Path]) -> None:
        self._scratch = scratch
        self._environments = environments
        self._serial = 0

    def why_not(self, variant: Variant) -> str:
        """Return the reason why a variant cannot run here."""
        if variant.environment and variant.environment not in self._environments:
            advice = f"python -m venv FOLDER && FOLDER/bin/pip install {variant.install}"
            return f"needs --environment {variant.environment}=FOLDER, made by: {advice}"
        if variant.environment:
            python = _python_of(self._environments[variant.environment])
            code = f"import importlib.util as u, sys; sys.exit(not all(map(u.find_spec, {variant.needs!r})))"
            done = subprocess.run([python, "-c", code], check=False, capture_output=True)  # noqa: S603
            return f"needs {', '.join(variant.needs)} in {python}: install {variant.install}" if done.returncode else ""
        missing = [package for package in variant.needs if not is_installed(package)]
        return f"needs {', '.join(missing)}: install {variant.install}" if missing else ""

    def measure(self, variant: Variant, repeat: int) -> dict[str, Any]:
        """Run a variant in a fresh process and return its figures.

        Raises:
            BractError: It failed. The message has the end of what it wrote.
        """
        self._serial += 1
        place = self._scratch / "processes" / str(self._serial)
        place.mkdir(parents=True)
        parameters = json.dumps({**variant.parameters, "repeat": repeat, "scratch": str(self._scratch)})
        python = _python_of(self._environments[variant.environment]) if variant.environment else sys.executable
        if ":" in variant.run:
            command = [python, "-m", "simulations.benchmarks.measuring.variant_process", variant.run]
        else:
            command = [python, str(_PEERS / variant.run)]
        watcher = [sys.executable, "-P", measured_process.__file__, str(place / "cost.json")]
        with (place / "output.log").open("wb") as log:
            process = subprocess.Popen(  # noqa: S603
                [*watcher, *command, parameters, str(place / "result.json")],
                cwd=place,
                env=self._environment(),
                stdout=log,
                stderr=log,
            )
            try:
                stopped = process.wait()
            except BaseException:
                # subprocess.run would kill it here, and then nobody ends the variant and the daemons that it started.
                process.terminate()
                process.wait()
                raise
        # A watcher that was stopped has written nothing.
        cost = {"code": stopped} if stopped else json.loads((place / "cost.json").read_text())
        if cost.pop("code"):
            end = (place / "output.log").read_text(errors="replace")[-2000:]
            raise BractError(f"{variant.name} failed; the end of what it wrote:\n{end}")
        return {**cost, **json.loads((place / "result.json").read_text())}

    def _environment(self) -> dict[str, str]:
        paths = [str(_ROOT), os.environ.get("PYTHONPATH", "")]
        # A home of its own keeps the holder's ledgers and caches out of what is measured.
        home = {"BRACT_HOME": str(self._scratch / "home"), "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        # A variant that is stopped leaves its temporary files, such as Ray's, to whoever removes the scratch folder.
        temporary = self._scratch / "t"
        temporary.mkdir(exist_ok=True)
        places = {"TMPDIR": str(temporary)}
        if len(places["TMPDIR"]) > _LONGEST_FOR_RAY:
            places["RAY_TMPDIR"] = tempfile.gettempdir()
        return {**os.environ, **home, **places, "HF_HUB_OFFLINE": "1"}


def check_environments(benchmark: Benchmark, options: Options, environments: Mapping[str, Path]) -> None:
    """Refuse environments that a benchmark does not use or that have no Python.

    Raises:
        ConfigError: A name belongs to no variant, or a folder is not a virtual environment.
    """
    known = {variant.environment for case in benchmark.cases(options) for variant in case.variants} - {""}
    for name, folder in environments.items():
        if name not in known:
            raise ConfigError(
                f"{name!r} is not an environment of {benchmark.name}: it uses {', '.join(sorted(known)) or 'none'}"
            )
        _python_of(folder)


def run_benchmark(
    benchmark: Benchmark,
    options: Options,
    runner: Runner,
    *,
    pairs: int,
    wanted: str = "",
    progress: ProgressFactory,
) -> dict[str, Any]:
    """Measure every case and return the results as plain values.

    A variant that fails once something was measured is measured no further. Its earlier pairs stay, and its row has the
    pair and the end of what it wrote as `failed`. After an interruption there are the figures until then, and `stopped`
    names the case that was not measured to its end.

    Args:
        benchmark: What to measure.
        options: What its cases follow from.
        runner: Starts the processes.
        pairs: Number of times that each variant runs, in turn.
        wanted: Part of a case's name; the others are left out.
        progress: Shows how far it is.

    Raises:
        ConfigError: No case has the wanted name.
        BractError: A variant failed before anything was measured.
        KeyboardInterrupt: It was stopped before anything was measured.
    """
    machine, started = describe_machine(), datetime.now(UTC)
    cases = benchmark.cases(options)
    chosen = [case for case in cases if wanted in case.name]
    if not chosen:
        raise ConfigError(f"{benchmark.name} has no case {wanted!r}: {', '.join(case.name for case in cases)}")
    results: list[dict[str, Any]] = []
    stopped: dict[str, str] = {}
    for case in chosen:
        measured = _Measured(case, keeps_nothing=not results)
        try:
            measured.run(runner, pairs, progress, f"{benchmark.name}: {case.name}")
        except KeyboardInterrupt:
            if measured.keeps_nothing:
                raise
            stopped = {"stopped": case.name}
        results.append(measured.summary(benchmark))
        if stopped:
            break
    return {
        "benchmark": benchmark.name,
        "about": benchmark.about,
        "date": started.isoformat(timespec="seconds"),
        "machine": machine,
        "pairs": pairs,
        "quick": options.quick,
        "cases": results,
        **stopped,
    }


class _Measured:
    """The figures of a case as they come.

    `keeps_nothing` is true as long as no figure of the whole benchmark could be lost.
    """

    def __init__(self, case: Case, *, keeps_nothing: bool) -> None:
        self._case, self.keeps_nothing = case, keeps_nothing
        self._skipped = {variant.name: "" for variant in case.variants}
        self._samples: list[list[dict[str, float]]] = [[] for _ in case.variants]
        self._failed: dict[str, str] = {}

    def run(self, runner: Runner, pairs: int, progress: ProgressFactory, label: str) -> None:
        """Measure all pairs.

        Raises:
            BractError: A variant failed, and there are no figures that would be lost.
        """
        case = self._case
        self._skipped = {variant.name: runner.why_not(variant) for variant in case.variants}
        places = [place for place, variant in enumerate(case.variants) if not self._skipped[variant.name]]
        advance = progress(pairs * len(places), label)
        try:
            if case.prepare and places:
                runner.measure(Variant(f"preparing {case.name}", case.prepare, case.variants[0].parameters), 0)
        except BractError as error:
            if self.keeps_nothing:
                raise
            self._failed = {case.variants[place].name: f"the preparation: {error}" for place in places}
        for repeat in range(pairs):
            # Turned round in every second pair, so that a machine that grows busier favours neither.
            for place in places[:: -1 if repeat % 2 else 1]:
                self._run_one(runner, place, repeat)
                advance(1)

    def _run_one(self, runner: Runner, place: int, repeat: int) -> None:
        variant = self._case.variants[place]
        if self._skipped[variant.name] or variant.name in self._failed:
            return
        try:
            found = runner.measure(variant, repeat)
        except BractError as error:
            # A mistake shows at once. Later, hours of other figures would be lost with it.
            if self.keeps_nothing:
                raise
            self._failed[variant.name] = f"pair {repeat + 1}: {error}"
            return
        if "not_possible" in found:
            self._skipped[variant.name] = found["not_possible"]
            return
        self._samples[place].append(found)
        self.keeps_nothing = False

    def summary(self, benchmark: Benchmark) -> dict[str, Any]:
        """Return the case as plain values."""
        names: Sequence[str] = [variant.name for variant in self._case.variants]
        own = {figure.key for figure in benchmark.figures}
        figures = (*benchmark.figures, *(figure for figure in OF_PROCESS if figure.key not in own))
        rows = summarize(names, self._samples, figures)
        for row in rows:
            row["skipped"] = self._skipped[row["name"]]
            if row["name"] in self._failed:
                row["failed"] = self._failed[row["name"]]
        return {"name": self._case.name, "variants": rows}


def _python_of(environment: Path) -> str:
    python = environment / "bin" / "python"
    if not python.is_file():
        raise ConfigError(f"{environment} is not a virtual environment: it has no bin/python")
    return str(python.absolute())
