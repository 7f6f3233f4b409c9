"""The transactions of a data holder's ledger, from registering a run to closing it.

Everything is checked before anything is written, and everything is written before anything is computed or sent. So
after a crash more may be charged than was released, but never less.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
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
    digest_of_classes,
    entries_of,
    is_closed,
    register_event,
    release_event,
    releases_of,
    request_id,
    run_fields,
    splits_client,
    unit_of,
)
from common.privacy.plan import PrivacyPlan
from common.privacy.policy import Policy


class LedgerSession:
    """An open ledger together with its holder's keys.

    A ledger without entries gets its first entry here.

    Raises:
        LedgerError: The ledger belongs to other keys, or `simulated` differs from what it was made for.
    """

    def __init__(self, ledger: Ledger, keys: HolderKeys, *, simulated: bool) -> None:
        self.ledger = ledger
        self.keys = keys
        identity = {"ledger": keys.ledger_id, "public-key": keys.public, "simulated": simulated}
        if not ledger.head().seq:
            with ledger.transaction():
                # Another process may have written the first entry since the line above.
                if not ledger.head().seq:
                    ledger.append("genesis", request_id("", "", keys.ledger_id, 0, "genesis"), identity)
        # With other keys, images that are in the ledger would get other names and seem new.
        if ledger.entries("seq = 1")[0].event != identity:
            raise LedgerError(f"the ledger {ledger.path} was made with other keys: restore the keys that belong to it")

    def registration(self, run: str, client: str) -> Registration | None:
        """Return a run's registration, None if the run is not registered."""
        registered = entries_of(self.ledger, "register", run, client)
        return Registration.of(registered[0]) if registered else None

    def register(
        self,
        run: str,
        client: str,
        plan: PrivacyPlan,
        parts: tuple[ImageDigests, ...],
        policy: Policy,
        classes: Sequence[str] = (),
    ) -> Registration:
        """Register a run or return its earlier registration.

        `parts` holds the images that train and those that evaluate, in the order of `image_index.PARTS`. `classes` is
        the class list that a server asked for, empty where the list is the source's own.

        Raises:
            PolicyError: The plan and all earlier spending together exceed the policy, the run was registered with
                another plan, another class list or other images, or a whole client is not one unit. Nothing is written.
            LedgerError: The ledger cannot be written.
        """
        unit, listed = unit_of(plan), digest_of_classes(classes)
        dataset = images.content_of(self.keys, unit, parts)
        known = self.registration(run, client)
        if known is not None:
            return _unchanged(known, plan, dataset, listed)
        policy.check_plan(plan)
        # Images that were charged one by one would later cost less than a client that moves as a whole.
        if any(splits_client(plan, part.units) for part in parts):
            raise PolicyError("a plan for whole clients has images that do not form one unit")
        with self.ledger.transaction():
            known = self.registration(run, client)
            # Another process may have registered the run since the check above.
            if known is not None:
                return _unchanged(known, plan, dataset, listed)
            # The budget is checked last, because it needs the images' numbers.
            # A refusal rolls the whole transaction back, so the images are not kept either.
            self._keep_images(dataset, plan, parts)
            self._check_budget(run, client, dataset, plan, policy)
            event = register_event(self.ledger, run, client, plan, dataset, policy.digest)
            event |= {"classes": listed} if listed else {}
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
        """Refuse a plan whose total with all other runs exceeds the policy."""
        charge, past = charge_of(self.ledger, dataset, plan), charges_in(self.ledger, without=(run, client))
        # Without a cap the policy's delta has no meaning. The plan's delta then gives the figure.
        delta = policy.delta if math.isfinite(policy.max_epsilon) else plan.delta
        try:
            worst = spent_with(charge, past, delta=delta)
        except ConfigError as error:
            # The epsilon is too large to compute, so it is above any cap that a policy can have.
            raise PolicyError(str(error)) from None
        policy.check_spent(worst.spent, worst.alone)
        # A group's bound grows with its number of images, so the holder must have accepted that.
        if worst.group_bound and not policy.accept_group_bound:
            raise PolicyError(
                "images that were protected one by one are now to be protected as a group: the policy must say "
                "accept-group-bound = true"
            )

    def reserve(
        self, agreed: Registration, server_round: int, release: Release, content: str, policy: Policy
    ) -> bytes | None:
        """Charge one release before it is computed.

        `content` is the hash of the request, `policy` the holder's policy as it is now. Return the reply that was
        committed to the same request before, None if the reply must be computed.

        Raises:
            PolicyError: The plan does not hold so many rounds, another run has used the budget meanwhile, or the same
                release was requested with other content.
            LedgerError: The ledger cannot be written.
        """
        ident = agreed.request(server_round, release)
        with self.ledger.transaction():
            before = self.ledger.entries("request_id = ? AND kind = 'reserve'", (ident,))
            # A repeated request must not be charged again, and must not get a second, different reply.
            if before:
                return self._again(before[0], content)
            self._check_room(agreed, server_round, release, policy)
            event = release_event(agreed, server_round, release)
            self.ledger.append("reserve", ident, event, content_digest=content, dataset=agreed.dataset)
        return None

    def _again(self, before: Entry, content: str) -> bytes | None:
        """Return the committed reply to a repeated request, None if nothing left."""
        # The charge covers one reply. A reply to other content would be a second release.
        if before.content_digest != content:
            raise PolicyError("the same round was asked for again with another model or other settings")
        if not self.ledger.entries("request_id = ? AND kind = 'commit'", (before.request_id,)):
            return None
        return self._kept(before.request_id)

    def _kept(self, ident: str) -> bytes:
        reply = self.ledger.reply(ident)
        # To compute it again would be a second release under one charge.
        if reply is None:
            raise PolicyError("a release was asked for again whose reply is not kept any more")
        return reply

    def _check_room(self, agreed: Registration, server_round: int, release: Release, policy: Policy) -> None:
        """Refuse a release that the plan or the policy does not allow."""
        reserved, plan = releases_of(self.ledger, agreed), agreed.plan
        rounds = [number for kind, number in reserved if kind == release]
        planned = {"train": plan.num_rounds, "closing": 1, "labels": len(plan.label_events())}[release]
        if is_closed(self.ledger, agreed) or len(rounds) >= planned:
            raise PolicyError("the server asked for a release that the plan does not have")
        # Round numbers come from the server, which could choose counted ones alone.
        if release == "train" and plan.counts and plan.num_counted([*rounds, server_round]) > plan.counts.num_rounds:
            raise PolicyError("the server asked for counts in more rounds than the plan has")
        # The policy may have become stricter since the run was registered.
        policy.check_plan(agreed.plan)
        # A plan counts for other runs from its first reserved round on. Before that, another run may have
        # used the budget. Afterwards only a changed policy needs a new check.
        if policy.digest != agreed.policy or (not reserved and self._others_began_since(agreed)):
            self._check_budget(agreed.run, agreed.client, agreed.dataset, agreed.plan, policy)

    def _others_began_since(self, agreed: Registration) -> bool:
        rows = self.ledger.query(
            "SELECT 1 FROM entry WHERE kind = 'reserve' AND seq > ? AND NOT (json_extract(event, '$.run') = ? "
            "AND json_extract(event, '$.client') = ?) LIMIT 1",
            (agreed.seq, agreed.run, agreed.client),
        )
        return bool(rows)

    def commit(self, agreed: Registration, server_round: int, release: Release, reply: bytes, *, keep: int) -> bytes:
        """Write a reply to the ledger and return the reply to send.

        Only what this returns may be sent. If two processes computed the same release, the first reply counts for both.
        The `keep` newest replies are kept, so that they can be sent again.

        Raises:
            PolicyError: Another reply was committed and is not kept any more.
            LedgerError: The release was not reserved, or the ledger cannot be written: nothing may be sent.
        """
        ident = agreed.request(server_round, release)
        event = run_fields(agreed.run, agreed.client, server_round) | {"release": release}
        digest = hashlib.sha256(reply).hexdigest()
        with self.ledger.transaction():
            # A release without a charge must never leave.
            if not self.ledger.entries("request_id = ? AND kind = 'reserve'", (ident,)):
                raise LedgerError("a release was to be committed that was not reserved")
            # One charge covers one reply: the first one that was committed.
            if self.ledger.entries("request_id = ? AND kind = 'commit'", (ident,)):
                return self._kept(ident)
            self.ledger.append("commit", ident, event, content_digest=digest, dataset=agreed.dataset)
            self.ledger.keep_reply(ident, agreed.run, agreed.client, reply)
            # Each round needs the label counts. Drawing them again would be a second release.
            self.ledger.forget_replies(agreed.run, agreed.client, keep=keep, spare=agreed.request(0, "labels"))
        return reply

    def refuse(self, run: str, client: str, server_round: int, kind: str, why: str) -> None:
        """Record a refusal once for each request.

        The reason stays in the ledger. It is never sent.
        """
        event = run_fields(run, client, server_round) | {"asked": kind, "why": why}
        self._write_once("refuse", request_id(run, client, "", server_round, kind), event)

    def note(self, run: str, client: str, text: str) -> None:
        """Record a note about a run, once for each text."""
        self._write_once("note", request_id(run, client, text, 0, "note"), run_fields(run, client, 0) | {"note": text})

    def mark(self, run: str, client: str, text: str, about: str) -> bool:
        """Write a note about one thing once and return whether it is new.

        Raises:
            PolicyError: The same text was noted about another thing before.
        """
        ident = request_id(run, client, text, 0, "note")
        with self.ledger.transaction():
            before = self.ledger.entries("request_id = ? AND kind = 'note'", (ident,))
            if before and before[0].event["about"] != about:
                raise PolicyError(f"{text}: this was answered before for something else")
            if not before:
                self.ledger.append("note", ident, run_fields(run, client, 0) | {"note": text, "about": about})
            return not before

    def answer_once(
        self, run: str, client: str, text: str, asked: str, compute: Callable[[], bytes], *, keep: int
    ) -> bytes:
        """Return the one reply to a question that costs nothing.

        `asked` is the hash of the question. The same question gets the stored reply again.

        Raises:
            PolicyError: It was asked before with other content, its reply is not kept any more, or the run is closed.
        """
        ident = request_id(run, client, text, 0, "note")
        kept = self._answered(run, client, ident, asked)
        if kept is not None:
            return kept
        reply = compute()
        digest = hashlib.sha256(reply).hexdigest()
        event = run_fields(run, client, 0) | {"note": text, "about": asked, "reply": digest}
        with self.ledger.transaction():
            # Another process may have answered meanwhile. Two replies under the same masks would show their difference.
            kept = self._answered(run, client, ident, asked)
            if kept is None:
                self.ledger.append("note", ident, event)
                self.ledger.keep_reply(ident, run, client, reply)
                self.ledger.forget_replies(run, client, keep=keep)
        return reply if kept is None else kept

    def has_summed(self, run: str, client: str) -> bool:
        """Return whether sums of a run have begun.

        They have once masked words left, or a sum was opened.
        """
        notes = [entry.event for entry in entries_of(self.ledger, "note", run, client)]
        commits = [entry.event for entry in entries_of(self.ledger, "commit", run, client)]
        # Label counts are committed before the first masked words, and never leave.
        return any(event.get("about") for event in notes) or any(event["release"] != "labels" for event in commits)

    def _answered(self, run: str, client: str, ident: str, asked: str) -> bytes | None:
        closed = request_id(run, client, CLOSED, 0, "note")
        if self.ledger.entries("request_id = ? AND kind = 'note'", (closed,)):
            raise PolicyError("the server asked for a round of a run that is closed")
        before = self.ledger.entries("request_id = ? AND kind = 'note'", (ident,))
        if not before:
            return None
        if before[0].event["about"] != asked:
            raise PolicyError("the same round was asked for again with another model or other settings")
        return self._kept(ident)

    def close(self, run: str, client: str) -> None:
        """Close a run to further releases and delete its kept replies."""
        self.note(run, client, CLOSED)
        with self.ledger.transaction():
            self.ledger.forget_replies(run, client, keep=0)

    def _write_once(self, kind: Literal["refuse", "note"], ident: str, event: dict[str, Any]) -> None:
        # Entries are never deleted, so what is there already needs no lock. Most messages repeat a note of their run.
        if self.ledger.entries("request_id = ? AND kind = ?", (ident, kind)):
            return
        with self.ledger.transaction():
            if not self.ledger.entries("request_id = ? AND kind = ?", (ident, kind)):
                self.ledger.append(kind, ident, event)


def _unchanged(known: Registration, plan: PrivacyPlan, dataset: str, classes: str) -> Registration:
    """Return an earlier registration, refusing another plan, class list or other images."""
    # Before the images: a server that asks once more with another list would learn whether it has images here.
    if known.classes and classes != known.classes:
        raise PolicyError(f"run {known.run[:12]} was agreed to with other classes; other classes are another run")
    # By digest, because a run that an earlier version began goes on, charged for the sampler that it registered.
    if known.plan.digest != plan.digest or known.dataset != dataset:
        changed = "plan" if known.plan.digest != plan.digest else "images"
        raise PolicyError(f"run {known.run[:12]} was agreed to with another {changed}; other {changed} are another run")
    return known
