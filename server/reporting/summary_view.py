"""Final table of a run in the terminal."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from common.config.listed_values import BALANCED
from common.metrics import CONFUSION_METRICS, interval
from common.privacy.batched_gradients import NOT_COVERED, OPACUS
from common.privacy.mechanisms.registry import mechanism_named
from common.system.console import format_epsilon
from server.reporting.missing_clients import missing_text
from server.reporting.run_page.report import REPORT

# Rows that nobody may overlook.
_BOLD = ("missing",)
SIMULATED = "bract simulate --resume"


def print_summary(summary: dict[str, Any], folder: Path, console: Console, *, resume: str = SIMULATED) -> None:
    """Print the result of a run and the next steps.

    Args:
        summary: Content of `summary.json`.
        folder: Folder of the run.
        console: Console to print to.
        resume: Command that resumes a run, without the run's folder.
    """
    table = Table(show_header=False, title=_title(summary), title_justify="left")
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, text in _rows(summary, _short(folder)):
        table.add_row(name, f"[bold]{escape(text)}[/bold]" if name in _BOLD else escape(text))
    console.print(table)
    for line in _next_steps(summary, _short(folder), resume):
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    # The last lines, because a run at chance looks like any other above them.
    for warning in summary["warnings"]:
        console.print(f"Warning  {warning}", style="bold red", highlight=False, soft_wrap=True, markup=False)


def _title(summary: dict[str, Any]) -> str:
    done, planned = summary["rounds"], summary["rounds_planned"]
    if summary["status"] == "complete":
        early = f" of {planned}, stopped early" if summary["stopped_early"] else ""
        return f"Run complete: {done} rounds{early}, {summary['clients']} clients"
    return f"Run interrupted: {done} of {planned} rounds are complete and saved, the round in progress was dropped"


def _rows(summary: dict[str, Any], folder: str) -> list[tuple[str, str]]:
    mark = "  (simulation only: no real federation could see this)" if summary["simulation_only"] else ""
    outdated = summary["evaluated_model"] != summary["final_model"]
    model = f" by the model after round {summary['evaluated_model']}" if outdated else ""
    rows: list[tuple[str, str]] = []
    if summary["accuracy"] is not None:
        remark = f"{model} on {summary['evaluated_examples']} held-out images{mark}"
        for metric in (metric for metric in CONFUSION_METRICS if not metric.detail):
            rows.append((metric.name, f"{summary[metric.key]:.{metric.decimals}f}{remark}"))
            remark = ""
    rows += _spread("over clients", summary["spread_over_clients"]["accuracy"])
    rows += _noised(summary)
    rows += _score_metrics(summary.get("score_metrics"))
    rows += _subgroups(summary.get("subgroup_metrics"))
    rows += _public_test(summary.get("public_test"))
    rows += _personal(summary["personal"])
    if summary["config"]["training.class-weights"] == BALANCED:
        known = "noised and charged" if "trained_labels" in summary["epsilon_parts"] else "exact"
        rows.append(("class weights", f"balanced, by each client's {known} number of images of each class"))
    rows += _unused_images(summary)
    rows += _network_problems(summary)
    rows.append(("privacy", _privacy(summary)))
    rows += _parts(summary["epsilon_parts"], summary["privacy_unit"])
    if summary["refusals"]:
        reasons = ", ".join(f"{client} ({reason})" for client, reason in list(summary["refusals"].items())[:5])
        rows.append(("not taking part", f"of the clients that were online {len(summary['refusals'])}: {reasons}"))
    for name, part in summary.get("baselines", {}).items():
        rows.append((part["label"], f"{part['accuracy']:.4f}  ({name})"))
    seconds = summary["seconds"]
    seconds = {**seconds, "other": seconds["total"] - sum(v for k, v in seconds.items() if k != "total")}
    phases = ", ".join(f"{name.replace('_', ' ')} {value:.1f}" for name, value in seconds.items() if name != "total")
    rows.append(("seconds", f"{seconds['total']:.1f} in all: {phases}"))
    if summary["bytes_up_per_round_per_client"] is not None:
        up, down = summary["bytes_up_per_round_per_client"], summary["bytes_down_per_round_per_client"]
        rows.append(("traffic", f"{up / 1e3:.1f} kB up, {down / 1e3:.1f} kB down, a round and client"))
    rows.append(("results", folder))
    return rows


def _spread(label: str, spread: dict[str, float] | None) -> list[tuple[str, str]]:
    if not spread:
        return []
    return [(label, f"{spread['min']:.3f} to {spread['max']:.3f}, median {spread['median']:.3f}")]


def _personal(personal: dict[str, Any] | None) -> list[tuple[str, str]]:
    if personal is None:
        return []
    rows = [("personalised", f"{personal['part']} stays at each client; {personal['note']}")]
    if personal["accuracy"] is not None:
        rows.insert(0, ("personal accuracy", f"{personal['accuracy']:.4f} of clients' own models, same images"))
        rows[1:1] = _spread("own, over clients", personal["spread_over_clients"]["accuracy"])
    return rows


def _unused_images(summary: dict[str, Any]) -> list[tuple[str, str]]:
    rows = []
    if summary["images_unused"]:
        rows.append(("images unused", f"{summary['images_unused']}: the partitioner assigned them to no client"))
    if summary["skipped_files"]:
        mark = "(simulation only: a real client does not report this number)"
        rows.append(
            ("files skipped", f"{summary['skipped_files']} bad, without a label or of a class left out  {mark}")
        )
    return rows


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _network_problems(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """Return rows about failures, late clients and missing evaluations."""
    rows = []
    if summary["failures"] or summary["rounds_skipped"]:
        skipped = f", {_counted(summary['rounds_skipped'], 'round')} skipped" if summary["rounds_skipped"] else ""
        missing = _counted(summary["failures"], "update")
        rows.append(("failures", f"{missing} missing{skipped}: rounds.jsonl names each"))
    if summary["joined_late"]:
        late = ", ".join(f"{name} from round {first}" for name, first in list(summary["joined_late"].items())[:5])
        rows.append(("joined late", late))
    if text := missing_text(summary["missing"]):
        rows.append(("missing", text))
    if summary["missing_at_close"]:
        missing = ", ".join(f"{name} ({reason})" for name, reason in list(summary["missing_at_close"].items())[:5])
        rows.append(("not in final counts", missing))
    return rows


def _privacy(summary: dict[str, Any]) -> str:
    if not summary["private"] and summary["config"].get("privacy.aggregation") == "secure":
        return "NOT PRIVATE: exact sums of updates and counts left, and no client's own"
    if not summary["private"]:
        return "NOT PRIVATE: updates and exact counts left every client"
    ran_all_rounds = summary["status"] == "complete" and not summary["stopped_early"]
    return (
        f"epsilon <= {format_epsilon(summary['epsilon_max'])} at delta {summary['delta']:g} for each "
        f"{summary['privacy_unit']}, over the whole run (PLD; RDP {format_epsilon(summary['epsilon_max_rdp'])}), "
        f"{summary['mechanism']} at {_noise_place(summary)}"
        + ("; EXACT COUNTS of held-out images left" if summary["metrics"] == "exact" else "")
        + (NOT_COVERED if summary["config"].get("training.gradients") == OPACUS else "")
        + ("" if ran_all_rounds else "; the run stopped early, so the whole plan is charged")
    )


def _noise_place(summary: dict[str, Any]) -> str:
    if not (shares := summary.get("noise_shares")):
        return mechanism_named(summary["mechanism"]).noise_place_short
    alone = summary["if_all_others_collude"]
    return f"the clients in shares, of which {shares} must be honest; {alone} if all other clients collude"


def _parts(parts: dict[str, float], unit: str) -> list[tuple[str, str]]:
    """Return the row with the epsilon of trained and of held-out units."""
    if not parts:
        return []
    of = {name: format_epsilon(epsilon) for name, epsilon in parts.items()}
    labels = f" (label counts {of['trained_labels']})" if "trained_labels" in of else ""
    texts = [f"{of['trained']} each {unit} that trained{labels}"]
    if "held_out" in of:
        alone = f"rounds {of['held_out_rounds']}, closing {of['held_out_closing']}"
        texts.append(f"{of['held_out']} each that was held out ({alone})")
    return [("epsilon of which", ", ".join(texts))]


def _noised(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the row of the noised accuracy."""
    private = summary["private_metrics"]
    if private is None:
        return []
    stddev = private["accuracy_stddev"]
    text = "only noise"
    if stddev is not None and stddev <= 1:
        low, high = interval(private["accuracy"], stddev)
        text = f"{private['accuracy']:.3f} +- {stddev:.3f} ({low:.3f} to {high:.3f})"
    model = f" of the model after round {private['evaluated_model']}"
    return [("accuracy, private", f"{text}{model}: counts with noise, as in a real federation")]


def _score_metrics(figures: dict[str, Any] | None) -> list[tuple[str, str]]:
    """Return the rows of AUROC and calibration by the clients' histograms."""
    if figures is None:
        return []
    private = ", private" if figures["noised"] else ""
    known = sum(row["auroc"] is not None for row in figures["classes"].values())
    auroc, ece = "only noise", "only noise"
    if figures["macro_auroc"] is not None:
        of_noise = f" +- {figures['macro_auroc_stddev']:.3f}" if figures["noised"] else ""
        auroc = f"{figures['macro_auroc']:.3f}{of_noise}, mean of {known} of {len(figures['classes'])} classes"
    if figures["ece"] is not None:
        of_noise = f"; noise alone would show {figures['ece_of_noise']:.3f}" if figures["noised"] else ""
        ece = f"{figures['ece']:.3f}{of_noise}"
    return [(f"macro AUROC{private}", auroc), (f"calibration error{private}", ece)]


def _subgroups(figures: dict[str, Any] | None) -> list[tuple[str, str]]:
    """Return the row of the accuracy by subgroup, in the list's order."""
    if figures is None:
        return []
    unknown = "only noise" if figures["noised"] else "no images"
    shown = {
        name: unknown if found["accuracy"] is None else "{accuracy:.3f} ({low:.3f} to {high:.3f})".format(**found)
        for name, found in figures["subgroups"].items()
    }
    private = ", private" if figures["noised"] else ""
    return [(f"by {figures['column']}{private}", ", ".join(f"{name} {share}" for name, share in shown.items()))]


def _public_test(figures: dict[str, Any] | None) -> list[tuple[str, str]]:
    """Return the row of the figures on the server's public images."""
    if figures is None:
        return []
    named = (("accuracy", "accuracy"), ("macro_f1", "macro F1"), ("macro_auroc", "macro AUROC"), ("ece", "ECE"))
    shown = ", ".join(f"{name} {figures[key]:.4f}" for key, name in named if figures[key] is not None)
    model = f"model after round {figures['evaluated_model']}"
    return [("public test", f"{shown} by the {model}, on {figures['examples']} images of the server's own")]


def _next_steps(summary: dict[str, Any], folder: str, resume: str) -> list[str]:
    lines = [
        *_report(folder),
        *_pictures(folder),
        f"Model    {folder}/model/   figures {folder}/summary.json   guarantee {folder}/privacy.json",
    ]
    if summary["status"] != "complete":
        return [*lines, f"Next     {resume} {folder} continues after round {summary['rounds']}"]
    if resume != SIMULATED:
        return [*lines, f"Next     bract audit run {folder} checks its privacy statement"]
    compare = "" if "baselines" in summary else ", --baselines: did federating help?"
    if summary["private"]:
        return [*lines, f"Next     --set {_less_leakage(summary['config'])} for less leakage{compare}"]
    return [*lines, f"Next     --set privacy.mechanism=dp-sgd to protect each image{compare}"]


def _less_leakage(settings: dict[str, Any]) -> str:
    """Return a setting that leaks less than the run's own."""
    target = settings["privacy.target-epsilon"]
    if target == "":
        return f"privacy.noise-multiplier={2 * settings['privacy.noise-multiplier']:g}"
    return f"privacy.target-epsilon={2 if target > 2 else target / 2:g}"


def _report(folder: str) -> list[str]:
    return [f"Report   {folder}/{REPORT}: open it in a browser"] if (Path(folder) / REPORT).is_file() else []


def _pictures(folder: str) -> list[str]:
    names = [name for name in ("confusion.png", "curves.png", "partition.png") if (Path(folder) / name).is_file()]
    return [f"Look at  {folder}/{', '.join(names)}"] if names else []


def _short(folder: Path) -> str:
    try:
        return str(folder.relative_to(Path.cwd()))
    except ValueError:
        return str(folder)
