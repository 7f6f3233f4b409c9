"""Costs of a secure sum by the number of clients.

`python -m tests.support.secagg.costs 10 100 1000` prints rows of a table. `100x30` is for 100 clients and 30 rounds in
place of 2, `100x30x40` for words of 40 bits in place of 48. A last argument that ends with `.png` is a file for a plot.
A thousand clients take minutes.

One client's time is process time, so that other work on the machine does not count.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from time import process_time
from typing import TypeVar

import matplotlib.pyplot as plt
import numpy as np

from common.secagg.protocol.client import ClientState
from tests.support.secagg.federation import CONTEXT, Federation, plain_sum, terms_of

Result = TypeVar("Result")
LENGTH = 12_810
LABELS = {
    "set_up": "client, set-up, per round",
    "mask": "client, first exchange",
    "unmask": "committee member, second exchange",
    "server": "server, sum of a round",
    "server_third": "server, a third lost",
}


@dataclass(frozen=True)
class Costs:
    """Figures for one number of clients.

    Times are milliseconds of one processor, bytes are those of one client. A round has one client of ten lost.

    Attributes:
        clients: On the roster.
        neighbours: Pairwise masks of one client.
        members: On the committee.
        threshold: Members that must answer.
        set_up: A client's whole set-up, per round that it is for.
        mask: A client's first exchange.
        unmask: A member's second exchange.
        store: Reading and writing a member's stored state once.
        client: A client's whole round on average. The second exchange counts by how many clients are members, and the
            state is read and written for each.
        server: The sum of one round.
        server_third: The same where a third of the clients is lost.
        sent: Bytes of a member's two messages, as a multiple of the plain vector's as float32.
        sent_in_all: The same with its messages of the set-up, per round.
        state: Bytes of a member's stored state after the set-up, per round.
    """

    clients: int
    neighbours: int
    members: int
    threshold: int
    set_up: float
    mask: float
    unmask: float
    store: float
    client: float
    server: float
    server_third: float
    sent: float
    sent_in_all: float
    state: float


def measure(num_clients: int, num_rounds: int = 2, word_bits: int = 48) -> Costs:
    """Return the costs of the 51 kB head with a tenth colluding, at most ten, and half honest."""
    colluding, honest = max(1, min(10, num_clients // 10)), max(2, num_clients // 2)
    lengths = (LENGTH,) * num_rounds
    terms = terms_of(num_clients, honest=honest, num_colluding=colluding, lengths=lengths, word_bits=word_bits)
    made = Federation.announced_of(terms)
    graph = made.setup.topology
    set_up = []
    for index, state in made.clients.items():
        delivery = made.setup.delivery(index)
        seconds, boxes = timed(lambda: state.deal(made.roster, delivery))  # noqa: B023 -- called at once
        made.setup.add_boxes(index, boxes)
        set_up.append(seconds)
    for index in graph.committee:
        made.clients[index].accept(made.setup.boxes_for(index))
    stored = made.clients[graph.committee[0]].to_bytes()
    store = timed(lambda: ClientState.from_bytes(stored).to_bytes())[0] * 1000
    words = made.words(1)
    lost = set(range(0, num_clients, 10))
    mask = median([timed(lambda i=i: made.clients[i].mask(1, CONTEXT, words[i]))[0] for i in lost])  # type: ignore[misc]
    open_round = made.masked(1, {index: own for index, own in words.items() if index not in lost})
    request = open_round.ask()
    unmask = []
    for member in request.responders:
        seconds, reply = timed(lambda: made.clients[member].unmask(request))  # noqa: B023 -- called at once
        open_round.add_answer(reply)
        unmask.append(seconds)
    server, total = timed(open_round.finish)
    assert np.array_equal(total, terms.ring.reduced(plain_sum(words, request.survivors)))
    third, words = set(range(0, num_clients, 3)), made.words(2)
    second_round = made.masked(2, words, lost=third)
    made.answer(second_round, second_round.ask())
    server_third, total = timed(second_round.finish)
    assert np.array_equal(total, terms.ring.reduced(plain_sum(words, set(words) - third)))
    second = median(unmask) * 1000
    sent = terms.ring.packed(total).nbytes + len(reply.shares)
    announced = made.announced[graph.committee[0]]
    dealt = len(announced.mask_keys) + len(announced.seed_commitments) + sum(map(len, boxes.values()))
    return Costs(
        clients=num_clients,
        neighbours=len(graph.neighbours(0)),
        members=len(graph.committee),
        threshold=graph.threshold,
        set_up=median(set_up) * 1000 / num_rounds,
        mask=mask * 1000,
        unmask=second,
        store=store,
        client=mask * 1000 + store + (second + store) * len(graph.committee) / num_clients,
        server=server * 1000,
        server_third=server_third * 1000,
        sent=sent / (4 * LENGTH),
        sent_in_all=(sent + dealt / num_rounds) / (4 * LENGTH),
        state=len(stored) / num_rounds,
    )


def timed(step: Callable[[], Result]) -> tuple[float, Result]:
    """Return the seconds of processor time that a step took, and what it returned."""
    start = process_time()
    result = step()
    return process_time() - start, result


def plot(rows: Sequence[Costs], file: str) -> None:
    """Plot times by the number of clients."""
    figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
    numbers = [row.clients for row in rows]
    for name, label in LABELS.items():
        axes.loglog(numbers, [getattr(row, name) for row in rows], marker="o", label=label)
    axes.set(xlabel="clients", ylabel="ms of one core", title="51 kB vector, one client of ten lost")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    figure.savefig(file, dpi=120)


def main() -> None:
    """Print one row for each number of clients."""
    rows: list[Costs] = []
    for word in sys.argv[1:]:
        if not word.endswith(".png"):
            rows.append(measure(*map(int, word.split("x"))))
            _print_row(rows)
    if sys.argv[-1].endswith(".png"):
        plot(rows, sys.argv[-1])


def _print_row(rows: Sequence[Costs]) -> None:
    values = asdict(rows[-1])
    if len(rows) == 1:
        print("| " + " | ".join(values) + " |")  # noqa: T201
    print("| " + " | ".join(f"{value:.3g}" for value in values.values()) + " |", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
