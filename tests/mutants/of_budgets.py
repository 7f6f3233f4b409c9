"""Budgets, images and restored ledgers that miss what was spent."""

import stat
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import client.session as session_module
from common.errors import LedgerError
from common.ledger import budget, holder_keys, image_index, registrations, remaining_budget
from common.ledger.audit import integrity_checks
from common.ledger.data_holder import Holder, simulated_holder
from common.ledger.transactions import LedgerSession
from common.privacy import accounting
from tests.client import test_budget_under_tones as deep
from tests.common.ledger import test_budget as budgets
from tests.common.ledger import test_remaining_budget as shown_budgets
from tests.common.ledger import test_signed_heads as keys
from tests.common.ledger import test_transactions as registers
from tests.common.ledger.audit import test_integrity_checks as audits
from tests.common.privacy import test_group_losses as groups
from tests.contracts import test_whole_digests as digests
from tests.mutants.faults import every_case, planted
from tests.support.ledger.builders import KEYS, PLAN, holding
from tests.support.ledger.sessions import ONE_PLAN, PARTS, opened

planted(
    partial(
        groups.test_losses_of_a_group_are_those_of_the_library_bit_for_bit, noise=0.7, size=5, rate=0.05, grid=1e-2
    ),
    accounting._inverses,
    {
        "losses of a group that are too small": ("np.floor(highs / precision)", "np.floor(lows / precision)"),
        "half of a group's losses": ("losses < found", "losses <= found.max()"),
    },
)
planted(
    partial(
        groups.test_losses_of_a_group_are_those_of_the_library_bit_for_bit, noise=0.7, size=5, rate=0.05, grid=1e-2
    ),
    accounting._losses_at,
    {"a group whose loss is one way": ("if mixture.adjacency_type == AdjacencyType.ADD:", "if True:")},
)
_CLOSING = budgets.test_plans_count_in_full_and_for_the_filter_until_they_are_closed
planted(
    _CLOSING,
    budget.Charge.filtered,
    {
        "an open run that counts what it released": ("self.released if self.closed else self.planned", "self.released"),
    },
)
planted(
    _CLOSING,
    budget.spent_with,
    {
        "a budget of what was released": ("past[index].planned[charged_part]", "past[index].released[charged_part]"),
    },
)
planted(
    budgets.test_spent_with_takes_the_worse_of_both_parts,
    budget.spent_with,
    {
        "a budget of the training part alone": ("in new.parts.items()", "in list(new.parts.items())[:1]"),
    },
)
planted(
    every_case(budgets.test_part_of_a_group_counts_twice_and_a_whole_one_once),
    budget._group_sizes_in_groups,
    {
        "part of a group that counts once": ("else 2", "else 1"),
    },
)
planted(
    lambda tmp_path: registers.test_a_whole_client_with_other_images_is_the_same_client(opened(tmp_path)),
    budget._histories,
    {
        "a fresh budget for a client with other images": ("np.maximum(group_sizes, 1)", "group_sizes"),
        "no history for a client without images": ("max(len(units), int(whole_client))", "len(units)"),
    },
)
planted(
    every_case(shown_budgets.test_no_plan_that_the_policy_allows_starts_from_more_than_is_shown),
    remaining_budget._price_client,
    {
        "a client without images that is shown as unspent": ("whole_client=True", "whole_client=False"),
        "a client that is shown with all its images only": ("{*holdings, ", "{"),
    },
)
planted(
    every_case(shown_budgets.test_no_plan_that_the_policy_allows_starts_from_more_than_is_shown),
    remaining_budget._allowed,
    {"images whose guard starts from more than is shown": ('"image" in units or units - protected', "False")},
)
planted(
    lambda tmp_path: registers.test_register_refuses_a_whole_client_of_several_units(opened(tmp_path), PARTS),
    registrations.splits_client,
    {"a whole client that is charged image by image": ("> 1", "> 99")},
)
planted(
    lambda tmp_path, monkeypatch: audits.test_audit_finds_a_whole_client_of_several_units(
        tmp_path, monkeypatch, split=True, verdict="DOUBTFUL"
    ),
    integrity_checks._check_data_set,
    {"an audit that counts no units of a client": ("if splits_client(plan, members.units):", "if False:")},
)


def images_are_known_by_file_or_by_pixels(tmp_path: Path) -> None:
    session = opened(tmp_path)
    known = holding(0, 4)
    same_files, same_pixels = replace(holding(4, 8), files=known.files), replace(holding(8, 12), pixels=known.pixels)
    with session.ledger.transaction():
        seq = session.ledger.append("note", "x", {}).seq
        found = [
            image_index.image_ids(session.ledger, KEYS, part, seq=seq) for part in (known, same_files, same_pixels)
        ]
    assert [members.images.tolist() for members in found] == [[1, 2, 3, 4]] * 3
    with session.ledger.transaction():
        # By its file it is image 1, by its pixels image 2: both are one from now on.
        mixed = replace(known, pixels=np.roll(known.pixels, 1, axis=0))
        image_index.image_ids(session.ledger, KEYS, mixed, seq=seq)
        linked = image_index.aliases(session.ledger)
        assert {image: linked[image] for image in (2, 3, 4)} == {2: 1, 3: 1, 4: 1}
        session.ledger.insert("link", [(9, 8, seq), (8, 1, seq)], "image, same, seq")
    assert set(image_index.aliases(session.ledger).values()) == {1}
    session.ledger.close()


_KNOWN = images_are_known_by_file_or_by_pixels
planted(
    _KNOWN,
    image_index.image_ids,
    {
        "images that are known by their files alone": (
            "for name in pair if name in known}",
            "for name in pair[:1] if name in known}",
        ),
        "images that are known by their pixels alone": (
            "for name in pair if name in known}",
            "for name in pair[1:] if name in known}",
        ),
        "two names of one image that are not linked": ("links |= {(other, ids[0]) for other in ids[1:]}", "pass"),
    },
)
_JOINED = deep.test_names_that_today_stores_for_earlier_code_join_no_images
planted(
    _JOINED,
    image_index.image_ids,
    {
        "all images of one earlier name that are one": ("earlier.values(), _BY_EARLIER_CODE)", "earlier.values())"),
        "a name of earlier code that is not stored": ("(*pair, *before)", "pair"),
    },
)
_TAKEN_FOR_ONE = deep.test_images_that_earlier_code_took_for_one_stay_charged_and_on_their_side
planted(
    _TAKEN_FOR_ONE,
    image_index.image_ids,
    {
        "images that earlier code charged and nobody knows": (
            "for name in before if name in charged_before",
            "for name in ()",
        )
    },
)
planted(
    _TAKEN_FOR_ONE,
    session_module._split_names,
    {"a side of the split that a version changes": ("names[charged] = scan.earlier_digests[charged]", "pass")},
)
planted(
    _KNOWN,
    image_index.aliases,
    {
        "links that are followed once": ("return {image: root(image) for image in least}", "return least"),
    },
)


def a_restored_ledger_is_refused_and_the_head_is_kept_apart(tmp_path: Path) -> None:
    holder = replace(simulated_holder(tmp_path, "a", seed=0, durable=False), head_file=tmp_path / "head.json")
    for text in ("one", "two"):
        with holder.open_session() as session:
            session.note("run", "a", text)
    assert stat.S_IMODE((tmp_path / "head.json").stat().st_mode) == 0o600
    with holder.open_session() as session:
        (tmp_path / "head.json").write_text('{"seq": 9, "hash": "' + "a" * 64 + '"}')
    (tmp_path / "head.json").write_text('{"seq": 9, "hash": "' + "a" * 64 + '"}')
    with pytest.raises(LedgerError, match="older copy was restored"), holder.open_session():
        pass


_RESTORED = a_restored_ledger_is_refused_and_the_head_is_kept_apart
planted(
    _RESTORED,
    Holder._keep_head,
    {
        "a holder without a head apart": ("if self.head_file is None:", "if True:"),
    },
)
planted(
    _RESTORED,
    Holder.open_session,
    {
        "a ledger that is open already and not looked at": ("self._refuse_older(session.ledger)", "pass"),
    },
)
planted(
    digests.test_hash_of_a_holders_last_entry_is_whole,
    Holder._refuse_older,
    {
        "a holder's head by its number": ("!= [(kept.hash,)]", "== []"),
    },
)
planted(
    partial(keys.test_keys_that_others_can_read_are_refused, name="signing.key", mode=0o640),
    holder_keys._read,
    {
        "a key that its group can read": ("& 0o077", "& 0o007"),
    },
)


def a_cap_is_at_the_policys_delta(tmp_path: Path) -> None:
    session = opened(tmp_path)
    stricter = replace(PLAN, delta=1e-9)
    assert session.register("run", "a", stricter, PARTS, ONE_PLAN).plan == stricter
    session.ledger.close()


planted(
    a_cap_is_at_the_policys_delta,
    LedgerSession._check_budget,
    {
        "a cap at the delta that a run names": (
            "policy.delta if math.isfinite(policy.max_epsilon) else plan.delta",
            "plan.delta",
        ),
    },
)
