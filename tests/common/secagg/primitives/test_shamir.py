"""Shares determine a secret from the threshold on, and say nothing below it."""

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.secagg.primitives import shamir
from common.secagg.refusals import SecureSumError


def recovered(points: list[int], shares: dict[int, int]) -> int:
    return sum(shamir.weight_at_zero(point, points) * shares[point] for point in points) % shamir.PRIME


def test_the_field_is_a_prime_below_32_bytes() -> None:
    assert 2**255 < shamir.PRIME < 2**256
    assert all(pow(base, shamir.PRIME - 1, shamir.PRIME) == 1 for base in (2, 3, 5, 7, 11, 13))


@given(secret=st.integers(0, shamir.PRIME - 1), number=st.integers(2, 7), data=st.data())
@settings(max_examples=40, deadline=None)
def test_any_threshold_of_shares_is_the_secret(secret: int, number: int, data: st.DataObject) -> None:
    threshold = data.draw(st.integers(1, number))
    points = data.draw(st.lists(st.integers(1, 1000), min_size=number, max_size=number, unique=True))

    shares = dict(zip(points, shamir.split(secret, threshold=threshold, points=points), strict=True))

    chosen = data.draw(st.permutations(points))[: data.draw(st.integers(threshold, number))]
    assert recovered(chosen, shares) == secret


def test_fewer_shares_give_another_value() -> None:
    points = [1, 2, 3, 4, 5]
    shares = dict(zip(points, shamir.split(42, threshold=3, points=points), strict=True))

    for pair in combinations(points, 2):
        assert recovered(list(pair), shares) != 42


def test_shares_of_one_secret_differ_each_time() -> None:
    assert shamir.split(1, threshold=2, points=[1]) != shamir.split(1, threshold=2, points=[1])


@pytest.mark.parametrize("raw", [b"\xff" * 32, b"\x00" * 31, shamir.PRIME.to_bytes(32, "little")])
def test_bytes_that_are_not_an_element_are_refused(raw: bytes) -> None:
    with pytest.raises(SecureSumError):
        shamir.to_element(raw)


@given(st.integers(0, shamir.PRIME - 1))
@settings(max_examples=20, deadline=None)
def test_elements_survive_their_bytes(element: int) -> None:
    assert shamir.to_element(shamir.to_bytes(element)) == element
    assert 0 <= shamir.random_element() < shamir.PRIME
