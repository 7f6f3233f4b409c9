"""Any change of any entry breaks the chain."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import LedgerError
from common.ledger.hash_chain import ORIGIN, Entry, canonical, check_chain, hash_of

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


def chain(length: int) -> list[Entry]:
    entries: list[Entry] = []
    before = ORIGIN
    for seq in range(1, length + 1):
        kind: Any = "genesis" if seq == 1 else "note"
        draft = Entry(seq, before, kind, "2030-01-01", f"request {seq}", "c", "d", {"value": seq}, {"numpy": "2"})
        entries.append(replace(draft, hash=hash_of(draft)))
        before = entries[-1].hash
    return entries


CHANGES: dict[str, Any] = {
    "seq": 9,
    "prev_hash": "1" * 64,
    "kind": "refuse",
    "time": "2031-01-01",
    "request_id": "another",
    "content_digest": "other",
    "dataset": "other",
    "event": {"value": 2.5},
    "versions": {"numpy": "3"},
    "hash": "2" * 64,
}


def test_check_chain_counts_the_entries() -> None:
    assert check_chain(chain(5)) == 5


def test_changes_cover_every_field() -> None:
    assert list(CHANGES) == list(Entry.__dataclass_fields__)


@pytest.mark.parametrize("at", [0, 2, 4])
@pytest.mark.parametrize("field", list(CHANGES))
def test_check_chain_finds_a_change(field: str, at: int) -> None:
    entries = chain(5)
    entries[at] = replace(entries[at], **{field: CHANGES[field]})

    with pytest.raises(LedgerError, match="chain is broken"):
        check_chain(entries)


@pytest.mark.parametrize("at", [0, 2])
def test_check_chain_finds_a_change_that_was_hashed_anew(at: int) -> None:
    entries = chain(5)
    draft = replace(entries[at], event={"value": 7})
    entries[at] = replace(draft, hash=hash_of(draft))

    with pytest.raises(LedgerError, match=f"entry {at + 2} was changed"):
        check_chain(entries)


@pytest.mark.parametrize("keep", [[1, 2], [0, 2], [0, 2, 1], [0, 1, 1, 2], [0, 0, 1, 2]])
def test_check_chain_finds_entries_that_are_missing_moved_or_doubled(keep: list[int]) -> None:
    entries = chain(3)

    with pytest.raises(LedgerError, match="chain is broken"):
        check_chain([entries[at] for at in keep])


@pytest.mark.parametrize("kinds", [["note", "note"], ["genesis", "genesis"]])
def test_check_chain_wants_one_genesis_and_wants_it_first(kinds: list[Any]) -> None:
    entries, before = [], ORIGIN
    for seq, kind in enumerate(kinds, start=1):
        draft = Entry(seq, before, kind, "", str(seq))
        entries.append(replace(draft, hash=hash_of(draft)))
        before = entries[-1].hash

    with pytest.raises(LedgerError, match="stands at place"):
        check_chain(entries)


def test_check_chain_refuses_an_empty_one() -> None:
    with pytest.raises(LedgerError, match="no entries"):
        check_chain([])


def test_hash_of_an_entry_is_what_it_has_always_been() -> None:
    # written down once: old ledgers must stay readable
    entry = Entry(1, ORIGIN, "genesis", "2030-01-01T00:00:00.000+00:00", "r", event={"b": 1.5, "a": [True, None]})

    assert hash_of(entry) == hash_of(replace(entry, hash="whatever"))
    assert hash_of(entry) == "5e9732ee3adf21dab706904167aae3b3bf0ef707661914e7ce17de49c6147a3d"


@given(st.dictionaries(st.text(), PLAIN, max_size=4))
def test_canonical_depends_on_values_alone(value: dict[str, Any]) -> None:
    turned = dict(reversed(value.items()))

    assert canonical(turned) == canonical(value)
    assert canonical(value).isascii()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_canonical_refuses_what_json_has_no_word_for(value: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        canonical({"value": value})
