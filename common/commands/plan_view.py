"""The table and the picture of a privacy plan."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from common.privacy.accounting import ACCOUNTANT, NEIGHBORING_RELATION, spent_by
from common.privacy.plan import PrivacyPlan
from common.privacy.plan_table import PlanTable, held_out, milestones
from common.system.console import format_alone, format_epsilon

_COLOURS = ("#2a6f4e", "#b4552d", "#3f6fa3", "#a08320", "#7a4f8a")


def show_plan(table: PlanTable, console: Console, missing: str = "") -> None:
    """Print the plan of a table's sizes and the meaning of its figures.

    `missing` is the option to pass where the number of parameters is unknown.
    """
    plan, target = table.rows[0].plan, table.config.privacy.target_epsilon
    aim = "noise as set" if target is None else f"target epsilon {target:g}"
    title = f"Privacy plan: {plan.mechanism}, unit {plan.privacy_unit}, {aim}, delta {plan.delta:g}"
    console.print(title, style="bold", highlight=False, markup=False)
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    grid.add_column(_size_name(table))
    for row in table.shown:
        grid.add_column(f"{row.plan.num_units:,}", justify="right")
    for section in (_noise_rows(table), _epsilon_rows(table), _more_rows(table)):
        for label, cells in section:
            grid.add_row(label, *cells)
        grid.add_section()
    console.print(grid)
    notes = Table.grid(padding=(0, 2))
    for word, text in _notes(table, missing):
        notes.add_row(word, Text(text))
    console.print(notes)


def _size_name(table: PlanTable) -> str:
    if table.config.mechanism.clips_clients:
        return "Clients in a round"
    return f"{table.rows[0].plan.privacy_unit.capitalize()}s of a client"


def _noise_rows(table: PlanTable) -> list[tuple[str, list[str]]]:
    rows = table.shown
    lines = [
        ("clients of this size", [f"{row.num_clients:,}" for row in rows]),
        ("sample rate", [f"{row.plan.sample_rate:.4g}" for row in rows]),
        ("steps a round", [f"{row.plan.steps_per_round:,}" for row in rows]),
        ("rounds a client takes part in", [f"{row.plan.num_rounds:,}" for row in rows]),
        ("noise multiplier", [f"{row.plan.noise_multiplier:.4g}" for row in rows]),
        ("noise stddev, absolute", [f"{row.plan.noise_stddev:.4g}" for row in rows]),
    ]
    if rows[0].plan.noise_shares:
        lines.append(("  of which one client adds", [f"{row.plan.client_noise_stddev:.4g}" for row in rows]))
    if rows[0].plan.learning_rate is not None:
        lines.append(("learning rate, by rule", [f"{row.plan.learning_rate:g}" for row in rows]))
    if table.config.clip_by_rule:
        lines.append(("clip bound, by rule", [f"{row.plan.max_grad_norm:g}" for row in rows]))
    if rows[0].plan.label_noise_stddev is not None:
        lines.append(("noise of the label counts", [f"{row.plan.label_noise_stddev:.4g}" for row in rows]))
    ratios = [f"{row.signal_to_noise:.3g}" for row in rows if row.signal_to_noise is not None]
    lines += [("signal / noise a step, at most", ratios)] if ratios else []
    return lines[table.config.mechanism.clips_clients :]


def _epsilon_rows(table: PlanTable) -> list[tuple[str, list[str]]]:
    rows = table.shown
    lines = []
    for number in milestones(rows[0].plan.num_rounds):
        name = f"epsilon after {number:,} round{'s' if number > 1 else ''}"
        lines.append((name, [format_epsilon(row.after_rounds[number].pld) for row in rows]))
    if rows[0].plan.noise_shares:
        lines.append(("if all other clients collude", [format_alone(row.alone.pld) for row in rows]))
    return [*lines, ("the whole plan by RDP", [format_epsilon(row.spent.rdp) for row in rows])]


def _more_rows(table: PlanTable) -> list[tuple[str, list[str]]]:
    others = [row.alternative for row in table.shown if row.alternative is not None]
    target = table.config.privacy.target_epsilon
    if target is None:
        return [
            ("epsilon with 10 % more noise", [format_epsilon(other.epsilon) for other in others]),
            ("  change of epsilon", [f"{other.epsilon_change:+.3f}" for other in others]),
        ]
    return [
        (f"noise multiplier at epsilon {others[0].epsilon:g}", [f"{other.noise_multiplier:.4g}" for other in others]),
        ("  change of noise", [f"{other.noise_change:+.1%}" for other in others]),
    ]


def _values(table: PlanTable) -> str:
    return "values of the sums" if table.config.takes_statistics else "trained parameters"


def _notes(table: PlanTable, missing: str) -> Iterator[tuple[str, str]]:
    """Yield pairs of a word and a note about it."""
    config, plan, counts = table.config, table.rows[0].plan, held_out(table)
    yield "Clients", _clients_note(table)
    if table.signal_to_noise_a_round is None:
        yield "Signal", f"not compared with the noise; to compare it, pass {missing or '--parameters N'}"
    else:
        yield (
            "Signal",
            f"at most {table.signal_to_noise_a_round:.3g} x as long as the noise in the average of a round's "
            f"{config.cohort_size:,} clients ({table.num_parameters:,} {_values(table)}): with all {_clipped(table)} "
            f"as long as the clip bound {plan.max_grad_norm:g} and all in one direction. Real ones are shorter and "
            "differ; below 1 a round is mostly noise.",
        )
    if counts is not None:
        yield (
            "Held out",
            f"private counts in {_counted(plan)} (noise {counts['counts_noise_stddev']:.4g}) and a matrix at the end "
            f"(noise {counts['closing_noise_stddev']:.4g}{_histograms(counts)}) cost each "
            f"held-out {plan.privacy_unit} epsilon {format_epsilon(counts['epsilon'])}, RDP "
            f"{format_epsilon(counts['epsilon_rdp'])}. A unit is trained on or held out, "
            "never both: the table has the larger figure.",
        )
    if plan.label_noise_stddev is not None:
        labels = spent_by(plan.label_events(), delta=plan.delta)
        yield (
            "Labels",
            f"each client counts its training labels once, with noise and one vote a {plan.privacy_unit}, weighs its "
            f"classes by the counts, and sends none of them. They alone cost epsilon {format_epsilon(labels.pld)}; the "
            "table has them and the steps together.",
        )
    if plan.noise_shares:
        yield (
            "Shares",
            f"each client adds a share of the noise to a secure sum. The epsilons hold while {plan.noise_shares} "
            "clients of each sum are honest, a unit's own client among them. " + _server_of_sums(table),
        )
    yield "Promise", _promise(plan.privacy_unit, plan.delta)
    yield "", f"Accountant: {ACCOUNTANT}."


def _clipped(table: PlanTable) -> str:
    if table.config.takes_statistics:
        return "images' sums"
    return "updates" if table.config.mechanism.clips_clients else "gradients"


def _server_of_sums(table: PlanTable) -> str:
    config = table.config
    if config.mechanism.clips_clients:
        return "The server adds no noise."
    return "The head follows from the sum." if config.takes_statistics else "The server steps along the sum."


def _histograms(counts: Mapping[str, float]) -> str:
    text = ""
    if "scores_noise_stddev" in counts:
        noises = f"{counts['scores_noise_stddev']:.4g} and {counts['calibration_noise_stddev']:.4g}"
        text = f", histograms of scores and confidence {noises}"
    if "subgroups_noise_stddev" in counts:
        text += f", counts by subgroup {counts['subgroups_noise_stddev']:.4g}"
    return text


def _counted(plan: PrivacyPlan) -> str:
    every = 1 if plan.counts is None else plan.counts.every
    return "each round" if every == 1 else f"the rounds {every}, {2 * every} and so on"


def _clients_note(table: PlanTable) -> str:
    config = table.config
    cohort = "all" if config.cohort_size == config.num_clients else f"{config.cohort_size:,}"
    rounds = "the only round" if config.num_rounds == 1 else f"each of {config.num_rounds:,} rounds"
    note = f"{config.num_clients:,}, {cohort} of them in {rounds}"
    if config.mechanism.clips_units and table.num_sizes < config.num_clients:
        note += f"; the sizes of {table.num_sizes:,} are known, the others are assumed to be similar"
    if len(table.shown) < len(table.rows):
        note += f"; the table shows {len(table.shown)} of {len(table.rows)} different sizes (--json has all)"
    return note + "."


def _promise(unit: str, delta: float) -> str:
    return (
        f"epsilon is an upper bound for one {unit} at delta {delta:g}; neighbouring data sets: {NEIGHBORING_RELATION}. "
        "A run that stops early still states its whole plan."
    )


def curve_rounds(last: int) -> tuple[int, ...]:
    """Return rounds for a smooth curve, with all `milestones` among them."""
    return tuple(sorted({*milestones(last), *np.linspace(1, last, 12).round().astype(int).tolist()}))


def draw_plan(file: Path, table: PlanTable) -> None:
    """Draw epsilon after each of `curve_rounds` for each size of a table."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes, plan, target = figure.add_subplot(), table.rows[0].plan, table.config.privacy.target_epsilon
    for row, colour in zip(table.shown, _COLOURS, strict=False):
        rounds = [0, *row.after_rounds]
        name = f"{row.plan.num_units:,} {plan.privacy_unit}s, noise multiplier {row.plan.noise_multiplier:.3g}"
        axes.plot(rounds, [0, *(spent.pld for spent in row.after_rounds.values())], color=colour, label=name)
        axes.plot(rounds, [0, *(spent.rdp for spent in row.after_rounds.values())], color=colour, lw=0.8, ls=":")
    axes.plot([], [], color="grey", lw=0.8, ls=":", label="the same by RDP, looser")
    if target is not None:
        axes.axhline(target, color="#22313f", ls="--", lw=1, label=f"target {target:g}")
    axes.set(xlabel="rounds a client took part in", ylabel=f"epsilon of one {plan.privacy_unit}, at most")
    axes.set_title(f"What the rounds cost: {plan.mechanism}, delta {plan.delta:g}, by PLD")
    axes.set(xlim=(0, plan.num_rounds), ylim=(0, None))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, fontsize=9)
    figure.savefig(file, dpi=110)
