"""Cohorts: fair, seeded, by name."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from server.rounds.cohorts import draw_cohorts


@given(st.integers(1, 30), st.data(), st.integers(1, 40), st.integers(0, 5))
def test_draw_cohorts_never_exceeds_the_fair_number_of_rounds(
    num_clients: int, data: st.DataObject, num_rounds: int, seed: int
) -> None:
    size = data.draw(st.integers(1, num_clients))
    names = [f"{i:05d}" for i in range(num_clients)]

    cohorts = draw_cohorts(names, cohort_size=size, num_rounds=num_rounds, seed=seed)

    taken = Counter(name for cohort in cohorts for name in cohort)
    assert all(len(set(cohort)) == size for cohort in cohorts)
    assert max(taken.values()) <= -(-num_rounds * size // num_clients)
    assert max(taken.values()) - min(taken[name] for name in names) <= 1


def test_draw_cohorts_depends_on_seed_and_names_not_on_their_order() -> None:
    names = [f"{i:05d}" for i in range(20)]

    first = draw_cohorts(names, cohort_size=3, num_rounds=9, seed=1)

    assert first == draw_cohorts(names[::-1], cohort_size=3, num_rounds=9, seed=1)
    assert first != draw_cohorts(names, cohort_size=3, num_rounds=9, seed=2)
