"""Page that shows runs over each other."""

from collections.abc import Callable, Sequence
from itertools import chain

from common.metrics import METRICS, interval
from common.page.blocks import (
    MISSING,
    Block,
    Cell,
    LineChart,
    Notice,
    Page,
    Section,
    Series,
    Table,
    Text,
    epsilon_cell,
    name_cell,
    number_cell,
    pointer,
    setting_cell,
    share_cell,
    text,
    words,
)
from server.reporting.comparison.runs import ComparedRun, cautions, different_settings
from server.reporting.run_page.run_files import PRIVACY, ROUNDS, SUMMARY
from server.reporting.run_page.utility import SIMULATION_ONLY

_NAMES = {metric.key: metric.name for metric in METRICS}
_Points = dict[float, tuple[float, str]]


def comparison_page(runs: Sequence[ComparedRun]) -> Page:
    """Return the page of several runs."""
    sections = (
        Section("runs", "Runs", (runs_table(runs), *_cautions(runs))),
        Section("settings", "Settings that differ", (_settings(runs),)),
        Section("curves", "Curves", tuple(_curves(runs))),
        Section("epsilon", "Accuracy against epsilon", tuple(_against_epsilon(runs))),
        Section("cost", "Bytes and seconds", tuple(_cost(runs))),
    )
    names = ", ".join(name_cell(run.name).text for run in runs)
    return Page(
        f"{len(runs)} runs compared",
        names,
        sections,
        "Made by Bract from the files of the runs' folders. The page loads nothing from anywhere.",
    )


def runs_table(runs: Sequence[ComparedRun]) -> Table:
    """Return the figures of each run in a row."""
    columns = ("run", "mechanism", "accuracy", "epsilon", "delta", "clients", "rounds", "MB", "seconds")
    rows = tuple(_row(run) for run in runs)
    return Table("Runs", columns, rows, (False, False, *(True,) * 7), sortable=True)


def _row(run: ComparedRun) -> tuple[Cell, ...]:
    files, summary, privacy = run.files, run.files.summary, run.files.privacy
    mechanism = str(files.config.get("privacy.mechanism", ""))
    delta = privacy.get("delta")
    return (
        name_cell(run.name),
        Cell(words(mechanism)),
        accuracy_cell(run),
        epsilon_cell(privacy.get("epsilon_max"), _at(run, PRIVACY, "epsilon_max")) if files.private else Cell("none"),
        MISSING if delta is None else Cell(f"{delta:g}", delta, _at(run, PRIVACY, "delta")),
        number_cell(summary.get("clients"), _at(run, SUMMARY, "clients")),
        number_cell(summary.get("rounds"), _at(run, SUMMARY, "rounds")),
        number_cell(run.megabytes, decimals=1),
        number_cell(summary.get("seconds", {}).get("total"), _at(run, SUMMARY, "seconds", "total"), 1),
    )


def accuracy_cell(run: ComparedRun) -> Cell:
    """Return the accuracy that the server of a real run could know."""
    private, summary = run.private_metrics, run.files.summary
    if private is not None:
        ends = interval(private["accuracy"], private["accuracy_stddev"])
        return share_cell(private["accuracy"], _at(run, SUMMARY, "private_metrics", "accuracy"), *ends)
    if run.files.hidden:
        return MISSING
    return share_cell(summary.get("accuracy"), _at(run, SUMMARY, "accuracy"))


def _at(run: ComparedRun, file: str, *keys: str | int) -> str:
    return pointer(f"{run.name}/{file}", *keys)


def _cautions(runs: Sequence[ComparedRun]) -> tuple[Block, ...]:
    said = tuple(Text((words(caution),)) for caution in cautions(runs))
    return (Notice("warning", "Before you compare", said),) if said else ()


def _settings(runs: Sequence[ComparedRun]) -> Block:
    different = different_settings(runs)
    if not different:
        return text("All settings are the same.")
    rows = tuple((name_cell(key), *(setting_cell(value) for value in values)) for key, values in different.items())
    columns = ("setting", *(name_cell(run.name).text for run in runs))
    return Table("Settings that differ", columns, rows, (False,) * len(columns))


def _curves(runs: Sequence[ComparedRun]) -> list[Block]:
    blocks: list[Block] = []
    known = [_private_points(run) if run.files.hidden else _exact_points(run, "accuracy") for run in runs]
    if any(known):
        title = "Accuracy that each run's server could know"
        blocks.append(_chart(title, "model after round", "share predicted right", runs, known, (0.0, 1.0)))
        blocks.append(text("Of a run with a privacy mechanism it is by counts with noise.", small=True))
    blocks += _exact_charts(runs, ("macro_f1", "loss"), [not run.files.hidden for run in runs])
    if any(run.files.hidden for run in runs):
        hidden = _exact_charts(runs, ("accuracy", "macro_f1", "loss"), [True] * len(runs))
        blocks += [Notice("simulation", SIMULATION_ONLY, hidden)] if hidden else []
    return blocks or [text("No model of these runs has been evaluated.")]


def _exact_charts(runs: Sequence[ComparedRun], keys: Sequence[str], shown: Sequence[bool]) -> tuple[Block, ...]:
    charts = []
    for key in keys:
        points = [_exact_points(run, key) if is_shown else {} for run, is_shown in zip(runs, shown, strict=True)]
        if any(points):
            limits = None if key == "loss" else (0.0, 1.0)
            charts.append(
                _chart(f"{_NAMES[key]} by exact counts", "model after round", _NAMES[key], runs, points, limits)
            )
    return tuple(charts)


def _private_points(run: ComparedRun) -> _Points:
    """Return the accuracy by noised counts of each evaluated model."""
    points: _Points = {}
    for number, line in enumerate(run.files.rounds):
        found = line.get("private", {})
        if found.get("accuracy_stddev") is not None:
            points[float(found["evaluated_model"])] = found["accuracy"], _at(run, ROUNDS, number, "private", "accuracy")
    if (last := run.private_metrics) is not None:
        points[float(last["evaluated_model"])] = last["accuracy"], _at(run, SUMMARY, "private_metrics", "accuracy")
    return points


def _exact_points(run: ComparedRun, key: str) -> _Points:
    points: _Points = {
        float(line["evaluated_model"]): (line[key], _at(run, ROUNDS, number, key))
        for number, line in enumerate(run.files.rounds)
        if line.get(key) is not None
    }
    last = run.files.summary
    if last.get(key) is not None and last.get("evaluated_model") is not None:
        points[float(last["evaluated_model"])] = last[key], _at(run, SUMMARY, key)
    return points


def _chart(
    title: str,
    x_label: str,
    y_label: str,
    runs: Sequence[ComparedRun],
    points: Sequence[_Points],
    limits: tuple[float, float] | None,
    *,
    x_cell: Callable[[float], Cell] = number_cell,
) -> LineChart:
    """Return a chart with a line for each run that has points."""
    x = sorted(set(chain.from_iterable(points)))
    shown = [at for at, own in enumerate(points) if own]
    series = tuple(
        Series(
            name_cell(runs[at].name).text,
            tuple(points[at].get(place, (None, ""))[0] for place in x),
            look=at + 1,
            bridged=True,
        )
        for at in shown
    )
    rows = tuple(
        (x_cell(place), *(share_cell(*points[at][place]) if place in points[at] else MISSING for at in shown))
        for place in x
    )
    columns = (x_label, *(one.name for one in series))
    table = Table(title, columns, rows, (True,) * len(columns))
    return LineChart(title, x_label, y_label, tuple(x), series, table, limits)


def _against_epsilon(runs: Sequence[ComparedRun]) -> list[Block]:
    points = [_by_epsilon(run) for run in runs]
    if not any(points):
        return [text("No run has both a privacy mechanism and figures that a real federation could see.")]
    title = "Accuracy by counts with noise against epsilon so far"
    chart = _chart(
        title, "epsilon so far (PLD)", "share predicted right", runs, points, (0.0, 1.0), x_cell=epsilon_cell
    )
    note = (
        "Epsilon so far is that of the client with the largest, before the closing counts. The last point of each "
        "line has the epsilon of its whole run. A run could have stopped at an earlier point for that epsilon only if "
        "this had been planned."
    )
    return [chart, text(note, small=True)]


def _by_epsilon(run: ComparedRun) -> _Points:
    """Return the accuracy of each model by its epsilon so far."""
    points: _Points = {}
    if not run.files.private:
        return points
    for model, found in _private_points(run).items():
        # The model after round n has cost what the first n rounds cost.
        if 1 <= model <= len(run.spent):
            points[round(run.spent[int(model) - 1].pld, 4)] = found
    whole, last = run.files.privacy.get("epsilon_max"), run.private_metrics
    if whole is not None and last is not None:
        points[round(whole, 4)] = last["accuracy"], _at(run, SUMMARY, "private_metrics", "accuracy")
    return points


def _of_rounds(run: ComparedRun, key: str) -> _Points:
    lines = enumerate(run.files.rounds)
    return {float(line["round"]): (line[key], _at(run, ROUNDS, number, key)) for number, line in lines}


def _cost(runs: Sequence[ComparedRun]) -> list[Block]:
    blocks: list[Block] = []
    for key, title, unit in (
        ("seconds", "Seconds a round", "seconds"),
        ("bytes_up", "Bytes from a client a round", "bytes"),
        ("bytes_down", "Bytes to a client a round", "bytes"),
    ):
        points = [_of_rounds(run, key) for run in runs]
        if any(points):
            blocks.append(_chart(title, "round", unit, runs, points, None))
    return blocks or [text("No round of these runs is complete.")]
