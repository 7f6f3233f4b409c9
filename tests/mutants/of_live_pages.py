"""Faults in what a live page says of a run that waits, and of a client."""

from functools import partial
from pathlib import Path

from client.checks import budget
from client.status import leaving_fields
from server.reporting.live import federation_sections, watched_folder
from server.rounds import waiting
from tests.client.status import test_watched_client as watched
from tests.mutants.faults import planted
from tests.server.rounds import test_waiting as waits
from tests.support.clients.own_clients import OwnClient


def an_older_ledger_is_told(tmp_path: Path, images: Path, own_home: Path) -> None:
    client = OwnClient(tmp_path, images, watched.POLICY, name="a")
    watched.test_an_older_ledger_is_told_and_a_newer_entry_is_not_taken_for_one(client, own_home)


def every_field_is_shown(tmp_path: Path, images: Path, own_home: Path) -> None:
    watched.test_every_field_that_may_leave_is_on_the_page(OwnClient(tmp_path, images, watched.POLICY, name="a"))


planted(
    waits.test_what_a_killed_process_left_is_not_taken_for_a_wait,
    watched_folder._wait_of,
    {"a killed run waits for ever": ("found[1] < MAX_SILENCE", "True")},
)
planted(
    partial(waits.test_a_record_that_cannot_be_written_stops_no_run, fault="connected"),
    waiting._Look.turn,
    {"a list of nodes that cannot be had ends a run": ("contextlib.suppress(Exception)", "contextlib.nullcontext()")},
)
planted(
    partial(waits.test_a_record_that_cannot_be_written_stops_no_run, fault="disk"),
    waiting._Look.turn,
    {"a full disk ends a run for the sake of a page": ("contextlib.suppress(OSError)", "contextlib.nullcontext()")},
)
planted(
    waits.test_the_list_of_clients_says_who_is_late_and_who_is_waited_for,
    federation_sections._part_in_run,
    {"nobody is waited for": ("if client.node_id in awaited:", "if False:")},
)
planted(
    an_older_ledger_is_told,
    budget.ledger_trouble,
    {"a page shows an older ledger as the newest": ("if seq and report.hashes.get(seq) != digest:", "if False:")},
)
planted(
    every_field_is_shown,
    leaving_fields._allowed,
    {"a page hides what leaves at the end": ('[False, True] if "full"', '[False] if "full"')},
)
