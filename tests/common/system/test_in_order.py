"""Short items are computed by the caller's thread, long ones by several; results come in order either way."""

import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest

from common.system import threads
from common.system.threads import in_order

SHORT, LONG = 1e-4, 1e-2
# Items after which threads must have given short ones back, with those that were under way.
SOON = 2 * threads._TRIED_AGAIN + 2 * 2 + 1


@pytest.fixture(name="alone")
def alone_fixture(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[float]], list[bool]]:
    """Return which items the caller's thread computes, of items that take so many seconds each."""
    now = [0.0]
    monkeypatch.setattr(threads, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(threads, "num_cores", lambda: 2)

    def computed(cost: float) -> bool:
        mine = threading.current_thread() is threading.main_thread()
        now[0] += cost if mine else 0
        return mine

    def alone(costs: list[float]) -> list[bool]:
        found = list(in_order(computed, enumerate(costs)))
        assert [key for key, _ in found] == list(range(len(costs)))
        return [mine for _, mine in found]

    return alone


def test_short_items_stay_in_the_callers_thread(alone: Callable[[list[float]], list[bool]]) -> None:
    assert all(alone([SHORT] * 1_000))


def test_long_items_go_to_threads_but_for_the_few_that_are_timed(alone: Callable[[list[float]], list[bool]]) -> None:
    mine = alone([LONG] * 1_000)

    assert mine[:2] == [True, False]
    assert sum(mine) == -(-1_000 // (2 * threads._TRIED_AGAIN + 1))


def test_items_that_become_long_go_to_threads_soon(alone: Callable[[list[float]], list[bool]]) -> None:
    mine = alone([SHORT] * 500 + [LONG] * 100)

    assert all(mine[:500])
    assert not any(mine[502:])


def test_items_that_become_short_come_back(alone: Callable[[list[float]], list[bool]]) -> None:
    mine = alone([LONG] * 500 + [SHORT] * 500)

    assert all(mine[500 + SOON :])


def test_one_long_item_takes_no_others_with_it_for_long(alone: Callable[[list[float]], list[bool]]) -> None:
    """The first image loads libraries."""
    mine = alone([LONG * 100] + [SHORT] * 1_000)

    assert not mine[1]
    assert all(mine[SOON:])


def test_now_and_then_a_longer_item_starts_no_threads(alone: Callable[[list[float]], list[bool]]) -> None:
    assert all(alone(([SHORT] * 19 + [10 * SHORT]) * 50))


def test_two_long_items_are_computed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "num_cores", lambda: 2)
    monkeypatch.setattr(threads, "_WORTH_THREADS", 0.0)
    meeting = threading.Barrier(2, timeout=20)

    def computed(item: int) -> int:
        meeting.wait()
        return item

    # Alone, the first one would wait in vain.
    assert [result for _, result in in_order(computed, enumerate(range(6)))] == list(range(6))


def running() -> list[str]:
    return [thread.name for thread in threading.enumerate() if "ThreadPool" in thread.name]


@pytest.mark.parametrize("cost", [SHORT, LONG])
def test_error_comes_at_its_place_and_ends_the_work(monkeypatch: pytest.MonkeyPatch, cost: float) -> None:
    now, begun = [0.0], list[int]()
    monkeypatch.setattr(threads, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def computed(item: int) -> int:
        now[0] += cost
        begun.append(item)
        if item == 20:
            raise ValueError("item 20")
        return item

    found, before = list[int](), running()
    with pytest.raises(ValueError, match="item 20"):
        found.extend(result for _, result in in_order(computed, enumerate(range(1_000))))

    assert found == list(range(20))
    assert max(begun) < 100
    assert running() == before


@pytest.mark.parametrize("cost", [SHORT, LONG])
def test_only_a_few_items_are_taken_ahead(monkeypatch: pytest.MonkeyPatch, cost: float) -> None:
    now, given = [0.0], list[int]()
    monkeypatch.setattr(threads, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(threads, "num_cores", lambda: 2)

    before = running()

    def items() -> Iterator[tuple[int, int]]:
        for number in range(1_000):
            given.append(number)
            yield number, number

    def computed(item: int) -> int:
        now[0] += cost
        return item

    results = in_order(computed, items())
    for taken, _ in results:
        assert len(given) - taken <= 2 * 2 + 2
        if taken == 300:
            break
    results.close()  # type: ignore[attr-defined]
    assert running() == before
