"""Five clients of a secure sum on machines of their own, one of which is killed with -9 in each stage of it."""

import json
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from common.ledger.audit.audit import audit_ledger, kept_heads
from server.audit.audit import audit_run
from tests.support.clients.own_clients import CLASSES, write_images
from tests.support.network.federation_machines import PORT, ClientSide, ServerSide, make_clients
from tests.support.network.network_lab import Bed, Program, machines, needs, wait_until
from tests.support.network.secure_wards import WORD_BITS, Ward, exchange_roster, sent_by
from tests.support.secagg.words_that_leave import check_masked
from tests.support.server.failing_federation import lines

pytestmark = pytest.mark.soak
NAMES = tuple(f"ward-{number}" for number in range(1, 6))
# A client that is gone costs an exchange about a minute: until the server misses its heartbeats.
SETTINGS: dict[str, object] = {
    "data.classes": ",".join(CLASSES),
    "data.image-size": 64,
    "privacy.aggregation": "secure",
    "privacy.noise-multiplier": 4.0,
    "num-clients": 5,
    "num-rounds": 3,
    "min-clients": 3,
    "round-retries": 0,
    "round-deadline": 150,
    "join-deadline": 150,
}
GONE = {"LATE", "UNREACHABLE"}
SECONDS = 600


@dataclass(frozen=True)
class Stage:
    """A moment of a run at which a client dies.

    Attributes:
        task: The message that it dies of, or that it has just answered.
        reached: What must be true while it answers; None once its answer is at the server.
        others_wait_after: Message after which another client is stopped until the kill, so that the exchange that
            the dead client must miss cannot begin before.
        counted: Clients in the first sum, and in the last.
        still_counted: Whether the words of the dead client are in the sum of the round.
        settings: More settings of the run.
        skipped: The round that is skipped; 0 for none.
    """

    task: str
    reached: Callable[[Ward], bool] | None = None
    others_wait_after: str = ""
    counted: tuple[int, int] = (4, 5)
    still_counted: bool = False
    settings: dict[str, object] = field(default_factory=dict)
    skipped: int = 0


def is_reserved(ward: Ward, number: int, release: str = "train") -> bool:
    """Whether a release is charged, and no reply to it is stored."""
    return number in ward.charged("reserve", release) and number not in ward.charged("commit", release)


STAGES = {
    "after its keys": Stage("query.advertise", others_wait_after="query", counted=(4, 4)),
    "after its shares": Stage("query.deal", others_wait_after="query.advertise", still_counted=True),
    "before its words": Stage("round 1, train", reached=lambda ward: is_reserved(ward, 1)),
    "after its words": Stage("round 1, train", others_wait_after="query.accept", counted=(5, 5), still_counted=True),
    "as a member of the committee": Stage(
        "query.unmask", reached=lambda ward: ward.opened(1), counted=(5, 5), still_counted=True
    ),
    "with nobody to spare": Stage(
        "round 2, train",
        reached=lambda ward: is_reserved(ward, 2),
        counted=(5, 5),
        settings={"privacy.secure-honest": 4, "num-rounds": 5},
        skipped=2,
    ),
    "before its closing counts": Stage(
        "evaluate", reached=lambda ward: is_reserved(ward, 3, "closing"), counted=(5, 5)
    ),
}


@dataclass(frozen=True)
class Federation:
    """The server and five clients that have exchanged their roster, and a capture of all that they send."""

    bed: Bed
    server: ServerSide
    clients: Sequence[ClientSide]
    wire: Path
    capture: "subprocess.Popen[str]"


@pytest.fixture(name="federation", scope="module")
def federation_fixture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    needs("ip", "tc", "tcpdump")
    root = tmp_path_factory.mktemp("secure")
    with machines(root, ["server", *NAMES]) as bed:
        capture = bed.capture(root / "wire.pcap")
        server, clients = ServerSide(bed["server"]), [ClientSide(bed[name]) for name in NAMES]
        folders = [write_images(root / name, range(60 * at, 60 * at + 60)) for at, name in enumerate(NAMES)]
        server.init()
        server.start()
        make_clients(clients, folders, server)
        exchange_roster(clients, root / "roster.txt")
        for client in clients:
            client.policy(max_epsilon="1000.0", accept_honest_shares="true")
            client.start()
        yield Federation(bed, server, clients, root / "wire.pcap", capture)


def strike(stage: Stage, victim: Ward, other: Ward, program: Program) -> None:
    """Kill a client with everything it has started, at its stage."""
    watched = [program, victim.program]
    if stage.reached is None:
        wait_until(lambda: other.sent(stage.others_wait_after), seconds=SECONDS, programs=watched)
        other.hold()
        wait_until(lambda: victim.sent(stage.task), seconds=SECONDS, what=stage.task, programs=watched)
    else:
        victim.stop_task_when(stage.task, stage.reached, seconds=SECONDS, programs=watched)
    victim.program.kill()
    other.go_on()


def come_back(victim: Ward, other: Ward, program: Program, reached: int) -> None:
    """Start the dead client again, and let the run wait for it after some rounds."""
    victim.client.start()
    wait_until(lambda: len(lines_of(victim.run)) >= reached, seconds=SECONDS, what="a round", programs=[program])
    other.hold()
    try:
        wait_until(lambda: not victim.client.revive() and victim.client.connected, seconds=SECONDS, what="its return")
    finally:
        other.go_on()


def lines_of(run: Path) -> list[dict[str, Any]]:
    return lines(run) if (run / "rounds.jsonl").is_file() else []


@pytest.mark.parametrize("name", STAGES)
def test_a_client_is_killed_and_nothing_of_it_is_shown_or_charged_twice(
    federation: Federation, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    server, stage, number = federation.server, STAGES[name], list(STAGES).index(name)
    run = server.machine.folder / f"run-{number}"
    for client in federation.clients:
        client.revive()
    server.wait_for(federation.clients, seconds=SECONDS)
    wards = [Ward.before(client, run) for client in federation.clients]
    victim, other = wards[4 - number % 4], wards[0]
    closing = stage.task == "evaluate"

    program = server.run(run, SETTINGS | stage.settings)
    try:
        strike(stage, victim, other, program)
        died = (victim.entries(), victim.state())
        if not closing:
            come_back(victim, other, program, max(1, stage.skipped))
        assert program.wait(seconds=SECONDS) == 0, program.text()
    finally:
        program.kill()

    with capsys.disabled():
        print(f"\n{name} ({victim.name}):", *(shown(line) for line in lines(run)), sep="\n  ")  # noqa: T201
    check_death(stage, victim, *died)
    check_rounds(stage, victim, run)
    check_charges(stage, victim, wards, run, server)
    # A client that is not there at the end keeps its file. The others may still be answering when the command ends.
    there = [ward for ward in wards if not (closing and ward is victim)]
    wait_until(lambda: not any(ward.secrets for ward in there), seconds=60, what="erasing the secrets")
    assert bool(victim.secrets) == closing


def test_no_client_has_sent_anything_but_uniform_words_and_no_mask_or_key_twice(federation: Federation) -> None:
    """All runs above, as they crossed the wire: the clients' keys open TLS."""
    federation.bed.end_capture(federation.capture)
    found = sent_by(federation.wire, (federation.server.machine.address, PORT), federation.clients)

    assert sum(len(sent.words) for sent in found.values()) > 5 * 3
    # A reply that was asked for again leaves in the same bytes.
    vectors = {vector.tobytes(): vector for sent in found.values() for vector in sent.words}
    check_masked(list(vectors.values()), WORD_BITS)
    keys = [key for sent in found.values() for key in sent.keys]
    assert len(keys) == len(set(keys)) > 0


def shown(line: dict[str, Any]) -> dict[str, Any]:
    return {key: line.get(key) for key in ("round", "clients", "skipped", "failures", "lost_after", "seconds")}


def check_death(stage: Stage, victim: Ward, entries: list[tuple[str, dict[str, Any]]], state: Any) -> None:
    """The client died at its stage and not near it."""
    kinds = Counter((kind, event.get("release"), event["round"]) for kind, event in entries if kind != "note")
    opened = [event["note"] for kind, event in entries if "opened" in event.get("note", "")]
    before_rounds = stage.task in ("query.advertise", "query.deal")
    assert state.has_dealt == (stage.task != "query.advertise")
    assert bool(kinds["reserve", "train", 1]) == (not before_rounds)
    if stage.task == "query.deal":
        assert state.awaits_boxes
    if stage.task == "round 1, train":
        assert bool(kinds["commit", "train", 1]) == stage.still_counted
        assert opened == []
        # The seed of a round is erased only after its words are stored.
        assert state.next_round == (2 if stage.still_counted else 1)
    if stage.task == "query.unmask":
        assert opened == ["secure sum: opened round 1"]


def check_rounds(stage: Stage, victim: Ward, run: Path) -> None:
    """The sums were opened without the dead client, or nobody's was."""
    summary, found = json.loads((run / "summary.json").read_text()), lines(run)
    assert summary["status"] == "complete"
    opened = [line for line in found if not line.get("skipped")]
    assert opened[-1]["clients"] == stage.counted[1]
    refused = {f"client {victim.name}"} if stage.counted == (4, 4) else set()
    assert {client for client, code in summary["refusals"].items() if code in GONE} == refused
    if stage.skipped:
        line = found[stage.skipped - 1]
        assert line["skipped"]
        assert line["failures"][victim.name] in GONE
    elif stage.task == "query.deal":
        # It has no shares of the others: its words are in the sums, and it cannot help to open them.
        assert victim.name in found[0]["failures"] | found[0].get("lost_after", {})
        assert found[-1].get("lost_after", {}) == {victim.name: "PRIVACY"}
    elif stage.task != "evaluate":
        assert found[0]["clients"] == stage.counted[0]
        where, elsewhere = ("lost_after", "failures") if stage.still_counted else ("failures", "lost_after")
        assert found[0].get(where, {})[victim.name] in GONE
        assert not found[0].get(elsewhere)


def check_charges(stage: Stage, victim: Ward, wards: Sequence[Ward], run: Path, server: ServerSide) -> None:
    """Each round is charged once, answered at most once and opened for one set at most."""
    for ward in wards:
        reserved, committed = ward.charged("reserve"), ward.charged("commit")
        assert reserved == sorted(set(reserved))
        assert committed == sorted(set(committed))
        assert set(committed) <= set(reserved)
        assert len(ward.notes) == len(set(ward.notes))
        for heads in (run / "heads.jsonl", server.machine.home / "server" / "heads.jsonl"):
            report = audit_ledger(ward.client.ledger, kept_heads(heads))
            assert (report.verdict, report.remarks.doubts) == ("verified", []), ward.name
    assert audit_run(run).remarks.doubts == []
    uncounted = set(victim.charged("reserve")) - set(victim.charged("commit"))
    died_in = {"round 1, train": 1, "round 2, train": 2}.get(stage.task, 0)
    assert uncounted == ({died_in} if died_in and not stage.still_counted else set())
    if stage.skipped:
        assert not any(ward.opened(stage.skipped) for ward in wards)
        others = [ward for ward in wards if ward.name != victim.name]
        assert all(stage.skipped in ward.charged("commit") for ward in others)
    if stage.counted == (4, 4):
        assert victim.charged("reserve") == []
    if stage.task == "evaluate":
        assert victim.charged("reserve", "closing") != victim.charged("commit", "closing")
