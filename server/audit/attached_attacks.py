"""Results of attacks on a run, attached to its privacy statement."""

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
_FIELD = "audits"


def attach_audit(folder: Path, kind: str, result: Mapping[str, Any]) -> None:
    """Add an attack's result to `audit.json` and name it in `privacy.json`.

    Args:
        folder: Folder of the run.
        kind: Kind of attack, such as `empirical`. An earlier result of the same kind is replaced.
        result: JSON values by name, with `verdict` and `sentence` among them.

    Raises:
        ConfigError: The folder does not hold a run, or the run has not ended.
    """
    statement = check_ended(folder)
    earlier = read_json(folder / AUDITS) if (folder / AUDITS).is_file() else {}
    audits = {**earlier, kind: dict(result)}
    directory = RunDirectory(folder)
    directory.write_json(AUDITS, audits)
    named = {name: {key: audit[key] for key in ("verdict", "sentence")} for name, audit in audits.items()}
    directory.write_json("privacy.json", statement | {_FIELD: {"file": AUDITS, "sha256": _digest(folder), **named}})


def check_ended(folder: Path) -> dict[str, Any]:
    """Return the privacy statement of a run that has ended.

    Raises:
        ConfigError: The folder does not hold a run, or the run has not ended.
    """
    statement = read_json(folder / "privacy.json")
    # A run that goes on writes its statement again, without any audit.
    if statement.get("status") != "complete":
        raise ConfigError(f"{folder}: the run has not ended, and no audit can be attached to its statement yet")
    return statement


def check_attached(folder: Path, statement: Mapping[str, Any], remarks: Remarks) -> None:
    """Compare `audit.json` with the statement that names it.

    Args:
        folder: Folder of the run.
        statement: Content of its `privacy.json`.
        remarks: Gets a doubt if the two differ, and a doubt for each violation in `audit.json`.
    """
    stated = statement.get(_FIELD)
    if stated is None:
        if (folder / AUDITS).exists():
            remarks.doubts.append(f"{AUDITS} exists, and the statement does not name it")
        return
    # Without the digest, a violation could be edited away.
    if not (folder / AUDITS).is_file() or not isinstance(stated, dict) or stated.get("sha256") != _digest(folder):
        remarks.doubts.append(f"{AUDITS} is not the file that the statement names")
        return
    for kind, audit in json.loads((folder / AUDITS).read_text()).items():
        if audit.get("verdict") == "violated":
            remarks.doubts.append(f"the audit {kind!r} found a violation: {audit.get('sentence')}")


def _digest(folder: Path) -> str:
    return hashlib.sha256((folder / AUDITS).read_bytes()).hexdigest()
