"""What a data holder does in its ledger: agree to runs, reserve and commit releases, note refusals.

Everything is checked before anything is written, and written before anything is
computed or sent. A crash leaves more charged than was released, never less.
"""

import hashlib
import math
from typing import Any, Literal

from common.data.image_digests import ImageDigests
from common.errors import ConfigError, LedgerError, PolicyError
from common.ledger import image_index as images
from common.ledger.budget import spent_with
from common.ledger.database import Ledger
from common.ledger.hash_chain import Entry
from common.ledger.holder_keys import HolderKeys
from common.ledger.registrations import (
    CLOSED,
    Registration,
    Release,
    charge_of,
    charges_in,
    entries_of,
    is_closed,
    place,
    register_event,
    release_event,
    releases_of,
    request_id,
    unit_of,
)
from common.privacy.plan import PrivacyPlan
from common.privacy.policy import Policy


class LedgerSession:
    """One holder's ledger and keys, opened.

    Args:
        ledger: Open; its first entry is written here if it has none.
        keys: The holder's.
        simulated: Whether the images are a simulation's.

    Raises:
        LedgerError: The ledger belongs to other keys, or to a simulation and this is none.
    """

    def __init__(self, ledger: Ledger, keys: HolderKeys, *, simulated: bool) -> None:
        self.ledger = ledger
        self.keys = keys
        identity = {"ledger": keys.ledger_id, "public-key": keys.public, "simulated": simulated}
        if not ledger.head().seq:
            with ledger.transaction():
                if not ledger.head().seq:
                    ledger.append("genesis", request_id("", "", keys.ledger_id, 0, "genesis"), identity)
        if ledger.entries("seq = 1")[0].event != identity:
            raise LedgerError(f"the ledger {ledger.path} was made with other keys: restore the keys that belong to it")

    def registration(self, run: str, client: str) -> Registration | None:
        """What was agreed on for a run, if anything."""
        found = entries_of(self.ledger, "register", run, client)
        return Registration.of(found[0]) if found else None

    def register(
        self, run: str, client: str, plan: PrivacyPlan, parts: tuple[ImageDigests, ...], policy: Policy
    ) -> Registration:
        """Agree to a run, or find that it was agreed to.

        Args:
            run: Name of the run.
            client: Name of the client.
            plan: The whole plan.
            parts: What trains and what evaluates, in the order of `images.PARTS`.
            policy: The holder's.

        Raises:
            PolicyError: The plan with all that was spent before is beyond the policy, or the run was
                agreed to with another plan or other images. Nothing is written.
            LedgerError: The ledger cannot be written.
        """
        unit = unit_of(plan)
        dataset = images.content_of(self.keys, unit, parts)
        known = self.registration(run, client)
        if known is not None:
            return _unchanged(known, plan, dataset)
        policy.check_plan(plan)
        with self.ledger.transaction():
            known = self.registration(run, client)
            if known is not None:  # another process agreed to it meanwhile
                return _unchanged(known, plan, dataset)
            self._keep_images(dataset, plan, parts)
            self._check_budget(run, client, dataset, plan, policy)
            event = register_event(self.ledger, run, client, plan, dataset, policy.digest)
            ident = request_id(run, client, plan.digest, 0, "register")
            return Registration.of(self.ledger.append("register", ident, event, dataset=dataset))

    def _keep_images(self, dataset: str, plan: PrivacyPlan, parts: tuple[ImageDigests, ...]) -> None:
        if self.ledger.query("SELECT 1 FROM part WHERE dataset = ?", (dataset,)):
            return
        seq = self.ledger.head().seq + 1
        for name, part in zip(images.PARTS, parts, strict=True):
            members = images.image_ids(self.ledger, self.keys, part, seq=seq)
            images.keep_part(self.ledger, dataset, name, unit_of(plan), members)

    def _check_budget(self, run: str, client: str, dataset: str, plan: PrivacyPlan, policy: Policy) -> None:
        """The whole plan, with all that other runs have spent or still may."""
        charge, past = charge_of(self.ledger, dataset, plan), charges_in(self.ledger, without=(run, client))
        delta = policy.delta if math.isfinite(policy.max_epsilon) else plan.delta
        try:
            worst = spent_with(charge, past, delta=delta)
        except ConfigError as error:  # more than any policy could mean
            raise PolicyError(str(error)) from None
        policy.check_spent(worst.spent)
        if worst.group_bound and not policy.accept_group_bound:
            raise PolicyError(
                "images that were protected one by one are now to be protected as a group: the policy must say "
                "accept-group-bound = true"
            )

    def reserve(
        self, agreed: Registration, server_round: int, release: Release, content: str, policy: Policy
    ) -> bytes | None:
        """Charge one release before it is computed.

        Args:
            agreed: What was agreed on.
            server_round: From 1.
            release: What will leave.
            content: Hash of what was asked.
            policy: The holder's, as it is now.

        Returns:
            What was sent before, if the same was asked before; None if it is to be computed.

        Raises:
            PolicyError: The plan does not hold so many rounds, the budget went to another run meanwhile,
                or the same release was asked for with other content.
            LedgerError: The ledger cannot be written.
        """
        ident = agreed.request(server_round, release)
        with self.ledger.transaction():
            before = self.ledger.entries("request_id = ? AND kind = 'reserve'", (ident,))
            if before:
                return self._again(before[0], content)
            self._check_room(agreed, release, policy)
            event = release_event(agreed, server_round, release)
            self.ledger.append("reserve", ident, event, content_digest=content, dataset=agreed.dataset)
        return None

    def _again(self, before: Entry, content: str) -> bytes | None:
        """A request that was reserved: computed again if nothing left, sent again if something did."""
        if before.content_digest != content:
            raise PolicyError("the same round was asked for again with another model or other settings")
        if not self.ledger.entries("request_id = ? AND kind = 'commit'", (before.request_id,)):
            return None
        return self._kept(before.request_id)

    def _kept(self, ident: str) -> bytes:
        kept = self.ledger.reply(ident)
        if kept is None:
            raise PolicyError("a round was asked for again whose reply is not kept any more")
        return kept

    def _check_room(self, agreed: Registration, release: Release, policy: Policy) -> None:
        mine = releases_of(self.ledger, agreed)
        planned = agreed.plan.num_rounds if release == "train" else 1
        if is_closed(self.ledger, agreed) or mine.count(release) >= planned:
            raise PolicyError("the server asked for a release that the plan does not have")
        policy.check_plan(agreed.plan)
        if policy.digest != agreed.policy or (not mine and self._others_began_since(agreed)):
            self._check_budget(agreed.run, agreed.client, agreed.dataset, agreed.plan, policy)

    def _others_began_since(self, agreed: Registration) -> bool:
        rows = self.ledger.query(
            "SELECT 1 FROM entry WHERE kind = 'reserve' AND seq > ? AND NOT (json_extract(event, '$.run') = ? "
            "AND json_extract(event, '$.client') = ?) LIMIT 1",
            (agreed.seq, agreed.run, agreed.client),
        )
        return bool(rows)

    def commit(self, agreed: Registration, server_round: int, release: Release, reply: bytes, *, keep: int) -> bytes:
        """Write what is about to be sent; only then may it be sent.

        Of two processes that computed the same release, the first one's reply counts for both.

        Args:
            agreed: What was agreed on.
            server_round: From 1.
            release: What leaves.
            reply: Its bytes, kept for a server that asks again.
            keep: How many of the newest replies are kept.

        Returns:
            What may be sent: the reply, or the one that was committed before.

        Raises:
            PolicyError: Another reply was committed, and is not kept any more.
            LedgerError: The ledger cannot be written: nothing may be sent.
        """
        ident = agreed.request(server_round, release)
        event = place(agreed.run, agreed.client, server_round) | {"release": release}
        digest = hashlib.sha256(reply).hexdigest()
        with self.ledger.transaction():
            if not self.ledger.entries("request_id = ? AND kind = 'reserve'", (ident,)):
                raise LedgerError("a release was to be committed that nobody had reserved")
            if self.ledger.entries("request_id = ? AND kind = 'commit'", (ident,)):
                return self._kept(ident)
            self.ledger.append("commit", ident, event, content_digest=digest, dataset=agreed.dataset)
            self.ledger.keep_reply(ident, agreed.run, agreed.client, reply)
            self.ledger.forget_replies(agreed.run, agreed.client, keep=keep)
        return reply

    def refuse(self, run: str, client: str, server_round: int, kind: str, why: str) -> None:
        """Note what was refused, once for each request; the reason stays here."""
        event = place(run, client, server_round) | {"asked": kind, "why": why}
        self._write_once("refuse", request_id(run, client, "", server_round, kind), event)

    def note(self, run: str, client: str, what: str) -> None:
        """Note something about a run, once."""
        self._write_once("note", request_id(run, client, what, 0, "note"), place(run, client, 0) | {"note": what})

    def close(self, run: str, client: str) -> None:
        """Nothing more can be reserved in a run, and its replies go."""
        self.note(run, client, CLOSED)
        with self.ledger.transaction():
            self.ledger.forget_replies(run, client, keep=0)

    def _write_once(self, kind: Literal["refuse", "note"], ident: str, event: dict[str, Any]) -> None:
        with self.ledger.transaction():
            if not self.ledger.entries("request_id = ? AND kind = ?", (ident, kind)):
                self.ledger.append(kind, ident, event)


def _unchanged(known: Registration, plan: PrivacyPlan, dataset: str) -> Registration:
    if known.plan != plan or known.dataset != dataset:
        what = "plan" if known.plan != plan else "images"
        raise PolicyError(f"run {known.run[:12]} was agreed to with another {what}; other {what} are another run")
    return known
