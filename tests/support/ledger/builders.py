"""A small ledger that the tests of audits share, and ways to tamper with it."""

import hashlib
import json
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from common.data.image_digests import ImageDigests
from common.ledger.budget import Charge, spent_with
from common.ledger.database import Ledger
from common.ledger.hash_chain import ORIGIN, Entry, canonical, hash_of
from common.ledger.holder_keys import HolderKeys
from common.ledger.image_index import Members
from common.ledger.registrations import Release
from common.ledger.signed_heads import SignedHead, sign_head
from common.ledger.transactions import LedgerSession
from common.privacy.accounting import Spent
from common.privacy.counts.counts_plan import CountsPlan
from common.privacy.noise_error import CURRENT_SAMPLER
from common.privacy.plan import PrivacyPlan
from common.privacy.policy import ANYTHING

PLAN = PrivacyPlan("dp-sgd", "image", 100, 1.0, 1, 3, 1.0, 4.0, 1e-5, CountsPlan(3, 25.0, 4.0))
WHOLE = PrivacyPlan("client-dp", "client", 5, 1.0, 1, 3, 1.0, 4.0, 1e-5, sampler=CURRENT_SAMPLER, noise_shares=3)
KEYS = HolderKeys.simulated(0, "a")
ASKED = hashlib.sha256(b"what was asked").hexdigest()
COLUMNS = tuple(Entry.__dataclass_fields__)
Tamper = Callable[[sqlite3.Connection], object]
Rewrite = Callable[[list[Entry]], list[Entry]]


def holding(first: int, last: int, unit_size: int = 1) -> ImageDigests:
    def digests(kind: str) -> np.ndarray:
        names = [hashlib.sha256(f"{kind} {number}".encode()).digest() for number in range(first, last)]
        return np.frombuffer(b"".join(names), dtype=np.uint8).reshape(-1, 32)

    return ImageDigests(digests("file"), digests("pixels"), np.arange(first, last) // unit_size)


def release(
    session: LedgerSession,
    run: str,
    plan: PrivacyPlan,
    parts: tuple[ImageDigests, ImageDigests],
    what: list[tuple[int, Release]],
) -> None:
    agreed = session.register(run, "a", plan, parts, ANYTHING)
    for server_round, kind in what:
        session.reserve(agreed, server_round, kind, ASKED, ANYTHING)
        session.commit(agreed, server_round, kind, f"reply {server_round} {kind}".encode(), keep=2)


def write_honest(file: Path, plan: PrivacyPlan = PLAN) -> list[SignedHead]:
    """A ledger with a run that is over, one that goes on over some of its images, a note and a refusal."""
    ledger = Ledger(file, durable=False)
    session, heads = LedgerSession(ledger, KEYS, simulated=True), []
    release(session, "first", plan, (holding(0, 6), holding(6, 8)), [(1, "train"), (2, "train")])
    heads.append(sign_head(KEYS, ledger.head()))
    release(session, "first", plan, (holding(0, 6), holding(6, 8)), [(3, "train"), (3, "closing")])
    session.note("first", "a", "exact counts of held-out images left")
    session.close("first", "a")
    release(session, "second", plan, (holding(4, 10, 2), holding(10, 12)), [(1, "train")])
    session.refuse("third", "a", 0, "query", "epsilon would come to 9 over all runs, the policy allows 8")
    session.note("fourth", "a", "took part with privacy.mechanism='none'")
    heads.append(sign_head(KEYS, ledger.head()))
    ledger.close()
    return heads


def tamper(file: Path, change: Tamper, *, keep_triggers: bool = True) -> None:
    """Change a ledger as its owner can: without the triggers, which are put back afterwards."""
    connection = sqlite3.connect(file, isolation_level=None)
    triggers = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
    for name, _ in triggers:
        connection.execute(f"DROP TRIGGER {name}")
    change(connection)
    for _, sql in triggers if keep_triggers else ():
        connection.execute(sql)
    connection.close()


def rewrite(file: Path, change: Rewrite) -> None:
    """Write other entries and hash the whole chain anew."""

    def everything(connection: sqlite3.Connection) -> None:
        rows = connection.execute(f"SELECT {', '.join(COLUMNS)} FROM entry ORDER BY seq").fetchall()  # noqa: S608
        found = [Entry(*row[:7], json.loads(row[7]), json.loads(row[8]), row[9]) for row in rows]
        connection.execute("DELETE FROM entry")
        before = ORIGIN
        insert = f"INSERT INTO entry VALUES ({', '.join('?' * len(COLUMNS))})"  # noqa: S608
        for seq, entry in enumerate(change(found), start=1):
            draft = replace(entry, seq=seq, prev_hash=before)
            values = asdict(replace(draft, hash=hash_of(draft)))
            values |= {name: canonical(values[name]) for name in ("event", "versions")}
            before = values["hash"]
            connection.execute(insert, [values[name] for name in COLUMNS])

    tamper(file, everything)


def spent_so_far(charges: Sequence[Charge], *, delta: float) -> Spent:
    """What the worst-off image has spent, as the budget sees it: the other way to what an audit finds."""
    none = np.zeros(0, dtype=np.int64)
    images = np.unique(np.concatenate([none, *(part.images for charge in charges for part in charge.parts.values())]))
    everything = Members(images, images)
    nothing = Charge("image", {"all": everything}, {"all": ()}, {"all": ()}, closed=True)
    return spent_with(nothing, charges, delta=delta).spent
