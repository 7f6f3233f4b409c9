"""Table of a run's rounds for spreadsheets, written to `rounds.csv`."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from common.privacy.accounting import Spent
from common.system.console import printable

ROUNDS_CSV = "rounds.csv"
UTILITY = ("accuracy", "macro_f1", "balanced_accuracy", "loss", "examples")
PRIVATE = ("accuracy", "accuracy_stddev")
COLUMNS = (
    *("round", "skipped", "clients", "missing", "missing_names", "evaluated_model", *UTILITY),
    *("private_evaluated_model", *(f"private_{key}" for key in PRIVATE)),
    *("public_test_model", *(f"public_test_{key}" for key in UTILITY)),
    *("simulation_only_model", *(f"simulation_only_{key}" for key in UTILITY)),
    *("epsilon_so_far_pld", "epsilon_so_far_rdp", "epsilon_whole_run_pld", "epsilon_whole_run_rdp"),
    *("bytes_up_per_client", "bytes_down_per_client", "seconds"),
)
# A spreadsheet computes a cell that begins with one of these.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def rounds_csv(rounds: Sequence[Mapping[str, Any]], privacy: Mapping[str, Any], spent: Sequence[Spent]) -> str:
    """Return one row a round, with names that no spreadsheet takes for a formula.

    Args:
        rounds: Lines of `rounds.jsonl`.
        privacy: Content of `privacy.json`.
        spent: Epsilon after each round; empty without a mechanism.
    """
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    whole = {f"epsilon_whole_run_{key}": privacy.get(name) for key, name in _WHOLE.items()}
    for place, line in enumerate(rounds):
        so_far = spent[place] if place < len(spent) else None
        writer.writerow({name: csv_cell(value) for name, value in {**_row(line, so_far), **whole}.items()})
    return stream.getvalue()


_WHOLE = {"pld": "epsilon_max", "rdp": "epsilon_max_rdp"}


def _row(line: Mapping[str, Any], so_far: Spent | None) -> dict[str, Any]:
    failures, private, public = line["failures"], line.get("private", {}), line.get("public_test", {})
    hidden = line.get("simulation_only")
    mark, model = ("simulation_only_", "simulation_only_model") if hidden else ("", "evaluated_model")
    row: dict[str, Any] = {
        "round": line["round"],
        "skipped": int(bool(line.get("skipped"))),
        "clients": line["clients"],
        "missing": len(failures),
        "missing_names": "; ".join(f"{name}: {code}" for name, code in failures.items()),
        "bytes_up_per_client": line["bytes_up"],
        "bytes_down_per_client": line["bytes_down"],
        "seconds": line["seconds"],
        model: line.get("evaluated_model"),
        "private_evaluated_model": private.get("evaluated_model"),
    }
    row |= {f"{mark}{key}": line.get(key) for key in UTILITY}
    row |= {f"private_{key}": private.get(key) for key in PRIVATE}
    row |= {"public_test_model": public.get("evaluated_model")}
    row |= {f"public_test_{key}": public.get(key) for key in UTILITY}
    if so_far is not None:
        row |= {"epsilon_so_far_pld": so_far.pld, "epsilon_so_far_rdp": so_far.rdp}
    return row


def csv_cell(value: object) -> object:
    """Return a value for a cell that no spreadsheet computes and no terminal obeys.

    >>> csv_cell("=1+1"), csv_cell(-0.5), csv_cell(None)
    ("'=1+1", -0.5, '')
    """
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    if not isinstance(value, str):
        return value
    # Spaces first: a spreadsheet may strip them and then see the formula.
    guarded = f"'{value}" if value.lstrip().startswith(_FORMULA) or value.startswith(_FORMULA) else value
    return printable(guarded, keep="")
