"""The public mask graph and committee of one set-up.

Both follow from the constants and from who is present. A server that tries many run ids can choose between graphs and
committees. This helps it to nothing, because no guarantee here counts on their being random.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache

from common.secagg.primitives.domains import Domain, digest
from common.secagg.protocol.terms import Terms

# Share of the clients whose loss the graph and the committee should survive, and how seldom they may fail to.
_PLANNED_LOSS = (3, 10)
_FAILURE_BITS = 20
# Up to these sizes every pair shares a mask, and everybody is on the committee.
_COMPLETE = 32
_SMALL = 64
_COMMITTEE_STEP = 16


@dataclass(frozen=True)
class Topology:
    """The graph of pairwise masks and the committee that holds all shares.

    Attributes:
        circle: Those present, in the order of a public hash.
        reach: A client shares a mask with this many to each side on the circle. None joins all pairs.
        committee: Holders of shares, ascending.
        threshold: Members that must answer together.
        num_colluding: Clients that may work together with the server.
    """

    circle: tuple[int, ...]
    reach: int | None
    committee: tuple[int, ...]
    threshold: int
    num_colluding: int

    def neighbours(self, index: int) -> tuple[int, ...]:
        """Return the clients with which one shares a pairwise mask, ascending."""
        if self.reach is None:
            return tuple(sorted(other for other in self.circle if other != index))
        place, size = self.circle.index(index), len(self.circle)
        steps = (step for step in range(-self.reach, self.reach + 1) if step)
        return tuple(sorted(self.circle[(place + step) % size] for step in steps))

    def hides(self, survivors: Collection[int]) -> bool:
        """Return whether the masks between honest survivors hide all but their whole sum.

        The survivors' graph stays connected whoever the colluding clients are. It can fall apart only at two gaps,
        each of `reach` neighbouring places without an honest survivor. Both gaps need more colluding clients than
        there are if every such window holds more than half their number of survivors.
        """
        if self.reach is None:
            return True
        alive = [member in survivors for member in self.circle]
        inside = sum(alive[: self.reach])
        for place in range(len(alive)):
            if inside <= self.num_colluding // 2:
                return False
            inside += alive[(place + self.reach) % len(alive)] - alive[place]
        return True


@lru_cache(maxsize=16)
def topology_of(terms: Terms, present: tuple[int, ...]) -> Topology:
    """Return the graph and committee for those present, ascending."""
    circle, ranked = (
        tuple(sorted(present, key=lambda index: digest(domain, terms.session, index)))
        for domain in (Domain.RING_ORDER, Domain.COMMITTEE_ORDER)
    )
    size = _committee_size(len(present), terms)
    return Topology(
        circle=circle,
        reach=_reach(len(present), terms),
        committee=tuple(sorted(ranked[:size])),
        threshold=threshold_of(size, terms.num_colluding),
        num_colluding=terms.num_colluding,
    )


def threshold_of(committee_size: int, num_colluding: int) -> int:
    """Return how many members must answer together.

    Two groups of this size share an honest member even if all colluding clients sit on the committee and answer
    twice. An honest member answers one survivor set a round, so no two sets can be opened.
    """
    return (committee_size + num_colluding) // 2 + 1


def _losses(num_present: int, terms: Terms) -> int:
    """Return the number of losses to be survived."""
    spare = num_present - terms.num_colluding - terms.num_honest
    return min(spare, math.ceil(num_present * _PLANNED_LOSS[0] / _PLANNED_LOSS[1]))


def _committee_size(num_present: int, terms: Terms) -> int:
    losses = _losses(num_present, terms)
    for size in range(_SMALL, num_present, _COMMITTEE_STEP):
        if size > terms.num_colluding:
            missing = threshold_of(size, terms.num_colluding) - 1
            if _seldom(num_present, num_present - losses, size, missing, times=1):
                return size
    return num_present


def _reach(num_present: int, terms: Terms) -> int | None:
    losses = _losses(num_present, terms)
    for reach in range(1, (num_present - 1) // 2) if num_present > _COMPLETE else ():
        if _seldom(num_present, num_present - losses, reach, terms.num_colluding // 2, times=num_present):
            return reach
    return None


def _seldom(population: int, alive: int, draws: int, at_most: int, *, times: int) -> bool:
    """Return whether so few drawn ones are alive in one case of a million.

    Exact integers, so that all clients come to the same graph on every machine.
    """
    dead = population - alive
    ways = sum(math.comb(alive, number) * math.comb(dead, draws - number) for number in range(min(at_most, draws) + 1))
    return times * ways << _FAILURE_BITS <= math.comb(population, draws)
