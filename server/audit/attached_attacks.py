"""Attacks that were made on a run: kept beside its statement, which names them."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.errors import ConfigError
from common.ledger.audit.integrity_checks import Remarks
from server.audit.statement_reader import read_json
from server.state.run_directory import RunDirectory

AUDITS = "audit.json"
_STATED = "audits"


def attach_audit(folder: Path, kind: str, found: Mapping[str, Any]) -> None:
    """Add what an audit found to a run's `audit.json`, and name it in `privacy.json`.

    Args:
        folder: The run's.
        kind: Which audit, such as `empirical`; an earlier one of the same kind is replaced.
        found: Plain values with `verdict` and `sentence`.

    Raises:
        ConfigError: It is no run's folder, or the run has not ended.
    """
    statement = check_ended(folder)
    earlier = read_json(folder / AUDITS) if (folder / AUDITS).is_file() else {}
    audits = {**earlier, kind: dict(found)}
    directory = RunDirectory(folder)
    directory.write_json(AUDITS, audits)
    named = {name: {"verdict": one["verdict"], "sentence": one["sentence"]} for name, one in audits.items()}
    directory.write_json("privacy.json", statement | {_STATED: {"file": AUDITS, "sha256": _digest(folder), **named}})


def check_ended(folder: Path) -> dict[str, Any]:
    """The statement of a run that has ended: only then is it final, and can name an audit.

    Raises:
        ConfigError: It is no run's folder, or the run has not ended.
    """
    statement = read_json(folder / "privacy.json")
    if statement.get("status") != "complete":
        raise ConfigError(f"{folder}: the run has not ended, and no audit can be attached to its statement yet")
    return statement


def check_attached(folder: Path, statement: Mapping[str, Any], remarks: Remarks) -> None:
    """Doubt audits that are not as the statement names them; an audit that found a violation is a doubt of its own.

    Args:
        folder: The run's.
        statement: Its `privacy.json`.
        remarks: Gets the doubts.
    """
    stated = statement.get(_STATED)
    if stated is None:
        if (folder / AUDITS).exists():
            remarks.doubts.append(f"{AUDITS} is there, and the statement does not name it")
        return
    if not (folder / AUDITS).is_file() or not isinstance(stated, dict) or stated.get("sha256") != _digest(folder):
        remarks.doubts.append(f"{AUDITS} is not the one that the statement names")
        return
    for kind, one in json.loads((folder / AUDITS).read_text()).items():
        if one.get("verdict") == "violated":
            remarks.doubts.append(f"the audit {kind!r} found a violation: {one.get('sentence')}")


def _digest(folder: Path) -> str:
    return hashlib.sha256((folder / AUDITS).read_bytes()).hexdigest()
