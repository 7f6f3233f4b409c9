"""An image keeps its budget, whatever it is called, wherever it lies and whatever else lies beside it.

Drives `common.data.image_digests`.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.errors import LedgerError, PolicyError
from common.ledger import image_index as images
from common.ledger.database import Ledger
from common.ledger.holder_keys import HolderKeys
from common.ledger.transactions import LedgerSession
from common.privacy.policy import Policy
from tests.support.ledger.builders import KEYS, PLAN, ImageDigests, holding, release

# Exactly one plan: whoever finds a charged image finds nothing left.
ONE_PLAN = Policy(max_epsilon=PLAN.spent().pld, delta=PLAN.delta, accept_group_bound=True)
SPENT = holding(0, 6)
NOBODY = holding(900, 902)
NOTHING = holding(0, 0)
Parts = tuple[ImageDigests, ImageDigests]


@pytest.fixture
def session(tmp_path: Path) -> Iterator[LedgerSession]:
    opened = LedgerSession(Ledger(tmp_path / "ledger.sqlite", durable=False), KEYS, simulated=True)
    release(opened, "first", PLAN, (SPENT, holding(6, 8)), [(1, "train")])
    yield opened
    opened.ledger.close()


def taken(found: ImageDigests, rows: list[int]) -> ImageDigests:
    return ImageDigests(found.files[rows], found.pixels[rows], found.units[rows])


def joined(*found: ImageDigests) -> ImageDigests:
    names = ("files", "pixels", "units")
    return ImageDigests(*(np.concatenate([getattr(one, name) for one in found]) for name in names))


def mixed(files: ImageDigests, pixels: ImageDigests) -> ImageDigests:
    return ImageDigests(files.files, pixels.pixels, files.units)


SAME: dict[str, Parts] = {
    "the same": (SPENT, NOBODY),
    "reordered": (taken(SPENT, [5, 3, 1, 0, 2, 4]), NOBODY),
    "copied": (joined(SPENT, SPENT), NOBODY),
    "relabelled": (replace(SPENT, units=SPENT.units[::-1] + 70), NOBODY),
    "split": (taken(SPENT, [2, 3]), NOBODY),
    "one image of them": (taken(SPENT, [4]), NOBODY),
    "one image larger": (holding(0, 7), NOBODY),
    "one among many": (joined(holding(100, 140), taken(SPENT, [0])), NOBODY),
    "same files, other pixels": (mixed(SPENT, holding(200, 206)), NOBODY),
    "same pixels, other files": (mixed(holding(200, 206), SPENT), NOBODY),
    "one image with the same pixels": (joined(holding(100, 105), mixed(holding(200, 201), taken(SPENT, [3]))), NOBODY),
    "held out instead of trained": (NOBODY, SPENT),
    "trained instead of held out": (holding(6, 8), NOBODY),
    "both parts changed round": (holding(6, 8), SPENT),
    "in groups": (holding(0, 6, 2), NOBODY),
}


@pytest.mark.parametrize("unit", ["image", "group"])
@pytest.mark.parametrize("case", list(SAME))
def test_holding_finds_its_spent_budget_when(session: LedgerSession, case: str, unit: str) -> None:
    before = list(session.ledger._connection.iterdump())

    with pytest.raises(PolicyError, match="epsilon would come to"):
        session.register("second", "another client", replace(PLAN, privacy_unit=unit), SAME[case], ONE_PLAN)

    assert list(session.ledger._connection.iterdump()) == before


@pytest.mark.parametrize(
    "parts", [(holding(8, 20), NOBODY), (NOBODY, holding(8, 9)), (NOTHING, NOBODY), (NOBODY, NOTHING)]
)
def test_holding_has_a_budget_of_its_own_when_its_images_are_different(session: LedgerSession, parts: Parts) -> None:
    assert session.register("second", "a", PLAN, parts, ONE_PLAN).run == "second"


def test_a_file_digest_is_no_pixel_digest(session: LedgerSession) -> None:
    turned = ImageDigests(SPENT.pixels, SPENT.files, SPENT.units)

    assert session.register("second", "a", PLAN, (turned, NOBODY), ONE_PLAN).run == "second"


def test_a_chain_of_half_known_images_leads_to_the_first(session: LedgerSession) -> None:
    # never seen with both names at once: file of 0 with new pixels, those pixels with a new file, and so on
    wide = ONE_PLAN.model_copy(update={"max_epsilon": 100.0})
    one = taken(SPENT, [0])
    pixels, file = holding(300, 301), holding(400, 401)
    session.register("second", "a", PLAN, (mixed(one, pixels), NOBODY), wide)

    with pytest.raises(PolicyError, match="epsilon would come to"):
        session.register("third", "a", PLAN, (mixed(file, pixels), holding(950, 951)), ONE_PLAN)


def test_two_images_that_turn_out_to_be_one_carry_both_budgets(session: LedgerSession) -> None:
    release(session, "second", PLAN, (holding(20, 21), NOBODY), [(1, "train")])
    two_plans = ONE_PLAN.model_copy(update={"max_epsilon": replace(PLAN, num_rounds=6).spent().pld})
    link = mixed(holding(20, 21), taken(SPENT, [0]))  # the file of one, the pixels of the other

    with pytest.raises(PolicyError, match="epsilon would come to"):
        session.register("third", "a", PLAN, (link, holding(960, 961)), two_plans)

    assert images.aliases(session.ledger) == {}  # refused: not even the link is written
    three_plans = two_plans.model_copy(update={"max_epsilon": replace(PLAN, num_rounds=9).spent().pld})
    session.register("third", "a", PLAN, (link, holding(960, 961)), three_plans)
    first, second = (number(session, one) for one in (taken(SPENT, [0]), holding(20, 21)))
    assert images.aliases(session.ledger)[max(first, second)] == min(first, second)
    with pytest.raises(PolicyError, match="epsilon would come to"):  # a link works both ways
        session.register("fourth", "a", PLAN, (holding(20, 21), holding(961, 962)), two_plans)


def number(session: LedgerSession, one: ImageDigests) -> int:
    found = images.image_ids(session.ledger, KEYS, one, seq=0).images
    return int(found[0])


def test_resolve_numbers_copies_alike_and_others_apart(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite", durable=False)
    with ledger.transaction():
        first = images.image_ids(ledger, KEYS, joined(holding(0, 3), holding(1, 4)), seq=1)
    again = images.image_ids(ledger, KEYS, holding(0, 4), seq=2)
    ledger.close()

    assert first.images.tolist() == [1, 2, 3, 2, 3, 4]
    assert again.images.tolist() == [1, 2, 3, 4]


def test_resolve_finds_more_names_than_one_query_takes(tmp_path: Path) -> None:
    ledger, many = Ledger(tmp_path / "ledger.sqlite", durable=False), holding(0, 700)
    with ledger.transaction():
        first = images.image_ids(ledger, KEYS, many, seq=1)
    rows = np.random.default_rng(0).permutation(700)
    again = images.image_ids(ledger, KEYS, taken(many, rows.tolist()), seq=2)
    count = ledger.query("SELECT count(*), count(DISTINCT image) FROM fingerprint")
    ledger.close()

    assert again.images.tolist() == first.images[rows].tolist()
    assert count == [(1400, 700)]


def test_ledger_holds_no_digest_of_an_image_and_other_keys_know_none(session: LedgerSession) -> None:
    names = {bytes(name) for (name,) in session.ledger.query("SELECT name FROM fingerprint")}
    digests = {row.tobytes() for row in (*SPENT.files, *SPENT.pixels)}
    plain = {hashlib.sha256(digest).digest() for digest in digests}

    assert len(names) == 16
    assert not names & (digests | plain)
    stranger = images.image_ids(session.ledger, HolderKeys.simulated(0, "b"), SPENT, seq=9)
    assert stranger.images.min() > 8


@st.composite
def links(draw: st.DrawFn) -> list[tuple[int, int]]:
    image = st.integers(1, 9)
    return draw(st.lists(st.tuples(image, image), max_size=12))


def groups(pairs: list[tuple[int, int]]) -> dict[int, int]:
    """Each image's least equal, by merging sets until nothing changes."""
    sets = [{image} for image in range(1, 10)]
    for pair in pairs:
        touched = [one for one in sets if one & set(pair)]
        sets = [one for one in sets if not one & set(pair)] + [set().union(*touched)]
    return {image: min(one) for one in sets for image in one}


@given(links())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_aliases_are_the_least_of_all_that_links_connect(tmp_path: Path, pairs: list[tuple[int, int]]) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite", durable=False)
    ledger._connection.execute("BEGIN")
    ledger.insert("link", [(*pair, 1) for pair in pairs], "image, same, seq")
    known_as = images.aliases(ledger)
    ledger._connection.execute("ROLLBACK")
    ledger.close()

    everything = np.arange(1, 10)
    assert images.follow_links(everything, known_as).tolist() == [groups(pairs)[image] for image in range(1, 10)]


@given(st.permutations(range(8)), st.integers(1, 3))
def test_content_of_depends_on_no_order_and_no_number_of_a_unit(order: list[int], size: int) -> None:
    part = holding(0, 8, size)
    moved = taken(replace(part, units=(part.units * 7 + 3) % 100), order)

    assert images.content_of(KEYS, "group", (moved, NOBODY)) == images.content_of(KEYS, "group", (part, NOBODY))


OTHER_CONTENT: dict[str, Callable[[], str]] = {
    "one image less": lambda: images.content_of(KEYS, "group", (holding(0, 7, 2), NOBODY)),
    "one image more": lambda: images.content_of(KEYS, "group", (holding(0, 9, 2), NOBODY)),
    "a copy": lambda: images.content_of(KEYS, "group", (joined(holding(0, 8, 2), holding(0, 1, 2)), NOBODY)),
    "other groups": lambda: images.content_of(KEYS, "group", (holding(0, 8, 4), NOBODY)),
    "another unit": lambda: images.content_of(KEYS, "image", (holding(0, 8, 2), NOBODY)),
    "other parts": lambda: images.content_of(KEYS, "group", (NOBODY, holding(0, 8, 2))),
    "another split": lambda: images.content_of(KEYS, "group", (joined(holding(0, 8, 2), NOBODY), NOTHING)),
    "another pixel": lambda: images.content_of(KEYS, "group", (mixed(holding(0, 8, 2), holding(1, 9)), NOBODY)),
    "another file": lambda: images.content_of(
        KEYS, "group", (replace(holding(0, 8, 2), files=holding(1, 9).files), NOBODY)
    ),
    "other keys": lambda: images.content_of(HolderKeys.simulated(0, "b"), "group", (holding(0, 8, 2), NOBODY)),
}


@pytest.mark.parametrize("case", list(OTHER_CONTENT))
def test_content_of_is_another_for(case: str) -> None:
    assert OTHER_CONTENT[case]() != images.content_of(KEYS, "group", (holding(0, 8, 2), NOBODY))


def test_parts_are_read_as_they_were_kept(tmp_path: Path) -> None:
    ledger, found = Ledger(tmp_path / "ledger.sqlite", durable=False), images.Members(np.arange(3), np.arange(3) // 2)
    with ledger.transaction():
        images.keep_part(ledger, "set", "training", "group", found)
        images.keep_part(ledger, "set", "training", "group", found)  # once is enough
    unit, again = images.read_part(ledger, "set", "training")

    assert (unit, again.images.tolist(), again.units.tolist()) == ("group", [0, 1, 2], [0, 0, 1])
    with pytest.raises(LedgerError, match="lacks the images"):
        images.read_part(ledger, "set", "evaluation")
    ledger.close()
