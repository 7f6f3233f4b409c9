"""No choice of survivors and colluding clients splits the honest ones, and two survivor sets never both open."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.secagg.protocol import topology as topologies
from common.secagg.protocol.topology import Topology, threshold_of, topology_of
from tests.support.secagg.federation import terms_of


def is_connected(graph: Topology, members: set[int]) -> bool:
    """Second implementation, by walking."""
    reached, frontier = set(), [min(members)]
    while frontier:
        member = frontier.pop()
        if member not in reached:
            reached.add(member)
            frontier.extend(set(graph.neighbours(member)) & members)
    return reached == members


@given(data=st.data(), size=st.integers(7, 13), reach=st.integers(1, 4), colluding=st.integers(1, 4))
@settings(max_examples=80, deadline=None)
def test_survivors_that_pass_stay_connected_whoever_colludes(
    data: st.DataObject, size: int, reach: int, colluding: int
) -> None:
    circle = tuple(data.draw(st.permutations(range(size))))
    survivors = data.draw(st.sets(st.integers(0, size - 1), min_size=colluding + 2))
    graph = Topology(circle, reach, circle, size, colluding)

    if graph.hides(survivors):
        for traitors in combinations(sorted(survivors), colluding):
            assert is_connected(graph, survivors - set(traitors))


def unknown_masks(graph: Topology, survivors: set[int], honest: list[int]) -> np.ndarray:
    """Return a row for each honest client and a column for each mask that stays unknown to all others.

    The server has everybody's words, also of those that it calls lost. It knows the seeds of survivors, the mask keys
    of the others, and all that colluding clients know.
    """
    columns = []
    for first in honest:
        if first not in survivors:
            columns.append({first: 1})
        columns += [
            {first: 1, second: -1}
            for second in graph.neighbours(first)
            if first < second and {first, second} <= survivors & set(honest)
        ]
    return np.array([[column.get(client, 0) for column in columns] for client in honest]).reshape(len(honest), -1)


@given(data=st.data(), size=st.integers(7, 12), reach=st.integers(1, 4), colluding=st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_all_words_together_determine_one_sum_only(data: st.DataObject, size: int, reach: int, colluding: int) -> None:
    """Linear algebra over what a server has after a round, with clients that it calls lost though their words came."""
    graph = Topology(tuple(data.draw(st.permutations(range(size)))), reach, (), size, colluding)
    traitors = data.draw(st.sets(st.integers(0, size - 1), max_size=colluding))
    survivors = data.draw(st.sets(st.integers(0, size - 1), min_size=colluding + 2))
    honest = sorted(set(range(size)) - traitors)
    masks = unknown_masks(graph, survivors, honest)
    total = np.array([client in survivors for client in honest]) * 1

    assert not (total @ masks).any()
    if graph.hides(survivors):
        # Exactly one combination of the words is free of unknown masks, and it is the sum.
        assert np.linalg.matrix_rank(masks) == len(honest) - 1


def test_survivors_that_could_be_split_are_refused() -> None:
    graph = Topology(tuple(range(12)), 2, (), 0, 1)

    assert graph.hides(set(range(12)))
    assert graph.hides(set(range(12)) - {0, 2, 6})
    # Two gaps of two places each separate 2 to 5 from 8 to 11.
    assert not graph.hides(set(range(12)) - {0, 1, 6, 7})
    # The gap over the end of the circle counts, too.
    assert not graph.hides(set(range(12)) - {11, 0})


@pytest.mark.parametrize(("num_clients", "colluding"), [(3, 1), (12, 2), (40, 3), (100, 10), (200, 1)])
def test_the_graph_is_mutual_and_the_same_for_all(num_clients: int, colluding: int) -> None:
    graph = topology_of(terms_of(num_clients, num_colluding=colluding), tuple(range(num_clients)))

    neighbours = {index: set(graph.neighbours(index)) for index in range(num_clients)}

    assert all(index in neighbours[other] for index in neighbours for other in neighbours[index])
    assert all(index not in neighbours[index] for index in neighbours)
    assert graph.hides(set(range(num_clients)))
    assert (graph.reach is None) == (num_clients <= 32)
    assert len(graph.committee) == min(num_clients, len(graph.committee))
    assert graph.threshold <= len(graph.committee)


@pytest.mark.parametrize("size", range(3, 40))
@pytest.mark.parametrize("colluding", range(1, 6))
def test_two_groups_of_the_threshold_share_an_honest_member(size: int, colluding: int) -> None:
    """All colluding clients sit on the committee and answer for both sets."""
    threshold = threshold_of(size, colluding)

    assert 2 * (threshold - colluding) > size - colluding
    assert 2 * (threshold - 1 - colluding) <= size - colluding  # and no smaller threshold would do


def test_the_threshold_is_within_reach() -> None:
    for num_clients in (3, 4, 5, 10, 40, 70):
        for colluding in range(1, num_clients - 1, 1 + num_clients // 10):
            terms = terms_of(num_clients, num_colluding=colluding, honest=2)
            graph = topology_of(terms, tuple(range(num_clients)))
            assert graph.threshold <= len(graph.committee)


def test_another_run_or_another_set_has_another_graph() -> None:
    present = tuple(range(200))
    first = topology_of(terms_of(200), present)

    assert topology_of(terms_of(200, run="run-2"), present).circle != first.circle
    assert topology_of(terms_of(200, run="run-2"), present).committee != first.committee
    assert set(topology_of(terms_of(200), present[:150]).circle) == set(present[:150])


def test_random_losses_as_planned_rarely_stop_a_round() -> None:
    """The exact odds that sizes were chosen by, checked by drawing."""
    terms = terms_of(200, num_colluding=10, honest=120)
    graph, stream, failed = topology_of(terms, tuple(range(200))), np.random.default_rng(5), 0
    for _ in range(500):
        alive = set(stream.choice(200, 140, replace=False).tolist())
        failed += not graph.hides(alive) or len(alive & set(graph.committee)) < graph.threshold

    assert failed == 0
    assert graph.reach is not None
    assert 2 * graph.reach < 100
    assert topologies._seldom(10, 10, 3, 0, times=1)
    assert not topologies._seldom(10, 5, 3, 3, times=1)
