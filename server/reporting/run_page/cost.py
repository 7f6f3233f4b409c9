"""Bytes, seconds and epsilon of a run by round."""

import math
from collections.abc import Sequence

from common.page.blocks import (
    MISSING,
    Block,
    Cell,
    LineChart,
    Section,
    Series,
    Table,
    epsilon_cell,
    number_cell,
    pointer,
    text,
)
from common.privacy.accounting import Spent
from server.reporting.run_page.run_files import ROUNDS, SUMMARY, RunFiles


def cost_section(files: RunFiles) -> Section:
    """Return what each round took."""
    if not files.rounds:
        return Section("cost", "Bytes and seconds", (text("No round is complete, so nothing was sent or measured."),))
    x = tuple(float(line["round"]) for line in files.rounds)
    rows = tuple(
        (
            number_cell(line["round"], pointer(ROUNDS, place, "round")),
            number_cell(line["clients"], pointer(ROUNDS, place, "clients")),
            number_cell(line["bytes_up"], pointer(ROUNDS, place, "bytes_up")),
            number_cell(line["bytes_down"], pointer(ROUNDS, place, "bytes_down")),
            number_cell(line["seconds"], pointer(ROUNDS, place, "seconds"), 3),
        )
        for place, line in enumerate(files.rounds)
    )
    columns = ("round", "clients", "bytes up", "bytes down", "seconds")
    table = Table("Bytes of each client and seconds, by round", columns, rows, (True,) * 5)
    up, down, seconds = (tuple(line[key] for line in files.rounds) for key in ("bytes_up", "bytes_down", "seconds"))
    traffic = (Series("from a client", up), Series("to a client", down, look=2))
    sent = sum((line["bytes_up"] + line["bytes_down"]) * line["clients"] for line in files.rounds)
    blocks: list[Block] = [
        text(
            "A client sent ",
            number_cell(
                files.summary.get("bytes_up_per_round_per_client"), pointer(SUMMARY, "bytes_up_per_round_per_client")
            ),
            " bytes a round and got ",
            number_cell(
                files.summary.get("bytes_down_per_round_per_client"),
                pointer(SUMMARY, "bytes_down_per_round_per_client"),
            ),
            f", as means over clients and rounds. All rounds together moved about {sent / 1e6:,.1f} MB.",
        ),
        LineChart("Bytes a round, for each client", "round", "bytes", x, traffic, table),
        LineChart("Seconds a round", "round", "seconds", x, (Series("seconds", seconds),), table),
    ]
    if phases := files.summary.get("seconds"):
        of_phases = tuple(
            (Cell(name.replace("_", " ")), number_cell(value, pointer(SUMMARY, "seconds", name), 1))
            for name, value in phases.items()
        )
        blocks.append(Table("Seconds by phase", ("phase", "seconds"), of_phases))
    return Section("cost", "Bytes and seconds", tuple(blocks))


def epsilon_chart(files: RunFiles, spent: Sequence[Spent]) -> Block:
    """Return the curve of epsilon so far beside the whole plan's."""
    numbers = [line["round"] for line in files.rounds]
    whole = files.privacy["epsilon_max"]
    finite = [so_far.pld if math.isfinite(so_far.pld) else None for so_far in spent]
    rows = tuple(
        (
            Cell(str(number)),
            MISSING if value is None else epsilon_cell(value),
            epsilon_cell(so_far.rdp) if math.isfinite(so_far.rdp) else MISSING,
        )
        for number, so_far, value in zip(numbers, spent, finite, strict=False)
    )
    series = (
        Series("so far, at most", tuple(finite)),
        Series("whole plan", (whole if whole is not None and math.isfinite(whole) else None,) * len(rows), look=2),
    )
    table = Table("Epsilon so far", ("round", "epsilon (PLD)", "epsilon (RDP)"), rows, (True,) * 3)
    return LineChart(
        "Epsilon so far, of the client with the largest", "round", "epsilon", tuple(map(float, numbers)), series, table
    )
