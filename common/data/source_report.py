"""Report on a source with counts, sizes, formats, bad files and duplicates."""

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from common.config.sections import DataConfig
from common.data.decoding import count_pages, read_image
from common.data.duplicates import METHOD, Sketches, find_equal, find_near
from common.data.partitioning.subgroups import subgroups_of
from common.data.scan import Scan, scan_source
from common.data.sources.base_source import Entries, ImageSource
from common.data.tones.range_report import range_lines, special_images, value_ranges
from common.data.tones.rendering import Tones, render
from common.system.progress import ProgressFactory

if TYPE_CHECKING:
    from rich.console import Console

_MAX_SHOWN = 20
_MAX_SHOWN_CLASSES = 60
_PAGED = ("TIFF", "GIF", "WEBP", "AVIF")  # formats whose files may hold several pages or frames


def inspect_source(source: ImageSource, progress: ProgressFactory, tones: Tones) -> dict[str, Any]:
    """Return the facts that `bract data inspect` reports, as plain values for JSON.

    Returns:
        Counts of entries; `notes` on how a table was read; `not_read` and `class_remarks` on what is left out;
        `classes` with train and test counts of usable images; `missing_classes`; `widths` and `heights`; `formats`;
        `channels`; `values`, the range of each depth; places of images that are `constant` or
        `black_below_transparency`, and the number of `transparent` ones; `several_pages`, files of which
        one page is read; `units`; `clients`; `bad`, each unusable entry
        once; `duplicates` and `near_duplicates`.

    Raises:
        DataError: The source as a whole cannot be read.
    """
    entries = source.entries
    sketches = Sketches.empty(len(entries.labels))
    seen = np.zeros(len(entries.labels), dtype=bool)

    def sketch(row: int, image: Any, digest: bytes) -> None:
        del digest
        sketches.note(row, image)
        seen[row] = True

    # Images are compared in the tones that a model sees: two dark scans of 12 bits are alike in their upper 8 bits.
    scan = scan_source(source, progress=progress, sink=sketch if tones.neutral else None)
    # Images whose results were read back from an earlier scan have not been sketched yet.
    left = np.flatnonzero(scan.usable & ~seen)
    advance = progress(len(left), "Comparing images")
    for row, cell in entries.cells(left):
        sketch(row, render(read_image(cell), tones), b"")
        advance(1)
    return _facts(source, scan) | _duplicates(entries, scan, sketches)


def _facts(source: ImageSource, scan: Scan) -> dict[str, Any]:
    count = len(scan.labels)
    in_train = np.arange(count) < scan.num_train
    used = (scan.usable & in_train, scan.usable & ~in_train)
    per_class = [np.bincount(scan.labels[part], minlength=len(scan.classes)).tolist() for part in used]
    classes = [
        {"name": name, "train": train, "test": test} for name, train, test in zip(scan.classes, *per_class, strict=True)
    ]
    special = special_images(scan)
    bands = Counter(scan.channels[scan.usable].tolist())
    return {
        "source": source.name,
        "notes": list(source.notes),
        "entries": count,
        "not_read": list(source.not_read),
        "class_remarks": list(source.entries.class_remarks),
        "usable": int(scan.usable.sum()),
        "train": scan.num_train,
        "test": count - scan.num_train,
        "classes": classes,
        "missing_classes": [row["name"] for row in classes if not row["train"] + row["test"]],
        "widths": _spread(scan.widths[scan.usable]),
        "heights": _spread(scan.heights[scan.usable]),
        "formats": dict(Counter(kind for kind in scan.formats if kind).most_common()),
        "channels": {str(number): bands[number] for number in sorted(bands)},
        "values": value_ranges(scan),
        "constant": [source.entries.place(row) for row in special["constant"]],
        "transparent": len(special["transparent"]),
        "black_below_transparency": [source.entries.place(row) for row in special["black_below_transparency"]],
        "several_pages": _several_pages(source.entries, scan),
        "units": None if scan.unit_digests is None else len(np.unique(scan.unit_digests[scan.usable], axis=0)),
        "clients": None if scan.owners is None else len(scan.client_names),
        "bad": [{"place": fault.place, "reason": fault.reason} for fault in scan.faults],
    }


def subgroup_facts(data: DataConfig, scan: Scan) -> dict[str, dict[str, int]]:
    """Return the usable images of each subgroup, empty without subgroups.

    They are for the holder's own eyes: no message carries them.

    Raises:
        DataError: The source is not a table, or lacks the column.
    """
    places = subgroups_of(data, len(scan.labels))
    if places is None:
        return {}
    in_train = np.arange(len(scan.labels)) < scan.num_train
    parts = {"train": scan.usable & in_train, "test": scan.usable & ~in_train}
    counts = {part: np.bincount(places[rows], minlength=len(data.subgroup_names)) for part, rows in parts.items()}
    return {name: {part: int(counts[part][at]) for part in parts} for at, name in enumerate(data.subgroup_names)}


def _several_pages(entries: Entries, scan: Scan) -> list[dict[str, Any]]:
    """Return the place and the number of pages of files that have several."""
    rows = np.array([row for row, kind in enumerate(scan.formats) if kind in _PAGED], dtype=np.int64)
    counts = ((row, count_pages(cell)) for row, cell in entries.cells(rows))
    return [{"place": entries.place(row), "pages": count} for row, count in counts if count > 1]


def _spread(values: np.ndarray) -> dict[str, int] | None:
    if not len(values):
        return None
    return {"min": int(values.min()), "median": int(np.median(values)), "max": int(values.max())}


def _duplicates(entries: Entries, scan: Scan, sketches: Sketches) -> dict[str, Any]:
    rows = np.flatnonzero(scan.usable)
    train, test = rows[rows < scan.num_train], rows[rows >= scan.num_train]
    groups = find_equal(scan.digests, rows)
    near = find_near(sketches, test, train) if len(test) else find_near(sketches, train, None)
    digests = scan.digests
    return {
        "duplicates": [
            {
                "places": [entries.place(row) for row in group],
                "across_train_and_test": group[0] < scan.num_train <= group[-1],
                "labels_differ": len(set(scan.labels[group].tolist())) > 1,
            }
            for group in groups
        ],
        "near_duplicates": [
            {"places": [entries.place(left), entries.place(right)], "correlation": round(score, 3)}
            for left, right, score in near
            if not np.array_equal(digests[left], digests[right])
        ],
        "near_duplicates_between": "train and test" if len(test) else "all images",
        "near_duplicates_method": METHOD,
    }


def show_facts(facts: Mapping[str, Any], console: "Console") -> None:
    """Print the facts of `inspect_source` for people."""
    from rich.markup import escape

    from common.system.console import printable

    def say(text: str) -> None:
        console.print(escape(printable(text)), highlight=False, soft_wrap=True)

    say(
        f"{facts['source']}: {facts['entries']:,} images, {facts['usable']:,} usable; {facts['train']:,} for training, "
        f"{facts['test']:,} in a test part of its own"
    )
    for note in facts["notes"]:
        say(f"Table    {note}")
    _show_classes(facts, console)
    if facts["not_read"]:
        say(f"Not read: {'; '.join(facts['not_read'])}")
    for remark in facts["class_remarks"]:
        say(f"Classes: {remark}")
    if len(used := [row["name"] for row in facts["classes"] if row["train"] + row["test"]]) == 1:
        say(
            f"Classes: {used[0]} is the only one, and a classifier needs at least two: name a folder with one "
            "sub-folder per class, or a table"
        )
    if facts["missing_classes"]:
        say(f"Classes without a usable image: {', '.join(facts['missing_classes'])}")
    for name in ("widths", "heights"):
        if spread := facts[name]:
            say(f"{name.capitalize():<9}{spread['min']} to {spread['max']} pixels, median {spread['median']}")
    say(f"Formats  {', '.join(f'{kind} {count:,}' for kind, count in facts['formats'].items()) or 'none'}")
    say(f"Channels {', '.join(f'{number}: {count:,}' for number, count in facts['channels'].items()) or 'none'}")
    for line in range_lines(facts["values"]):
        say(line)
    for name in ("units", "clients"):
        if facts[name] is not None:
            say(f"{name.capitalize():<9}{facts[name]:,}")
    if subgroups := facts.get("subgroups"):
        counts = ", ".join(f"{name} {part['train'] + part['test']:,}" for name, part in subgroups.items())
        say(f"Subgroups {counts} (seen here only)")
    for line in _problem_lines(facts):
        say(line)


def _show_classes(facts: Mapping[str, Any], console: "Console") -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table("class", title=None)
    for name in ("train", "test"):
        table.add_column(name, justify="right")
    rows = facts["classes"]
    for row in rows[:_MAX_SHOWN_CLASSES]:
        table.add_row(Text(row["name"]), f"{row['train']:,}", f"{row['test']:,}")
    console.print(table)
    if len(rows) > _MAX_SHOWN_CLASSES:
        console.print(f"and {len(rows) - _MAX_SHOWN_CLASSES} more classes; --json has all")


def _problem_lines(facts: Mapping[str, Any]) -> list[str]:
    bad, equal, near = facts["bad"], facts["duplicates"], facts["near_duplicates"]
    across = [group for group in equal if group["across_train_and_test"]]
    lines = [f"Bad files: {len(bad):,}", *(f"  {fault['place']}: {fault['reason']}" for fault in bad)]
    if facts["constant"]:
        lines.append(f"Images of one value everywhere: {len(facts['constant']):,}")
        lines += _shortened([f"  {place}" for place in facts["constant"]])
    if pages := facts["several_pages"]:
        lines.append(f"Files of several pages or frames, of which the first is read: {len(pages):,}")
        lines += _shortened([f"  {row['place']} ({row['pages']:,})" for row in pages])
    if facts["transparent"]:
        black = facts["black_below_transparency"]
        lines.append(
            f"Images with transparent pixels: {facts['transparent']:,}, black below them: {len(black):,} "
            "(data.background=white or black shows what a viewer shows)"
        )
        lines += _shortened([f"  {place}" for place in black])
    lines.append(f"Equal images: {len(equal):,} groups, {len(across):,} of them across train and test")
    lines += _shortened([_group_line(group) for group in equal])
    lines.append(
        f"Near-duplicates between {facts['near_duplicates_between']}: {len(near):,} (look at them: they may be "
        "different images)"
    )
    lines += _shortened([f"  {'  ~  '.join(pair['places'])}  ({pair['correlation']:.3f})" for pair in near])
    return [*lines, f"  method: {facts['near_duplicates_method']}"]


def _group_line(group: Mapping[str, Any]) -> str:
    return f"  {'  =  '.join(group['places'])}{'  (under different classes)' if group['labels_differ'] else ''}"


def _shortened(lines: list[str]) -> list[str]:
    if len(lines) <= _MAX_SHOWN:
        return lines
    return [*lines[:_MAX_SHOWN], f"  and {len(lines) - _MAX_SHOWN:,} more; --json has all"]
