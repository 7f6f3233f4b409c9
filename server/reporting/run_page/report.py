"""Report of a run as one HTML file, with a table of its rounds."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from common.errors import BractError
from common.page.blocks import Page, Section, name_cell, text, words
from common.page.render import render
from common.privacy.accounting import Spent
from server.reporting.run_page import (
    class_table,
    clients_table,
    cost,
    guarantee,
    settings,
    timeline,
    utility,
    verdict,
)
from server.reporting.run_page.epsilon_so_far import epsilon_so_far
from server.reporting.run_page.rounds_csv import ROUNDS_CSV, rounds_csv
from server.reporting.run_page.run_files import CONFIG, RunFiles, read_run
from server.state.run_directory import RunDirectory

REPORT = "report.html"
_log = logging.getLogger("bract.server")
_Make = Callable[[RunFiles], Section]


def build_page(files: RunFiles, spent: Sequence[Spent]) -> Page:
    """Return the page of a run that may be partial.

    `spent` is its epsilon after each round.
    """
    makers: dict[str, _Make] = {
        "Verdict": verdict.verdict_section,
        "Planned and met clients": verdict.met_section,
        "Curves": utility.curves_section,
        "Confusion matrix": utility.confusion_section,
        "By class": class_table.classes_section,
        **({"By subgroup": class_table.subgroups_section} if files.config.get("data.subgroups") else {}),
        "Calibration": utility.calibration_section,
        "Clients and classes": clients_table.clients_classes_section,
        "Each client": clients_table.clients_section,
        "Bytes and seconds": cost.cost_section,
        "Privacy": lambda found: guarantee.privacy_section(found, spent),
        "Audits": guarantee.audits_section,
        "Refusals and faults": timeline.timeline_section,
        "Settings, versions and hashes": settings.settings_section,
    }
    sections = tuple(_made(title, make, files) for title, make in makers.items())
    run = files.privacy.get("run", "")
    state = "complete" if files.complete else "not complete"
    return Page(
        f"Run {name_cell(files.folder.resolve().name).text}",
        f"{'Simulation' if files.simulated else 'Federation'}, {state}{f', run {words(str(run))}' if run else ''}",
        sections,
        "Made by Bract from the files of the run's folder. The page loads nothing from anywhere.",
    )


def _made(title: str, make: _Make, files: RunFiles) -> Section:
    # Files of other versions, or changed by hand, must not take the other sections with them.
    try:
        return make(files)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError, BractError) as error:
        name = title.split(",", maxsplit=1)[0].lower().replace(" ", "-")
        reason = f"The run's files do not have what this section needs ({type(error).__name__}: {error})."
        return Section(name, title, (text(words(reason)),))


def spent_of(files: RunFiles) -> list[Spent]:
    """Return epsilon after each round.

    It is empty where no statement says it.
    """
    every = files.config.get("evaluation.every")
    try:
        found = epsilon_so_far(files.privacy, len(files.rounds), every if isinstance(every, int) else 1)
        # By RDP the run has noted the figure itself, and versions before did not.
        return [
            replace(spent, rdp=line.get("epsilon_so_far", spent.rdp))
            for spent, line in zip(found, files.rounds, strict=True)
        ]
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, BractError):
        return []


def write_report(folder: Path) -> Path:
    """Write `report.html` and `rounds.csv` into a run's folder and return the report's path.

    Raises:
        ConfigError: The folder does not hold a run.
    """
    files = read_run(folder)
    spent = spent_of(files)
    directory = RunDirectory(folder)
    directory.write_text(ROUNDS_CSV, rounds_csv(files.rounds, files.privacy, spent))
    directory.write_text(REPORT, render(build_page(files, spent)))
    return folder / REPORT


def try_report(folder: Path) -> None:
    """Write the report of a run that has ended.

    A fault is one line in the log.

    A folder without a run is left alone.
    """
    if not (folder / CONFIG).is_file():
        return
    try:
        write_report(folder)
    # A run must not fail by its report, whatever the fault.
    except Exception as error:
        _log.warning("%s was not written (%s: %s); `bract report` makes it again", REPORT, type(error).__name__, error)
