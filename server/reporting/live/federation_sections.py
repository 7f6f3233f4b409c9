"""Sections of a live page about clients that are connected, late or waited for."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from common.page.blocks import MISSING, Block, Cell, Notice, Part, Section, Table, name_cell, text, time_cell, words
from server.deployment.client_list import Client
from server.rounds.waiting import Pending, Wait

_MAX_NAMED = 5
_TASKS = {
    "connect": "to connect",
    "agree": "to agree to the run",
    "train": "to train",
    "evaluate": "to evaluate the final model",
    "close": "to hear that the run is over",
    "reconnect": "to connect again",
}


def waiting_section(wait: Wait, is_alive: bool, clients: Sequence[Client]) -> Section:
    """Return whom a run waits for and when it goes on.

    Args:
        wait: What the run has written of itself.
        is_alive: Whether it wrote so a moment ago.
        clients: Clients of the server; empty for the folder of a run alone.
    """
    title = "Waiting"
    who = f"Round {wait.server_round}" if wait.server_round else "The run"
    if not is_alive:
        said = (
            f"{who} waited for {wait.num_pending} of {wait.total} clients {_TASKS.get(wait.what, '')} when the process "
        )
        notice = Notice(
            "warning",
            "The run does not go on",
            (text(f"{said}of the run wrote for the last time. It has ended, or is held up."),),
        )
        return Section("waiting", title, (notice,))
    by_node = {client.node_id: client for client in clients if client.node_id is not None}
    named = [(_name_of(one, by_node), one) for one in wait.pending]
    parts: list[Part] = [f"{who} waits for {wait.num_pending} of {wait.total} clients {_TASKS.get(wait.what, '')}"]
    for at, (name, one) in enumerate(named[:_MAX_NAMED]):
        parts += [": " if at == 0 else ", ", name_cell(name), " (", *_state_of(one, wait, by_node), ")"]
    if len(named) > _MAX_NAMED:
        parts.append(f" and {wait.num_pending - _MAX_NAMED} more")
    blocks: list[Block] = [text(*parts, ".", strong=True), text(*_goes_on(wait))]
    if len(named) > _MAX_NAMED:
        rows = tuple((name_cell(name), *_cells_of(one, wait, by_node)) for name, one in named)
        blocks.append(Table("Clients that have not answered", ("client", "state", "since"), rows, (False,) * 3))
    return Section("waiting", title, tuple(blocks))


def _name_of(one: Pending, by_node: Mapping[int, Client]) -> str:
    """Return a client's name or the one that it was admitted with."""
    client = by_node.get(one.node)
    return client.name if client is not None and one.name == f"node {one.node}" else one.name


def _cells_of(one: Pending, wait: Wait, by_node: Mapping[int, Client]) -> tuple[Cell, Cell]:
    """Return the state of a missing client and its beginning."""
    client = by_node.get(one.node)
    # The server's own list is newer than what the run wrote a moment ago.
    if client is not None and client.status == "offline" and client.seen:
        return Cell("not connected, last seen"), time_cell(client.seen)
    if not one.away_since or (client is not None and client.status == "online"):
        return Cell("connected, still computing or sending"), time_cell(wait.since, "for")
    return Cell("not connected, missed"), time_cell(one.away_since)


def _state_of(one: Pending, wait: Wait, by_node: Mapping[int, Client]) -> Iterable[Part]:
    state, since = _cells_of(one, wait, by_node)
    return state, " ", since


def _goes_on(wait: Wait) -> tuple[Part, ...]:
    """Return when a run goes on, as its loop decides it."""
    if wait.what == "reconnect":
        when: tuple[Part, ...] = (f"It tries again when {wait.needed} are connected",)
    else:
        when = ("It goes on when all are there" if wait.what == "connect" else "It goes on when all have answered",)
    if not wait.until:
        return *when, ". There is no time limit."
    limit: tuple[Part, ...] = (*when, ", or at the time limit ", time_cell(wait.until, "until"))
    if wait.what == "reconnect" or not wait.needed:
        return *limit, "."
    what = "are there" if wait.what == "connect" else "have answered"
    return *limit, f" if {wait.needed} {what} by then."


def clients_section(clients: Sequence[Client], problem: str, newest: Mapping[str, Any], wait: Wait | None) -> Section:
    """Return who is connected to a server and who is late.

    Args:
        clients: Clients of the server.
        problem: Why they cannot be listed; empty if they are.
        newest: Line of the newest complete round; empty without one.
        wait: What the run waits for; None if for nobody.
    """
    awaited = set() if wait is None else {one.node for one in wait.pending}
    rows = tuple(
        (
            name_cell(client.name),
            Cell(client.status),
            time_cell(client.seen, "for" if client.status == "online" else "ago"),
            _part_in_run(client, newest, awaited),
            Cell(client.admitted[:10] or "-"),
        )
        for client in clients
    )
    online = sum(client.status == "online" for client in clients)
    title = "Clients of this server"
    columns = ("client", "status", "connected, or last seen", "newest run", "admitted (UTC)")
    table = Table(title, columns, rows, (False,) * 5)
    said = words(problem) if problem else f"{online} of {len(clients)} admitted or revoked clients are online."
    return Section("server-clients", title, (text(said), table) if rows else (text(said),))


def _part_in_run(client: Client, newest: Mapping[str, Any], awaited: set[int]) -> Cell:
    if client.node_id in awaited:
        return Cell("is waited for")
    failure = (newest.get("lost_after", {}) | newest.get("failures", {})).get(client.name)
    return MISSING if failure is None else Cell(words(f"{failure} in round {newest.get('round')}"))
