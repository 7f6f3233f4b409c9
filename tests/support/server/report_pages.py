"""Runs of many kinds, with readers of their pages and tables."""

import csv
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from common.config.loading import Scalar
from common.system.console import printable
from server.reporting.run_page.report import REPORT
from tests.support.server.run_folders import HOSTILE, OPEN, PRIVATE, RunOnDisk

FAULTY = RunOnDisk(
    PRIVATE,
    clients=("north", "south", "east", "west", "centre"),
    rounds=6,
    planned=6,
    failures={2: {"south": "TIMEOUT"}, 3: {"south": "TIMEOUT", "east": "LOST"}},
    skipped=(5,),
    refusals={"node 77": "POLICY"},
    num_clients=7,
    simulated=False,
)
BY_SEX: dict[str, Scalar] = {"data.subgroup-column": "sex", "data.subgroups": "f,m"}
RUNS = {
    "private": RunOnDisk(PRIVATE),
    "open": RunOnDisk(OPEN),
    "real": FAULTY,
    "open-real": RunOnDisk(OPEN, simulated=False),
    "client-level": RunOnDisk({"privacy.mechanism": "client-dp", "privacy.noise-multiplier": 40.0}),
    "without-counts": RunOnDisk(PRIVATE | {"privacy.metrics": "none"}),
    "killed": RunOnDisk(PRIVATE, rounds=2, complete=False),
    "interrupted": RunOnDisk(PRIVATE, rounds=3, complete=False, interrupted=True),
    "before-the-first-round": RunOnDisk(PRIVATE, rounds=0, complete=False),
    "scored": RunOnDisk(PRIVATE | {"privacy.closing": "full", "data.classes": "cat,dog,owl"}, scored=True),
    "scored-open": RunOnDisk(OPEN | {"privacy.closing": "full", "data.classes": "cat,dog,owl"}, scored=True),
    "divided": RunOnDisk(PRIVATE | BY_SEX, divided=True),
    "divided-open": RunOnDisk(OPEN | BY_SEX, divided=True),
    "sums": RunOnDisk(PRIVATE | {"privacy.mechanism": "dp-statistics"}, rounds=1, planned=1),
    "sums-open": RunOnDisk(OPEN | {"training.method": "statistics"}, rounds=1, planned=1),
    "hostile": RunOnDisk(OPEN, clients=HOSTILE, classes=HOSTILE, failures={1: {HOSTILE[2]: "TIMEOUT"}}),
    "many-classes": RunOnDisk(PRIVATE, classes=[f"class {number}" for number in range(30)], rounds=2, planned=2),
}


def in_sums(settings: dict[str, Scalar]) -> RunOnDisk:
    """Return a run of five clients whose updates left in secure sums alone."""
    secure: dict[str, Scalar] = {"privacy.aggregation": "secure", "round-retries": 0, "min-clients": 4}
    return RunOnDisk(settings | secure, clients=("north", "south", "east", "west", "centre"), simulated=False)


class Page(HTMLParser):
    """Figures, texts and addresses of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.figures: list[tuple[str, str, str]] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.titles: list[str] = []
        self._open: dict[str, str | None] | None = None
        self._words, self._in = "", ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._in, self._words = tag, ""
        if tag == "data":
            self._open = dict(attrs)

    def handle_data(self, data: str) -> None:
        self._words += data

    def handle_endtag(self, tag: str) -> None:
        if tag == "data" and self._open is not None:
            self.figures.append((self._open.get("data-from") or "", self._open["value"] or "", self._words))
            self._open = None
        elif tag == "h2":
            self.titles.append(self._words)


def page_of(folder: Path) -> Page:
    return Page((folder / REPORT).read_text(encoding="utf-8"))


def rows_of(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(file.read_text(encoding="utf-8"))))


def value_at(folder: Path, source: str) -> Any:
    name, _, keys = source.partition("#/")
    text = (folder / name).read_text(encoding="utf-8")
    value: Any = [json.loads(line) for line in text.splitlines()] if name.endswith(".jsonl") else json.loads(text)
    for escaped in keys.split("/"):
        key = escaped.replace("~1", "/").replace("~0", "~")
        named = {printable(name, keep=""): part for name, part in value.items()} if isinstance(value, dict) else {}
        value = named[key] if named else value[int(key)]
    return value


def outside_boxes(text: str) -> str:
    return re.sub(r'<aside class="notice simulation".*?</aside>', "", text, flags=re.DOTALL)
