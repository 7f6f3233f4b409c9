"""Terminal output of canary audits."""

from rich.console import Console
from rich.padding import Padding
from rich.table import Table

from common.system.console import format_epsilon
from simulations.attacks.canary.bounds import Bounds
from simulations.attacks.canary.one_run import OneRun
from simulations.attacks.estimators.verdict import rounded_down


def show_bounds(bounds: Bounds, trainings: int, console: Console) -> None:
    """Print all bounds and the verdict of many trainings.

    Args:
        bounds: The bounds.
        trainings: Number of trainings.
        console: Where to print.
    """
    plan = bounds.plan
    console.print(
        f"[bold]Canary audit[/]: {trainings:,} trainings of {plan.steps_per_round * plan.num_rounds} steps, "
        f"sample rate {plan.sample_rate:.3g}, noise multiplier {plan.noise_multiplier:.3g}",
        highlight=False,
    )
    table = _table()
    table.add_row("Clopper-Pearson", rounded_down(bounds.clopper_pearson), "nothing")
    if bounds.gaussian is not None:
        table.add_row(
            "GDP mu", rounded_down(bounds.gaussian), f"a Gaussian mechanism; mu >= {rounded_down(bounds.mu or 0.0)}"
        )
    table.add_row(
        "PLD family",
        rounded_down(bounds.family),
        f"the plan but for its noise, of which there is <= {bounds.noise_factor:.3g} x",
    )
    table.add_row("ledger", f"<= {format_epsilon(bounds.upper)}", "the upper bound", style="bold")
    console.print(table)
    _print_verdict(bounds.judgement.sentence, str(bounds.judgement.verdict), console)


def show_one_run(result: OneRun, console: Console) -> None:
    """Print the bounds and the verdict of one run with canaries.

    Args:
        result: Bounds of the run.
        console: Where to print.
    """
    guesses = result.gaussian
    rates = sorted({f"{rate:.3g}" for rate in result.sample_rates.values()})
    console.print(
        f"[bold]One-run audit[/]: {guesses.num_correct} of {guesses.num_guesses} guesses right, of "
        f"{guesses.num_canaries} canaries in {len(result.sample_rates)} clients; sample rate {', '.join(rates)}",
        highlight=False,
    )
    table = _table()
    table.add_row("Steinke et al. 2023", rounded_down(result.any_mechanism.epsilon), "nothing")
    table.add_row("f-DP, Mahloujifar et al. 2024", rounded_down(guesses.epsilon), "a Gaussian mechanism")
    table.add_row("ledger", f"<= {format_epsilon(result.upper)}", "the upper bound", style="bold")
    console.print(table)
    _print_verdict(result.judgement.sentence, str(result.judgement.verdict), console)


def _table() -> Table:
    table = Table(box=None, padding=(0, 1), pad_edge=True)
    for name in ("estimator", "epsilon at least", "what it takes for granted"):
        table.add_column(name)
    return table


def _print_verdict(sentence: str, verdict: str, console: Console) -> None:
    style = {"violated": "bold red", "consistent": "green"}.get(verdict, "yellow")
    console.print(Padding(sentence, (0, 0, 0, 2), expand=False), style=style, highlight=False)
