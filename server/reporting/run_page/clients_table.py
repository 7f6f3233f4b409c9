"""Tables of clients by class and by client."""

import math
from collections.abc import Mapping
from itertools import islice
from typing import Any

import numpy as np

from common.metrics import interval, wilson_interval
from common.page.blocks import (
    MISSING,
    Block,
    Cell,
    Matrix,
    Notice,
    PixelMap,
    Section,
    Table,
    epsilon_cell,
    name_cell,
    number_cell,
    pointer,
    share_cell,
    text,
)
from common.page.chart_geometry import pixel_image
from server.reporting.run_page.run_files import PRIVACY, RunFiles
from server.reporting.run_page.utility import MAX_COUNTED, SIMULATION_ONLY

_MAX_CLIENTS = 30
# A page of more would be larger than a browser likes.
_MAX_LISTED, _MAX_CELLS = 1000, 200_000


def clients_classes_section(files: RunFiles) -> Section:
    """Return the number of images of each class at each client."""
    images, exact = files.counts.get("images"), files.counts.get("exact") or {}
    blocks: list[Block] = []
    held_out = {name: client["by_class"] for name, client in exact.get("clients", {}).items()}
    if held_out and not exact["simulation_only"]:
        at = (files.counts_from, "exact", "clients")
        blocks.append(_by_class("Held-out images, which each client counts", files, held_out, (*at,), "by_class"))
    if images:
        at = (files.counts_from, "images", "clients")
        whole = _by_class("All images", files, images["clients"], at, None)
        blocks.append(Notice("simulation", SIMULATION_ONLY, (whole,)))
    if not blocks:
        why = "Clients do not send how many images of each class they hold, so the server does not know it."
        blocks.append(text(why if files.private else f"{files.counts_from} has no counts by client."))
    return Section("mix", "Clients and classes", tuple(blocks))


def _by_class(
    title: str, files: RunFiles, counts: Mapping[str, list[int]], at: tuple[str, ...], key: str | None
) -> Block:
    if len(counts) * len(files.classes) > _MAX_CELLS:
        counts = dict(islice(counts.items(), max(1, _MAX_CELLS // len(files.classes))))
        title = f"{title} of the first {len(counts):,} clients"
    numbers = np.array(list(counts.values()), dtype=np.int64).reshape(len(counts), -1)
    shares = numbers / max(1, int(numbers.max(initial=1)))
    clients, classes = tuple(map(name_cell, counts)), tuple(map(name_cell, files.classes))
    ending = () if key is None else (key,)
    if len(clients) <= _MAX_CLIENTS and len(classes) <= MAX_COUNTED:
        cells = tuple(
            tuple(number_cell(count, pointer(*at, name, *ending, place)) for place, count in enumerate(line))
            for name, line in counts.items()
        )
        return Matrix(title, "client \\ class", clients, classes, cells, tuple(map(tuple, shares.tolist())))
    rows = tuple(
        (
            classes[place],
            number_cell(int(column.sum())),
            number_cell(int(column.min())),
            number_cell(float(np.median(column)), decimals=1),
            number_cell(int(column.max())),
            number_cell(int((column == 0).sum())),
        )
        for place, column in enumerate(numbers.T)
    )
    columns = ("class", "images", "least at a client", "median", "most", "clients without")
    table = Table(f"{title} by class; {files.counts_from} has every client's", columns, rows)
    names = tuple(cell.text for cell in classes), tuple(cell.text for cell in clients)
    return PixelMap(title, "class", "client", *names, numbers.T.tolist(), pixel_image(shares.T), table)


def clients_section(files: RunFiles) -> Section:
    """Return the table by client, in the order of their names."""
    facts = files.counts.get("clients", {})
    stated = files.privacy.get("clients", {}) if files.private else {}
    everybody = sorted({*facts, *stated})
    names = everybody[:_MAX_LISTED]
    if not names:
        return Section("clients", "Each client", (text("No client has agreed to the run yet."),))
    unit = files.privacy.get("privacy_unit", "image")
    unit = "image" if unit == "client" else unit
    columns = ["client", f"{unit}s declared", "rounds taken part"]
    private, exact = files.counts.get("private"), files.counts.get("exact") or {}
    open_counts = exact.get("clients", {}) if not exact.get("simulation_only") else {}
    if private:
        columns.append("accuracy, private")
    if open_counts:
        columns += ["accuracy", "held-out images"]
    if stated:
        columns += ["epsilon", "epsilon by RDP", "rounds charged"]
    rows = []
    for name in names:
        cells = [name_cell(name), _units(files, name), _taken_part(files, name)]
        if private:
            cells.append(_noised(private["clients"].get(name), (files.counts_from, "private", "clients", name)))
        if open_counts:
            cells += _counted(open_counts.get(name))
        if stated:
            cells += _stated(stated.get(name), name)
        rows.append(tuple(cells))
    of_all = f" of {len(everybody):,}" if len(everybody) > len(names) else ""
    table = Table(
        f"{len(names):,}{of_all} clients, in the order of their names", tuple(columns), tuple(rows), sortable=True
    )
    return Section("clients", "Each client", (*_remarks(files, bool(open_counts)), table, *_hidden(files)))


def _remarks(files: RunFiles, has_accuracy: bool) -> tuple[Block, ...]:
    remarks = []
    if files.private:
        target = files.config.get("privacy.target-epsilon")
        aim = f"The run's own cap is privacy.target-epsilon = {target}. " if target not in (None, "") else ""
        own = "Each client's own cap is in its policy, which refuses a run above it and which the server does not see."
        remarks.append(text(f"{aim}{own}"))
    if has_accuracy or files.counts.get("private"):
        remarks.append(
            text(
                "Clients hold different classes in different numbers, so a lower accuracy may mean harder images. "
                "Do not rank clients by it: look at the intervals first.",
                small=True,
            )
        )
    return tuple(remarks)


def _units(files: RunFiles, name: str) -> Cell:
    stated = files.privacy.get("clients", {}).get(name, {})
    # Under client-level privacy the plan's units are clients.
    if files.private and "num_units" in stated and files.privacy.get("privacy_unit") != "client":
        return number_cell(stated["num_units"], pointer(PRIVACY, "clients", name, "num_units"))
    facts = files.counts.get("clients", {}).get(name, {})
    return number_cell(facts.get("units"), pointer(files.counts_from, "clients", name, "units"))


def _taken_part(files: RunFiles, name: str) -> Cell:
    """Return the rounds that took a client's update, a dash if no file knows."""
    facts = files.counts.get("clients", {}).get(name, {})
    if facts.get("asked") == 0:
        return Cell("not asked")
    if "asked" in facts:
        return Cell(f"{facts['asked'] - facts['missed']} of {facts['asked']}", strong=bool(facts["missed"]))
    if files.config.get("client-fraction") != 1.0:
        return MISSING
    first = files.summary.get("joined_late", {}).get(name, 1)
    asked = [line for line in files.rounds if line["round"] >= first and not line.get("skipped")]
    return Cell(f"{sum(name not in line['failures'] for line in asked)} of {len(asked)}")


def _noised(found: Mapping[str, Any] | None, at: tuple[str, ...]) -> Cell:
    if found is None or found["accuracy_stddev"] is None or found["accuracy_stddev"] > 1:
        return MISSING
    ends = interval(found["accuracy"], found["accuracy_stddev"])
    return share_cell(found["accuracy"], pointer(*at, "accuracy"), *ends)


def _counted(found: Mapping[str, Any] | None) -> list[Cell]:
    """Return the accuracy by exact counts with its number of images."""
    images = 0 if found is None else sum(found["by_class"])
    if found is None or not images:
        return [MISSING, Cell("0")]
    low, high = wilson_interval(np.array([found["right"]]), np.array([images]))
    return [share_cell(found["right"] / images, "", float(low[0]), float(high[0])), number_cell(images)]


def _stated(found: Mapping[str, Any] | None, name: str) -> list[Cell]:
    if found is None:
        return [MISSING] * 3
    at = (PRIVACY, "clients", name)
    finite = {
        key: value if value is not None and math.isfinite(value) else None
        for key, value in found.items()
        if key in ("epsilon", "epsilon_rdp")
    }
    return [
        epsilon_cell(finite["epsilon"], pointer(*at, "epsilon")),
        epsilon_cell(finite["epsilon_rdp"], pointer(*at, "epsilon_rdp")),
        number_cell(found["rounds"], pointer(*at, "rounds")),
    ]


def _hidden(files: RunFiles) -> tuple[Block, ...]:
    """Return the exact accuracy of each client of a simulation."""
    exact = files.counts.get("exact") or {}
    if not exact.get("simulation_only") or not exact.get("clients"):
        return ()
    rows = tuple(
        (name_cell(name), *_counted(client)) for name, client in sorted(exact["clients"].items())[:_MAX_LISTED]
    )
    columns = ("client", "accuracy", "held-out images")
    return (Notice("simulation", SIMULATION_ONLY, (Table("Exact accuracy by client", columns, rows, sortable=True),)),)
