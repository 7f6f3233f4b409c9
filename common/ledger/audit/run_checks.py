"""The checks of a ledger's runs, their registrations and their releases."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from common.errors import LedgerError
from common.ledger.audit.integrity_checks import Remarks
from common.ledger.hash_chain import Entry
from common.ledger.registrations import (
    CLOSED,
    Registration,
    events_json,
    planned_events,
    release_event,
    request_id,
    run_fields,
)
from common.privacy.mechanisms.registry import MECHANISMS
from common.privacy.plan import PrivacyPlan


@dataclass(frozen=True)
class RunEntries:
    """The entries about one client in one run.

    `closed_at` is the number of the entry that closed the run, 0 if the run is open.
    """

    agreed: Registration
    reserves: tuple[Entry, ...]
    commits: tuple[Entry, ...]
    closed_at: int

    def reserved(self, release: str) -> int:
        """Return how many releases of one kind were charged."""
        return sum(entry.event.get("release") == release for entry in self.reserves)


def check_runs(entries: Sequence[Entry], remarks: Remarks) -> list[RunEntries]:
    """Check all runs and return the entries of each."""
    registered: dict[tuple[str, str], Registration] = {}
    for entry in entries:
        with remarks.about(f"entry {entry.seq} ({entry.kind})"):
            if entry.kind == "register":
                agreed = _agreed(entry)
                if registered.setdefault((agreed.run, agreed.client), agreed) is not agreed:
                    remarks.doubts.append(f"entry {entry.seq} registers a run and client for the second time")
            elif entry.kind in ("note", "refuse"):
                _check_note(entry)
    for entry in entries:
        if entry.kind in ("reserve", "commit") and _about(entry) not in registered:
            remarks.doubts.append(f"entry {entry.seq} ({entry.kind}) belongs to no agreement")
    entries_of: dict[tuple[str, str], list[Entry]] = {key: [] for key in registered}
    for entry in entries:
        entries_of.get(_about(entry), []).append(entry)
    return [_check_run(agreed, entries_of[key], remarks) for key, agreed in registered.items()]


def _agreed(entry: Entry) -> Registration:
    agreed = Registration.of(entry)
    _check_plan(agreed.plan)
    events = events_json(planned_events(agreed.plan))
    expected = run_fields(agreed.run, agreed.client, 0) | {"plan": agreed.plan.as_json(), "events": events}
    if {
        name: value for name, value in entry.event.items() if name not in ("parts", "added", "policy", "classes")
    } != expected:
        raise LedgerError("its events do not follow from its plan")
    if entry.request_id != request_id(agreed.run, agreed.client, agreed.plan.digest, 0, "register"):
        raise LedgerError("its request id does not follow from what it says")
    return agreed


def _check_plan(plan: PrivacyPlan) -> None:
    """Refuse a plan that no run could have registered."""
    counts = plan.counts
    counted: tuple[int, ...] = () if counts is None else (counts.num_rounds, counts.every)
    if counts is not None and counts.num_classes is not None:
        counted += (counts.num_classes,)
    whole = (plan.num_units, plan.steps_per_round, plan.num_rounds, *counted)
    events = (*(() if counts is None else counts.events()), *plan.label_events())
    noises = (plan.noise_multiplier, *(event.noise_stddev for event in events))
    if not all(type(number) is int and number >= 1 for number in whole):
        raise LedgerError("its plan has a count that is not a whole number of at least 1")
    if not all(type(number) in (int, float) and 0 < number < float("inf") for number in (*noises, plan.max_grad_norm)):
        raise LedgerError("its plan has a noise or a bound that is not positive")
    if not (0 < plan.sample_rate <= 1 and 0 < plan.delta < 1):
        raise LedgerError("its plan has a sample rate or a delta that is out of range")
    mechanism = MECHANISMS.get(plan.mechanism)
    if mechanism is None or not mechanism.noise_at_client or plan.privacy_unit not in mechanism.units:
        raise LedgerError("its plan is of an unknown kind")
    if counts is not None and (
        counts.num_rounds > plan.num_rounds or (counts.every == 1 and counts.num_rounds < plan.num_rounds)
    ):
        raise LedgerError("its plan has other rounds for counts than for training")


def _check_note(entry: Entry) -> None:
    event = entry.event
    if entry.kind == "note":
        expected = request_id(event["run"], event["client"], event["note"], 0, "note")
    else:
        expected = request_id(event["run"], event["client"], "", event["round"], event["asked"])
    if entry.request_id != expected:
        raise LedgerError("its request id does not follow from what it says")


def _check_run(agreed: Registration, entries: Sequence[Entry], remarks: Remarks) -> RunEntries:
    closed = [entry.seq for entry in entries if entry.kind == "note" and entry.event.get("note") == CLOSED]
    reserves = tuple(entry for entry in entries if entry.kind == "reserve")
    commits = tuple(entry for entry in entries if entry.kind == "commit")
    run = RunEntries(agreed, reserves, commits, min(closed, default=0))
    for entry in (*reserves, *commits):
        with remarks.about(f"entry {entry.seq} ({entry.kind})"):
            _check_release(agreed, entry)
    planned = {"train": agreed.plan.num_rounds, "closing": 1, "labels": len(agreed.plan.label_events())}
    for release, most in planned.items():
        if run.reserved(release) > most:
            remarks.doubts.append(
                f"client {agreed.client} reserved {run.reserved(release)} {release} releases in run {agreed.run[:8]}, "
                f"its plan has {most}"
            )
    with remarks.about(f"the counted rounds of client {agreed.client} in run {agreed.run[:8]}"):
        _check_counted(run)
    _check_order(run, remarks)
    return run


def _check_counted(run: RunEntries) -> None:
    plan = run.agreed.plan
    counted = plan.num_counted(entry.event["round"] for entry in run.reserves if entry.event["release"] == "train")
    if plan.counts is not None and counted > plan.counts.num_rounds:
        raise LedgerError(f"{counted} were reserved, the plan has {plan.counts.num_rounds}")


def _about(entry: Entry) -> tuple[str, str]:
    run, client = entry.event.get("run"), entry.event.get("client")
    return (run, client) if isinstance(run, str) and isinstance(client, str) else ("", "")


def _check_release(agreed: Registration, entry: Entry) -> None:
    release, server_round = entry.event["release"], entry.event["round"]
    if release not in ("train", "closing", "labels") or type(server_round) is not int or server_round < 0:
        raise LedgerError("it is about an unknown release")
    if entry.request_id != agreed.request(server_round, release):
        raise LedgerError("its request id does not follow from what it says")
    expected = release_event(agreed, server_round, release)
    if entry.kind == "commit":
        expected.pop("charges")
    if entry.event != expected:
        raise LedgerError("what it charges is not what the plan says")
    if entry.dataset != agreed.dataset:
        raise LedgerError("it is about other images than the agreement")
    if entry.seq < agreed.seq:
        raise LedgerError("it came before the agreement")


def _check_order(run: RunEntries, remarks: Remarks) -> None:
    reserved = {entry.request_id: entry.seq for entry in run.reserves}
    for entry in run.commits:
        if reserved.get(entry.request_id, entry.seq) >= entry.seq:
            remarks.doubts.append(f"entry {entry.seq} commits what was not reserved before it")
    _check_labels(run, remarks)
    late = [entry for entry in (*run.reserves, *run.commits) if 0 < run.closed_at < entry.seq]
    for entry in late:
        if entry.kind == "reserve":
            remarks.doubts.append(f"entry {entry.seq} reserves in a run that entry {run.closed_at} had closed")
        else:
            remarks.warnings.append(f"entry {entry.seq} left after its run was closed; it had been charged before")


def _check_labels(run: RunEntries, remarks: Remarks) -> None:
    """Check that label counts were committed before the first round."""
    if not run.agreed.plan.label_events():
        return
    counted = min((entry.seq for entry in run.commits if entry.event.get("release") == "labels"), default=math.inf)
    trained = min((entry.seq for entry in run.reserves if entry.event.get("release") == "train"), default=math.inf)
    if trained < counted:
        remarks.doubts.append(f"entry {trained} reserves a round before the label counts that its plan needs")
