"""Verdict on a run with its planned and met clients."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from common.metrics import interval
from common.page.blocks import (
    Block,
    Cell,
    Notice,
    Part,
    Section,
    Text,
    Tile,
    Tiles,
    epsilon_cell,
    name_cell,
    number_cell,
    pointer,
    share_cell,
    text,
    words,
)
from common.privacy.mechanisms.registry import mechanism_named
from server.reporting.chance import compare_with_chance
from server.reporting.missing_clients import missing_text
from server.reporting.run_page.guarantee import charged_words
from server.reporting.run_page.run_files import PRIVACY, SUMMARY, RunFiles
from server.reporting.run_page.utility import SIMULATION_ONLY

# With more noise than this share of the largest class, nobody knows which class that is.
_MOST_NOISE = 0.1


def verdict_section(files: RunFiles) -> Section:
    """Return what was trained, how good it is and what it cost whom."""
    blocks: list[Block] = [text(*_trained(files), strong=True)]
    blocks.append(text(*_how_good(files), strong=True))
    blocks.append(text(*_cost(files), strong=True))
    warnings = [Text((words(warning),)) for warning in (*files.summary.get("warnings", ()), *files.problems)]
    if warnings and files.hidden and files.simulated:
        # A simulation's warnings may follow from exact figures.
        blocks.append(Notice("simulation", SIMULATION_ONLY, (text("Warnings of this run:"), *warnings)))
    elif warnings:
        blocks.append(Notice("warning", "Warnings", tuple(warnings)))
    tiles = _tiles(files)
    return Section("verdict", "Verdict", (*blocks, *((Tiles(tiles),) if tiles else ())))


def met_section(files: RunFiles) -> Section:
    """Return how many planned clients and images were absent."""
    summary, planned = files.summary, files.config.get("num-clients")
    if not summary:
        reason = f" It stopped: {words(files.stopped)}" if files.stopped else ""
        return Section("met", "Planned and met clients", (text(f"No round is complete yet.{reason}"),))
    met, all_met = summary["clients"], summary["clients"] == planned
    parts: list[Part] = [
        Cell(f"{met:,} of {_grouped(planned)}", met, pointer(SUMMARY, "clients"), strong=not all_met),
        " planned clients took part. A round asks ",
        number_cell(summary["cohort"], pointer(SUMMARY, "cohort")),
        " of them.",
    ]
    missing = summary.get("missing") or {"clients": {}, "never_joined": 0, "unit": "image"}
    absent = sum(one["share"] * one["missed"] / one["rounds"] for one in missing["clients"].values() if one["rounds"])
    if absent or missing["never_joined"]:
        parts += [" Absent: ", Cell(words(missing_text(missing)), strong=True), "."]
    # Nobody knows the sizes of clients that never came, so the share is over those that did.
    share = Cell(f"{absent:.1%}" if absent else "none", strong=absent > 0)
    parts += [
        " Over all rounds, ",
        share,
        f" of the declared {missing['unit']}s of the clients that joined were absent.",
    ]
    blocks: list[Block] = [text(*parts)]
    if summary["refusals"]:
        blocks.append(text("Clients that were online and did not take part are in the time line below."))
    unused = summary["images_unused"]
    if unused:
        left_out = text(number_cell(unused, pointer(SUMMARY, "images_unused")), " images were given to no client.")
        blocks.append(Notice("simulation", SIMULATION_ONLY, (left_out,)))
    return Section("met", "Planned and met clients", tuple(blocks))


def _trained(files: RunFiles) -> tuple[Part, ...]:
    config, summary = files.config, files.summary
    what = {"head": f"A {config.get('model.head', '')} head on"}.get(str(config.get("model.tuning")), "The network")
    model = f"{what} {config.get('model.backbone', 'a backbone')}"
    kind = "simulated" if files.simulated else "real"
    planned, classes = config.get("num-rounds"), len(files.classes)
    data = name_cell(str(config.get("data.source", "")).rsplit("/", 1)[-1]).text
    source = f" of {data}" if files.simulated else ""
    task = f" to tell {classes} classes{source} apart" if classes else source and f" with images{source}"
    if not summary:
        state = f"It stopped: {words(files.stopped)}" if files.stopped else "No round is complete yet."
        return (f"{model} was to be trained{task} over {planned} rounds. {state}",)
    rounds = number_cell(summary["rounds"], pointer(SUMMARY, "rounds"))
    clients = number_cell(summary["clients"], pointer(SUMMARY, "clients"))
    done: tuple[Part, ...] = (f"{model} was trained{task}, over ", rounds)
    if files.complete:
        early = (
            f" of {planned} planned rounds, because it was stopped early by its own rule,"
            if _early(files)
            else " rounds"
        )
        return (*done, f"{early} with ", clients, f" {kind} clients.")
    left = f" It stopped: {words(files.stopped)}" if files.stopped else " It is running, or was interrupted or killed."
    return (*done, f" of {planned} planned rounds with ", clients, f" {kind} clients: the run is not complete.{left}")


def _early(files: RunFiles) -> bool:
    return bool(files.summary.get("stopped_early"))


def _how_good(files: RunFiles) -> tuple[Part, ...]:
    summary = files.summary
    private = summary.get("private_metrics")
    if private:
        return _private_accuracy(files)
    if not summary or summary.get("accuracy") is None or files.hidden:
        return ("Nobody can say how good the model is: no counts of held-out images left the clients.",)
    accuracy = share_cell(summary["accuracy"], pointer(SUMMARY, "accuracy"))
    images = number_cell(summary["evaluated_examples"], pointer(SUMMARY, "evaluated_examples"))
    model = f" after round {summary['evaluated_model']}" if summary["evaluated_model"] != summary["final_model"] else ""
    exact = files.counts.get("exact")
    largest = _largest(np.array(exact["confusion"]), 0.0) if exact else ""
    return (f"The model{model} is right for ", accuracy, " of ", images, f" held-out images.{largest}")


def _private_accuracy(files: RunFiles) -> tuple[Part, ...]:
    private, at = files.summary["private_metrics"], (SUMMARY, "private_metrics")
    stddev = private["accuracy_stddev"]
    if _is_noise(private):
        return ("Nobody can say how good the model is: the noise of the private counts is larger than the counts.",)
    low, high = interval(private["accuracy"], stddev)
    counts = files.counts.get("private")
    largest = ""
    if counts and counts["evaluated_model"] == private["evaluated_model"]:
        spread = math.sqrt(counts["num_clients"]) * counts["noise_stddev"]
        largest = _largest(np.array(counts["confusion"]), spread)
    final = files.summary["final_model"]
    model = (
        "" if private["evaluated_model"] == final else f" after round {private['evaluated_model']}, not the final one,"
    )
    return (
        f"The model{model} is right for ",
        share_cell(private["accuracy"], pointer(*at, "accuracy")),
        f" ({low:.3f} to {high:.3f}) of the held-out images, by counts with noise as a real federation would see "
        f"them.{largest}",
    )


def _is_noise(private: Mapping[str, Any]) -> bool:
    return private["accuracy_stddev"] is None or private["accuracy_stddev"] > 1


def _grouped(number: object) -> str:
    return f"{number:,}" if isinstance(number, int) else str(number)


def _largest(confusion: np.ndarray, cell_stddev: float) -> str:
    compared = compare_with_chance(confusion, cell_stddev=cell_stddev)
    if not math.isfinite(compared.stddev) or not compared.largest_class > 0:
        return ""
    # The largest of many noised sums is the one with the most noise, and not the largest class.
    if cell_stddev * math.sqrt(len(confusion)) > _MOST_NOISE * compared.largest_class * confusion.sum():
        return ""
    return f" Always guessing the largest class would be right for {compared.largest_class:.3f}."


def _cost(files: RunFiles) -> tuple[Part, ...]:
    privacy = files.privacy
    if not privacy:
        return ("It has cost nobody anything yet: no client has agreed to the run.",)
    if not files.private:
        left = (
            "exact sums of updates and counts left the clients"
            if files.sums
            else ("updates and exact counts left every client")
        )
        return (
            Cell("NOT PRIVATE", strong=True),
            f": {left}, so whoever saw them may learn about single images, and nothing bounds how much.",
        )
    place = mechanism_named(privacy["mechanism"]).noise_place_short
    if shares := privacy.get("noise_shares"):
        alone = privacy["if_all_others_collude"]
        place = f"the clients in shares, of which {shares} in each sum must be honest ({alone} if all others collude)"
    charged = "" if privacy["charged"] == "rounds sent" else f" ({charged_words(files)})"
    return (
        f"It cost each {privacy['privacy_unit']} epsilon of at most ",
        epsilon_cell(privacy["epsilon_max"], pointer(PRIVACY, "epsilon_max")),
        " at delta ",
        Cell(f"{privacy['delta']:g}", privacy["delta"], pointer(PRIVACY, "delta")),
        f"{charged}, with noise added by {place}; the privacy section says what that means.",
    )


def _tiles(files: RunFiles) -> tuple[Tile, ...]:
    summary, privacy = files.summary, files.privacy
    if not summary:
        return ()
    tiles = []
    private = summary.get("private_metrics")
    if private and _is_noise(private):
        tiles.append(Tile("accuracy, private", Cell("only noise"), "the counts are smaller than their noise"))
    elif private:
        cell = share_cell(private["accuracy"], pointer(SUMMARY, "private_metrics", "accuracy"))
        tiles.append(Tile("accuracy, private", cell, f"± {private['accuracy_stddev']:.3f} of noise"))
    elif summary["accuracy"] is not None and not files.hidden:
        note = f"of {summary['evaluated_examples']:,} held-out images"
        tiles.append(Tile("accuracy", share_cell(summary["accuracy"], pointer(SUMMARY, "accuracy")), note))
    if files.private and privacy:
        cell = epsilon_cell(privacy["epsilon_max"], pointer(PRIVACY, "epsilon_max"))
        tiles.append(Tile("epsilon, whole run", cell, f"at most, for each {privacy['privacy_unit']}"))
    else:
        tiles.append(Tile("epsilon", Cell("none"), "NOT PRIVATE"))
    planned = files.config.get("num-clients")
    clients = number_cell(summary["clients"], pointer(SUMMARY, "clients"))
    tiles.append(Tile("clients", clients, f"of {_grouped(planned)} planned"))
    rounds = number_cell(summary["rounds"], pointer(SUMMARY, "rounds"))
    tiles.append(Tile("rounds", rounds, f"of {summary['rounds_planned']} planned"))
    seconds = number_cell(summary["seconds"]["total"], pointer(SUMMARY, "seconds", "total"), 1)
    tiles.append(Tile("seconds", seconds, "in all"))
    return tuple(tiles)
