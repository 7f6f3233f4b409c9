"""Files of a run's folder, read as far as they are there."""

import hashlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.config.loading import Scalar, flatten
from common.data.sources.base_source import OWN_IMAGES
from common.errors import ConfigError
from common.inference.card import CARD_FILE
from common.privacy.mechanisms.registry import MECHANISMS
from server.audit.attached_attacks import AUDITS
from server.reporting.counts_file import COUNTS_FILE
from server.reporting.run_page.gaps import NOT_PRIVATE, NOT_PRIVATE_SUMS
from server.state.checkpoint import CHECKPOINT
from server.state.client_roll import read_back
from server.state.initial_model import INITIAL_FILE
from server.state.run_directory import RUN_ID, STOPPED

CONFIG, SUMMARY, PRIVACY, ROUNDS = "config.toml", "summary.json", "privacy.json", "rounds.jsonl"
CARD = f"model/{CARD_FILE}"
HASHED = (CONFIG, SUMMARY, PRIVACY, ROUNDS, COUNTS_FILE, CARD, AUDITS, INITIAL_FILE, RUN_ID)


@dataclass(frozen=True)
class RunFiles:
    """Content of a run's files, empty where a file is missing.

    Attributes:
        folder: Folder of the run.
        config: Settings by their full key.
        summary: Content of `summary.json`.
        privacy: Content of `privacy.json`.
        rounds: Lines of `rounds.jsonl`.
        counts: Content of `counts.json`, or what the checkpoint has of it.
        counts_from: Name of the file that `counts` is from.
        card: Content of the model's card.
        audits: Content of `audit.json`.
        initial: Content of the record of an earlier model.
        stopped: Error that stopped the run; empty without one.
        hashes: SHA-256 of each file that was read.
        problems: Sentence about each file that could not be read.
    """

    folder: Path
    config: Mapping[str, Scalar]
    summary: dict[str, Any] = field(default_factory=dict)
    privacy: dict[str, Any] = field(default_factory=dict)
    rounds: list[dict[str, Any]] = field(default_factory=list)
    counts: dict[str, Any] = field(default_factory=dict)
    counts_from: str = COUNTS_FILE
    card: dict[str, Any] = field(default_factory=dict)
    audits: dict[str, Any] = field(default_factory=dict)
    initial: dict[str, Any] = field(default_factory=dict)
    stopped: str = ""
    hashes: Mapping[str, str] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    @property
    def private(self) -> bool:
        """True if the run has a privacy mechanism."""
        told = self.privacy.get("private", self.summary.get("private"))
        # Without both files the settings tell. A page that cannot know hides too much, and never too little.
        named = MECHANISMS.get(str(self.config.get("privacy.mechanism")))
        return bool(told) if told is not None else named is None or named.private

    @property
    def sums(self) -> dict[str, Any]:
        """Statement on secure sums, empty where updates left one by one."""
        return dict(self.privacy.get("aggregation") or {})

    @property
    def not_protected(self) -> list[str]:
        """Gaps of the guarantee as the statement names them."""
        own: Sequence[str] = () if self.private else NOT_PRIVATE_SUMS if self.sums else NOT_PRIVATE
        stated = (*self.privacy.get("not_protected", own), *self.sums.get("not_protected", ()))
        return list(dict.fromkeys(stated))

    @property
    def simulated(self) -> bool:
        """True if no real client took part."""
        return self.config.get("data.source") != OWN_IMAGES

    @property
    def hidden(self) -> bool:
        """True if exact figures are a simulation's alone."""
        marked = any(line.get("simulation_only") for line in self.rounds)
        return marked or (self.private and self.summary.get("metrics", self.config.get("privacy.metrics")) != "exact")

    @property
    def complete(self) -> bool:
        """True if the run has ended by itself."""
        return self.summary.get("status") == "complete"

    @property
    def classes(self) -> list[str]:
        """Class names.

        They are empty if no file has them.
        """
        return list(self.counts.get("classes") or self.card.get("classes") or self.summary.get("per_class", {}))


def read_run(folder: Path) -> RunFiles:
    """Read the files of a run that may be partial or damaged.

    Raises:
        ConfigError: The folder does not hold a run.
    """
    if not (folder / CONFIG).is_file():
        raise ConfigError(f"{folder} does not hold a run (it has no {CONFIG})")
    reader = _Reader(folder)
    counts, counts_from = reader.json(COUNTS_FILE), COUNTS_FILE
    if not counts:
        counts, counts_from = reader.checkpoint(), CHECKPOINT
    return RunFiles(
        folder,
        reader.config(),
        reader.json(SUMMARY),
        reader.json(PRIVACY),
        reader.rounds(),
        counts,
        counts_from,
        reader.json(CARD),
        reader.json(AUDITS),
        reader.json(INITIAL_FILE),
        reader.text(STOPPED).strip(),
        {name: reader.hashes[name] for name in HASHED if name in reader.hashes},
        tuple(reader.problems),
    )


class _Reader:
    """Reader that keeps hashes of files and sentences on damaged ones."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hashes: dict[str, str] = {RUN_ID: ""}
        self.problems: list[str] = []
        self.text(RUN_ID)

    def text(self, name: str) -> str:
        """Return a file's text, empty if it is missing or cannot be read."""
        try:
            content = (self.folder / name).read_bytes()
        except FileNotFoundError:
            return ""
        except OSError as error:
            self.problems.append(f"{name} cannot be read ({error.strerror}).")
            return ""
        self.hashes[name] = hashlib.sha256(content).hexdigest()
        return content.decode("utf-8", errors="replace")

    def json(self, name: str) -> dict[str, Any]:
        """Return the object in a JSON file, empty if there is none."""
        text = self.text(name)
        try:
            content = json.loads(text) if text else {}
        except (ValueError, RecursionError):
            content = None
        if isinstance(content, dict):
            return content
        self.problems.append(f"{name} is damaged and was left out.")
        return {}

    def config(self) -> dict[str, Scalar]:
        """Return the settings by their full key."""
        try:
            return flatten(tomllib.loads(self.text(CONFIG)))
        except (ValueError, ConfigError):
            self.problems.append(f"{CONFIG} is damaged and was left out.")
            return {}

    def rounds(self) -> list[dict[str, Any]]:
        """Return the lines of whole rounds."""
        lines, damaged = [], 0
        for text in self.text(ROUNDS).splitlines(keepends=True):
            # A line without its end is still being written.
            if not text.endswith("\n"):
                continue
            try:
                line = json.loads(text)
            except (ValueError, RecursionError):
                line = None
            if isinstance(line, dict) and "round" in line:
                lines.append(line)
            else:
                damaged += 1
        if damaged:
            self.problems.append(f"{damaged} lines of {ROUNDS} are damaged and were left out.")
        return lines

    def checkpoint(self) -> dict[str, Any]:
        """Return what a checkpoint has of `counts.json`."""
        from safetensors import SafetensorError, safe_open

        file = self.folder / CHECKPOINT
        if not file.is_file():
            return {}
        try:
            # The header alone is read. A run that is to be resumed checks the whole file.
            with safe_open(file, framework="np") as opened:
                facts = json.loads(opened.metadata()["facts"])
            return _counts_of(read_back(self.folder, facts))
        except (OSError, SafetensorError, ConfigError, ValueError, KeyError, TypeError):
            self.problems.append(f"{CHECKPOINT} is damaged and was left out.")
            return {}


def _counts_of(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of `counts.json` that follows from a checkpoint."""
    evaluated = [line for line in facts["rounds"] if "evaluated_model" in line]
    last, exact = facts["last"], None
    if last is not None and evaluated:
        exact = {"simulation_only": evaluated[-1]["simulation_only"], "confusion": last["confusion"], "clients": {}}
    return {
        "classes": facts["agreed"]["classes"],
        "evaluated_model": evaluated[-1]["evaluated_model"] if evaluated else None,
        "exact": exact,
        "private": None,
        "clients": {name: {"units": units} for name, units in facts["clients"].items()},
        "images": None,
    }
