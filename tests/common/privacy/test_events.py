"""Events are kept as they happened; merging changes nothing but their number."""

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import PrivacyError
from common.privacy.events import CountsEvent, DpSgdEvent, Event, as_json, from_json, merged

SIZES = st.integers(1, 3)
COUNTS = st.integers(0, 5)
EVENTS = st.builds(DpSgdEvent, st.sampled_from([0.1, 1.0]), st.sampled_from([1.0, 4.0]), COUNTS, SIZES) | st.builds(
    CountsEvent, st.sampled_from([1.0, 4.0]), COUNTS, SIZES
)
HISTORIES = st.lists(EVENTS, max_size=8)


def runs(events: list[Event]) -> Counter[Event]:
    """How often each mechanism ran, one by one."""
    return Counter(event.counted(1) for event in events for _ in range(event.count))


@given(EVENTS)
def test_from_json_reads_back_what_as_json_wrote(event: Event) -> None:
    assert from_json(json.loads(json.dumps(as_json(event)))) == event


@given(HISTORIES)
def test_merged_changes_no_mechanism_and_no_number(events: list[Event]) -> None:
    found = merged(events)

    assert runs(list(found)) == runs(events)
    assert len(found) == len({event.counted(1) for event in found})
    assert all(event.count for event in found)


@given(HISTORIES.flatmap(lambda events: st.tuples(st.just(events), st.permutations(events))))
def test_merged_depends_on_no_order(pair: tuple[list[Event], list[Event]]) -> None:
    assert merged(pair[0]) == merged(pair[1])


@given(HISTORIES, HISTORIES)
def test_merged_of_parts_is_merged_of_the_whole(first: list[Event], second: list[Event]) -> None:
    assert merged([*merged(first), *merged(second)]) == merged([*first, *second])


def test_merged_keeps_apart_what_differs_in_anything() -> None:
    events = [
        DpSgdEvent(1.0, 4.0, 2),
        DpSgdEvent(0.5, 4.0, 2),
        DpSgdEvent(1.0, 2.0, 2),
        DpSgdEvent(1.0, 4.0, 2, 3),
        CountsEvent(4.0, 2),
        CountsEvent(4.0, 2, 3),
    ]

    assert set(merged(events)) == set(events)


def test_merged_of_nothing_is_nothing() -> None:
    assert merged([]) == merged([DpSgdEvent(0.5, 1.0, 0), CountsEvent(1.0, 0)]) == ()


def test_counted_changes_the_number_alone() -> None:
    assert DpSgdEvent(0.5, 1.0, 7, 3).counted(2) == DpSgdEvent(0.5, 1.0, 2, 3)
    assert CountsEvent(4.0, 7, 3).counted(2) == CountsEvent(4.0, 2, 3)
    assert (DpSgdEvent(0.5, 1.0, 7).count, CountsEvent(4.0, 9).count) == (7, 9)


GOOD = as_json(DpSgdEvent(0.5, 1.0, 7))


@pytest.mark.parametrize(
    "found",
    [
        {},
        {"kind": "dp-sgd"},
        GOOD | {"kind": "laplace"},
        GOOD | {"kind": ["dp-sgd"]},
        GOOD | {"seed": 3},
        {name: value for name, value in GOOD.items() if name != "kind"},
        {name: value for name, value in GOOD.items() if name != "steps"},
        as_json(CountsEvent(4.0, 2)) | {"kind": "dp-sgd"},
    ],
)
def test_from_json_refuses_what_is_no_event(found: dict[str, object]) -> None:
    with pytest.raises(PrivacyError, match="not an event"):
        from_json(found)


def test_from_json_takes_events_from_before_there_were_groups() -> None:
    old = {name: value for name, value in GOOD.items() if name != "group-size"}

    assert from_json(old) == DpSgdEvent(0.5, 1.0, 7, 1)
