"""Cohorts of each round, drawn by name from the run's seed."""

from collections.abc import Iterable, Sequence

from common.randomness import public_stream


def draw_cohorts(names: Sequence[str], *, cohort_size: int, num_rounds: int, seed: int) -> list[list[str]]:
    """Draw the cohort of every round by repeated shuffles of all names.

    Guarantee: no client takes part more than ceil(rounds x cohort / clients) times, and none twice before all have
    taken part once. Under DP this keeps each client's number of rounds, and so its noise, as small as it can be. No
    amplification by client sampling is claimed. Each cohort is sorted, and the order of `names` does not matter.

    >>> draws = draw_cohorts(["a", "b", "c"], cohort_size=1, num_rounds=3, seed=0)
    >>> sorted(name for cohort in draws for name in cohort)
    ['a', 'b', 'c']
    """
    rng, in_order = public_stream(seed, "cohorts"), sorted(names)
    pool: list[str] = []
    cohorts = []
    for _ in range(num_rounds):
        chosen, pool = pool[:cohort_size], pool[cohort_size:]
        missing = cohort_size - len(chosen)
        if missing:
            order, early = [in_order[i] for i in rng.permutation(len(in_order))], set(chosen)
            added = [name for name in order if name not in early][:missing]
            late = set(added)
            pool = [name for name in order if name not in late]
            chosen = chosen + added
        cohorts.append(sorted(chosen))
    return cohorts


def shrunk_cohort(cohort_size: int, num_clients: int, *, taking_part: int) -> int:
    """Return the cohort size when only some clients take part.

    It is the same share of them, rounded down, so that no client is asked more often than its plan allows.

    >>> shrunk_cohort(5, 10, taking_part=7)
    3
    """
    return cohort_size * taking_part // num_clients


def join_cohorts(
    cohorts: Sequence[Sequence[str]], name: str, first: int, *, cohort_size: int, participations: int
) -> list[list[str]]:
    """Return the cohorts with a late client added where a cohort is not full.

    `first` is the first round that it can take part in, from 1. Its plan covers at most `participations` rounds.

    >>> join_cohorts([["a"], ["a"], ["a", "b"]], "c", 2, cohort_size=2, participations=9)
    [['a'], ['a', 'c'], ['a', 'b']]
    """
    joined = [list(cohort) for cohort in cohorts]
    open_cohorts = [cohort for cohort in joined[first - 1 :] if len(cohort) < cohort_size and name not in cohort]
    for cohort in open_cohorts[:participations]:
        cohort.append(name)
        cohort.sort()
    return joined


class CohortNodes:
    """Node ids of one cohort in place of a whole grid.

    A strategy asks a grid for all node ids and calls nothing else of it. With the cohort's ids alone, it samples
    exactly the cohort.
    """

    def __init__(self, node_ids: Iterable[int]) -> None:
        self._node_ids = list(node_ids)

    def get_node_ids(self) -> Iterable[int]:
        """Return the node ids of the cohort."""
        return list(self._node_ids)
