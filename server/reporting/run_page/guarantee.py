"""Privacy statement of a run in plain words with its audits."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from common.errors import ConfigError
from common.page.blocks import (
    MISSING,
    Block,
    Cell,
    Section,
    Table,
    epsilon_cell,
    name_cell,
    pointer,
    text,
    words,
)
from common.privacy.accounting import Spent
from common.privacy.mechanisms.registry import mechanism_named
from server.reporting.run_page.cost import epsilon_chart
from server.reporting.run_page.gaps import GRADES, gap_of
from server.reporting.run_page.run_files import PRIVACY, RunFiles

_PARTS = {
    "trained": "epsilon of units that trained",
    "trained_labels": "of which the label counts alone",
    "held_out": "epsilon of held-out units",
    "held_out_rounds": "of which the counts of rounds alone",
    "held_out_closing": "of which the closing counts alone",
}


def most_often_right(epsilon: float, delta: float) -> float:
    """Return how often an observer can at most tell whether a unit took part.

    The observer knows all else and would be right half of the time without the run.

    Source: Kairouz, Oh and Viswanath 2015, arXiv:1311.0776 (total variation of an (epsilon, delta) pair).

    >>> most_often_right(0.0, 0.0), round(most_often_right(1.0, 1e-5), 4)
    (0.5, 0.7311)
    """
    odds = math.exp(-epsilon)
    return min(1.0, (1 + delta * odds) / (1 + odds))


def privacy_section(files: RunFiles, spent: Sequence[Spent]) -> Section:
    """Return who is protected against whom."""
    privacy = files.privacy
    if not privacy:
        return Section(
            "privacy", "Privacy", (text("The run has no privacy statement yet: no client has agreed to it."),)
        )
    blocks: list[Block] = [text(Cell(words(privacy["statement"]), strong=True), ".")]
    if files.simulated:
        blocks.append(
            text("This was a simulation: one machine held all images. Real clients would have got this statement.")
        )
    blocks += [_answers(files), _gaps(files.not_protected)]
    if files.private:
        blocks.append(_terms(files))
    if files.sums:
        blocks.append(_sums(files.sums))
    if spent and privacy.get("clients"):
        blocks.append(epsilon_chart(files, spent))
        note = (
            "Epsilon so far is for looking: a run that stops early for a reason that depends on images is charged its "
            "whole plan. Of more than 40 rounds some have the bound of a later one."
        )
        if not files.complete:
            note += " The closing counts come on top."
        blocks.append(text(note, small=True))
    return Section("privacy", "Privacy", tuple(blocks))


def _answers(files: RunFiles) -> Table:
    """Return what a newcomer asks first."""
    privacy = files.privacy
    if files.private:
        unit = privacy["privacy_unit"]
        whose, learn = _whose(files), _learn(unit, privacy["epsilon_max"], privacy["delta"])
    else:
        whose, learn = "Nobody. The run has no privacy mechanism.", "Nothing bounds it. See the gaps below."
    asked = (
        ("Did images leave a client?", _left(files)),
        ("Who is protected?", whose),
        ("Who must be trusted?", _trust(files)),
        ("What could somebody learn?", learn),
        ("What could still leak?", _leaks(files.not_protected)),
        *([("Does another run cost more?", _AGAIN)] if files.private else []),
    )
    rows = tuple((Cell(question), Cell(answer)) for question, answer in asked)
    return Table("In plain words", ("question", "answer"), rows, (False, False))


_AGAIN = (
    "Yes. Each run over the same images adds to what they have spent. Each client's ledger keeps the sum, and its "
    "policy says how large it may become. The epsilon of this page is of this run alone."
)
_UNKNOWN = "This version does not know the run's mechanism."
_SUMS = "sums over the features of the training images, for all and by class"
_COUNTS = {"private": "as counts with noise", "exact": "as exact counts"}


def _release(files: RunFiles) -> str:
    """Return how counts of held-out images left, as far as a file says it."""
    stated = files.privacy.get("metrics")
    return str(stated.get("release") if isinstance(stated, dict) else files.summary.get("metrics"))


def _whose(files: RunFiles) -> str:
    unit = files.privacy["privacy_unit"]
    if unit == "client":
        return "Each client as a whole, with all of its images."
    # Exact counts of held-out images are a gap that no epsilon covers.
    held_out = "" if _release(files) == "exact" else ", whether it trained or tested the model"
    text = f"Each {unit} of each client, one at a time{held_out}."
    if unit == "image":
        text += " Several images of one person are protected less than one, because their costs add up."
    return text


def _left(files: RunFiles) -> str:
    """Return what left the clients, in words."""
    try:
        mechanism = mechanism_named(files.privacy["mechanism"])
    except ConfigError:
        return _UNKNOWN
    counts = _COUNTS.get(_release(files), "")
    masked = ", under masks that cancel in the sum of all clients" if files.sums else ""
    method = files.config.get("training.method") or mechanism.methods[0]
    update = _SUMS if method == "statistics" else "the changes that training made to the model"
    groups = "by class and by subgroup" if files.config.get("data.subgroups") else "by class"
    parts = [
        f"{update}, with{'' if mechanism.noise_at_client else 'out'} noise{masked}",
        *([f"how many predictions were right, {groups}, {counts}{masked}"] if counts else []),
        "each client's name and declared number of images",
        *(["the signed head of its ledger"] if mechanism.noise_at_client else []),
    ]
    return f"No image, no label and no file name did. What left: {'; '.join(parts)}."


def _leaks(stated: Sequence[str]) -> str:
    """Return how bad the gaps are that the next table lists."""
    grades = [gap.grade for one in stated if (gap := gap_of(one))]
    if critical := grades.count("critical"):
        return f"Gaps in the next table that are critical: {critical}. Read them first."
    return "Nothing that is graded critical. The next table lists all that is known, the worst first."


def charged_words(files: RunFiles) -> str:
    """Return what is charged, in words."""
    if files.complete or files.stopped:
        return str(files.privacy["charged"])
    return "the whole plan, until the run is complete"


def _terms(files: RunFiles) -> Table:
    """Return the terms of the guarantee."""
    privacy = files.privacy
    bound, by_rdp = privacy["epsilon_max"], privacy["epsilon_max_rdp"]
    charged = "; ".join(filter(None, (charged_words(files), privacy.get("scope"))))
    rows = [
        ("epsilon of the whole run (PLD)", epsilon_cell(bound, pointer(PRIVACY, "epsilon_max"))),
        *_alone_term(privacy),
        ("epsilon by a second accountant (RDP)", epsilon_cell(by_rdp, pointer(PRIVACY, "epsilon_max_rdp"))),
        ("delta, about the chance that epsilon does not hold", _delta(privacy["delta"])),
        *(
            (_PARTS.get(name, name), epsilon_cell(value, pointer(PRIVACY, "epsilon_parts", name)))
            for name, value in privacy.get("epsilon_parts", {}).items()
        ),
        *_noise_terms(privacy.get("clients", {})),
        ("charged", Cell(charged)),
        ("kept in", Cell(privacy["ledger"])),
        ("accountant", Cell(privacy["accountant"])),
        ("neighbouring data", Cell(f"{privacy['neighboring_relation']}; sampling: {privacy['sampling_method']}")),
        ("noise", Cell(privacy["floating_point"])),
    ]
    table_rows = tuple((Cell(term), value) for term, value in rows)
    return Table("Terms of the guarantee", ("term", "value"), table_rows, (False, False))


def _alone_term(privacy: Mapping[str, Any]) -> list[tuple[str, Cell]]:
    """Return the row without other honest clients, empty without noise in shares."""
    if not privacy.get("noise_shares"):
        return []
    return [("if all other clients collude with the server", Cell(privacy["if_all_others_collude"]))]


def _sums(stated: Mapping[str, Any]) -> Table:
    """Return what secure sums rest on."""
    present = stated["present"]
    rows = (
        ("what the server saw", words(stated["statement"])),
        ("clients on the roster", str(stated["num_clients"])),
        ("clients that may collude with the server", f"at most {stated['colluding']}"),
        ("clients that must be honest in each sum", f"at least {stated['honest']}"),
        ("least clients in a sum", str(stated["min_survivors"])),
        ("digest of the roster", stated["roster"] or "not known before the set-up"),
        ("clients at the set-up", MISSING if present is None else words(", ".join(present))),
        ("not checked", words(stated["not_checked"])),
    )
    table_rows = tuple((Cell(term), value if isinstance(value, Cell) else Cell(value)) for term, value in rows)
    return Table("Secure sums", ("term", "value"), table_rows, (False, False))


def _delta(delta: float) -> Cell:
    return Cell(f"{delta:g}", delta, pointer(PRIVACY, "delta"))


def _noise_terms(clients: Mapping[str, Any]) -> list[tuple[str, Cell]]:
    """Return noise and steps of the clients' training, from the smallest to the largest."""
    events = [event for one in clients.values() for event in one["events"]["training"] if "steps" in event]
    terms = {
        "noise multiplier": ("noise-multiplier", "of the noise in a step over what one unit can change in it"),
        "chance to be in a step": ("sample-rate", "of each unit; 1: it is in every step"),
        "noised steps": ("steps", "that are charged"),
    }
    if not events:
        return []
    found = []
    for term, (key, meaning) in terms.items():
        least, most = min(event[key] for event in events), max(event[key] for event in events)
        span = f"{least:.4g}" if least == most else f"{least:.4g} to {most:.4g}, by client"
        found.append((term, Cell(f"{span} ({meaning})")))
    return found


def _trust(files: RunFiles) -> str:
    """Return who must be believed for the guarantee to hold."""
    try:
        mechanism = mechanism_named(files.privacy["mechanism"])
    except ConfigError:
        return _UNKNOWN
    sums = files.sums
    if not mechanism.private and sums:
        return (
            "Everybody who sees a sum or the model: nothing bounds what these say. And the other clients: if more than "
            f"{sums['colluding']} of {sums['num_clients']} collude with the server, they see a client's own update."
        )
    if not mechanism.private:
        return "Everybody who sees a message of a client: the server, and whoever runs or breaks into it."
    if mechanism.noise_at_server:
        return "The server, and whoever runs it: it sees each client's exact update and adds the noise itself."
    bundles = files.privacy.get("bundles", {})
    unpinned = sum(not digest for digest in bundles.values())
    own = "Each client adds its noise before anything leaves, so nobody who gets its messages must be trusted"
    if shares := files.privacy.get("noise_shares"):
        alone = files.privacy["if_all_others_collude"]
        own = (
            f"Each client adds a share of the noise, so {shares} clients of each sum must be honest, its own among "
            f"them. If all others collude with the server: {alone}. The server need not be trusted"
        )
    if not unpinned:
        return f"{own}, and each client runs only code that it has pinned."
    return f"{own}. But {unpinned} of {len(bundles)} clients run whatever code the server sends."


def _learn(unit: str, epsilon: float | None, delta: float) -> str:
    if epsilon is None or not math.isfinite(epsilon):
        return "Epsilon is so large that it promises nothing."
    percent = _percent(epsilon, delta)
    return (
        f"Take somebody who sees all that left the clients, the model too, knows all else, and asks if one {unit} took "
        f"part. With a coin they are right half of the time. With the run they are right at most {percent:g} % of the "
        "time, whatever they compute. Epsilon is the number that says so: the smaller, the closer to 50 %. Epsilon 1 "
        f"means at most {_percent(1.0, delta):g} %, epsilon 0.1 at most {_percent(0.1, delta):g} %. It is the worst "
        "case; audits measure what attacks achieve."
    )


def _percent(epsilon: float, delta: float) -> float:
    return math.ceil(10_000 * most_often_right(epsilon, delta)) / 100


def _gaps(stated: Sequence[str]) -> Table:
    """Return what is not protected, the worst first."""
    order = [*GRADES, ""]
    found = [(gap, gap_of(gap)) for gap in stated]
    found.sort(key=lambda pair: order.index(pair[1].grade if pair[1] else ""))
    rows = tuple(
        (
            Cell(grade.grade, grade=grade.grade) if grade else Cell("not graded"),
            Cell(words(gap)),
            Cell(grade.meaning if grade else "This version does not know this gap."),
        )
        for gap, grade in found
    )
    meaning = "; ".join(f"{grade}: {words}" for grade, words in GRADES.items())
    return Table(f"Not protected ({meaning})", ("grade", "what is not protected", "what it means"), rows, (False,) * 3)


def audits_section(files: RunFiles) -> Section:
    """Return the attacks that were made on the run, with their bounds."""
    if not files.audits:
        advice = "`bract audit layers --run DIR` and `bract audit empirical --run DIR` attach what they find."
        return Section("audits", "Audits", (text(f"Nobody has attached an audit to this run. {advice}"),))
    upper = files.privacy.get("epsilon_max")
    rows = []
    for kind, audit in files.audits.items():
        lower = audit.get("epsilon_lower_bound")
        cell = Cell(f"{lower:.3f}", lower) if isinstance(lower, int | float) else MISSING
        rows.append(
            (
                name_cell(kind),
                Cell(str(audit.get("verdict")), strong=True),
                cell,
                epsilon_cell(upper, pointer(PRIVACY, "epsilon_max")),
                Cell(words(str(audit.get("sentence")))),
            )
        )
    columns = ("audit", "verdict", "lower bound", "upper bound", "in words")
    table = Table("Attacks on the run", columns, tuple(rows), (False, False, True, True, False))
    note = "A lower bound says what one attack achieved. It is not a guarantee; the upper bound is."
    return Section("audits", "Audits", (table, text(note, small=True)))
