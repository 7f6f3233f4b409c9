"""Texts and table of advice on settings."""

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from common.commands.run_settings import set_value
from common.config.loading import Scalar
from common.errors import ConfigError
from server.aggregation.summed_steps import SummedSteps
from simulations.advice.candidates import Candidate
from simulations.advice.federation import TEST_ROWS
from simulations.advice.ranking import Advice, Ranked

# Mean errors of trials that differ by less were found in the other order in measured runs.
_CLOSE = 0.02


def show_advice(advice: Advice, command: str, console: Console) -> None:
    """Print candidates by rank with reasons and the meaning of the ranking."""
    config, clients = advice.ranked[0].candidate.config, advice.num_clients
    title = (
        f"Advice: {clients:,} clients, {advice.total_units:,} images, {advice.num_classes:,} classes, "
        f"{advice.num_features:,} features, epsilon {config.privacy.target_epsilon:g}"
    )
    console.print(title, style="bold", highlight=False, markup=False)
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    grid.add_column("", justify="right")
    grid.add_column("settings")
    grid.add_column("error", justify="right")
    for name in advice.without_noise:
        grid.add_column(name, justify="right")
    for number, row in enumerate(advice.ranked, 1):
        grid.add_row(str(number), row.candidate.name, *_cells(row.errors))
    grid.add_section()
    grid.add_row("", "without noise", *_cells(advice.without_noise))
    console.print(grid)
    notes = Table.grid(padding=(0, 2))
    for number, row in enumerate(advice.ranked, 1):
        notes.add_row(str(number), Text(reason_of(row.candidate, advice.total_units)))
    notes.add_row("", "")
    for word, text in _notes(advice):
        notes.add_row(word, Text(text))
    console.print(notes)
    console.print(f"Run  {command}", markup=False, highlight=False, soft_wrap=True)


def _cells(errors: Mapping[str, Sequence[float]]) -> tuple[str, ...]:
    parts = (f"{np.mean(values):.3f} ± {np.ptp(values) / 2:.3f}" for values in errors.values())
    return f"{np.mean(list(errors.values())):.3f}", *parts


def reason_of(candidate: Candidate, total_units: int) -> str:
    """Return one sentence on why a candidate errs as it does.

    `total_units` is the declared number of units of all clients.
    """
    config = candidate.config
    plan, cohort = candidate.plans[0], config.cohort_size
    if candidate.protects_clients:
        return f"Noise hides a whole client among {cohort:,}, where the others hide one image."
    times = f"{candidate.noise_of_sum(cohort) / plan.noise_stddev:.2g} times the noise that one sum needs"
    if config.takes_statistics:
        return f"One release, whose sums are many more numbers than a gradient; together clients add {times}."
    if plan.noise_shares:
        steps = SummedSteps(
            plan, total_units=total_units, num_clients=config.num_clients, rule=config.training.step_rule
        )
        length = f"{steps.rate * plan.max_grad_norm:.3g} clip bounds, momentum {steps.factor:.2g}"
        return f"Clients share the noise, together {times}; {candidate.num_rounds} steps of {length}."
    count, rate = plan.steps_per_round, plan.learning_rate or 0.0
    length = f"{count} step{'s' * (count > 1)} a round of {rate * plan.max_grad_norm:.3g} clip bounds"
    return f"Each client adds all of its noise, together {times}; {length}."


def _notes(advice: Advice) -> Iterator[tuple[str, str]]:
    """Yield pairs of a word and a note about it."""
    seeds = len(next(iter(advice.without_noise.values())))
    drawn = f"{advice.drawn_rows:,} training images"
    if advice.drawn_rows < advice.total_units:
        drawn += f" that stand for {advice.total_units:,}"
    tasks = " and ".join(f"{task.name} ones like {task.like}" for task in advice.tasks)
    yield (
        "On",
        f"synthetic features, {tasks}, {seeds} seeds each (± half their range): {drawn}, {TEST_ROWS:,} test "
        "images, clients alike. The steps, clipping, noise and heads are those of a run.",
    )
    yield (
        "Trust",
        "the order, not the errors: your images decide these. On CIFAR-10 and the digits the order of mechanisms is "
        "that of measured runs, but for close ranks (docs/privacy.md). Clients that differ much are not tried.",
    )
    pairs = enumerate(pairwise(advice.ranked), 1)
    close = [f"{number} and {number + 1}" for number, (row, after) in pairs if _are_close(row, after)]
    if close:
        yield (
            "Close",
            f"ranks {', '.join(close)}: the later one was better in some trial, or worse by less than {_CLOSE:g}, so "
            "either will do.",
        )
    for name, text in _needs(advice).items():
        yield "Needs", f"{name}: {text}"
    for name, text in advice.left_out.items():
        yield "Left out", f"{name}: {text}"


def _are_close(row: Ranked, after: Ranked) -> bool:
    """Return whether two neighbouring ranks may be the other way round in runs."""
    gaps = [np.mean(after.errors[task]) - np.mean(row.errors[task]) for task in row.errors]
    return not row.is_clear or bool(max(gaps) < _CLOSE)


def _needs(advice: Advice) -> Mapping[str, str]:
    needs: dict[str, list[str]] = {}
    for row in advice.ranked:
        config, secure = row.candidate.config, row.candidate.config.secure
        if secure is None:
            needs.setdefault(f"{config.mechanism.trust}.", []).append(config.privacy.mechanism)
            continue
        text = (
            "a roster of all clients' keys that did not come from the server, every client in each round, and holders "
            f"who believe that {secure.honest} of {secure.num_clients} are honest (accept-honest-shares)."
        )
        needs.setdefault(text, []).append(f"{config.privacy.mechanism}, secure")
    return {"; ".join(dict.fromkeys(names)): text for text, names in needs.items()}


def command_of(given: Mapping[str, Scalar], advice: Advice) -> str:
    """Return the command that runs the first rank."""
    settings = {**given, **advice.ranked[0].candidate.settings}
    words = [word for key, value in settings.items() if value != "" for word in ("--set", _pair(key, value))]
    return shlex.join(["bract", "simulate", *words])


def _pair(key: str, value: Scalar) -> str:
    plain = f"{key}={str(value).lower() if isinstance(value, bool) else value}"
    try:
        same = set_value(plain) == (key, value)
    except ConfigError:
        same = False
    # A text that reads like another type is quoted.
    return plain if same else f"{key}={json.dumps(value)}"
