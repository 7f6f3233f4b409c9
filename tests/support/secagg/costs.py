"""Costs of a secure sum by the number of clients, printed by `python -m tests.support.secagg.costs 10 100 1000`.

One client's time is process time, so that other work on the machine does not count.
"""

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median
from time import process_time
from typing import TypeVar

import numpy as np

from tests.support.secagg.federation import CONTEXT, Federation, plain_sum, terms_of

Result = TypeVar("Result")
LENGTH = 12_810


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
        client: Both, a member's share of the second one counted by how many clients are members.
        server: The sum of one round.
        sent: Bytes of a member's two messages, as a multiple of the plain vector's as float32.
        state: Bytes of a member's stored state, per round that is left.
    """

    clients: int
    neighbours: int
    members: int
    threshold: int
    set_up: float
    mask: float
    unmask: float
    client: float
    server: float
    sent: float
    state: float


def measure(num_clients: int, num_rounds: int = 2) -> Costs:
    """Return the costs of the 51 kB head with a tenth colluding, at most ten, and six tenths honest."""
    colluding, honest = max(1, min(10, num_clients // 10)), max(2, 6 * num_clients // 10)
    terms = terms_of(num_clients, honest=honest, num_colluding=colluding, lengths=(LENGTH,) * num_rounds)
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
    assert np.array_equal(total, plain_sum(words, request.survivors))
    member = request.responders[0]
    second = median(unmask) * 1000
    return Costs(
        clients=num_clients,
        neighbours=len(graph.neighbours(0)),
        members=len(graph.committee),
        threshold=graph.threshold,
        set_up=median(set_up) * 1000 / num_rounds,
        mask=mask * 1000,
        unmask=second,
        client=mask * 1000 + second * len(graph.committee) / num_clients,
        server=server * 1000,
        sent=1 + len(reply.shares) / (4 * LENGTH),
        state=len(made.clients[member].to_bytes()) / num_rounds,
    )


def timed(step: Callable[[], Result]) -> tuple[float, Result]:
    """Return the seconds of processor time that a step took, and what it returned."""
    start = process_time()
    result = step()
    return process_time() - start, result


def main() -> None:
    """Print one line for each number of clients."""
    for number in map(int, sys.argv[1:]):
        print("  ".join(f"{name} {value:.4g}" for name, value in asdict(measure(number)).items()), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
