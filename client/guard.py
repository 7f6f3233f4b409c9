"""The guard of a client with policy and ledger before every release."""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from flwr.app import RecordDict

from common.config.schema import RunConfig
from common.data.image_digests import ImageDigests
from common.errors import LedgerError, PolicyError
from common.ledger.data_holder import Holder
from common.ledger.registrations import Registration, Release
from common.ledger.signed_heads import SignedHead
from common.ledger.transactions import LedgerSession
from common.messages.serialization import digest_of, pack, unpack
from common.privacy.batched_gradients import NOTE, OPACUS
from common.privacy.plan import PrivacyPlan
from common.privacy.policy import Policy

_log = logging.getLogger("bract.client")
# (agreed plan, None where no plan is needed; noised label counts, where the plan has them) -> reply.
Compute = Callable[[PrivacyPlan | None, np.ndarray | None], RecordDict]
# (agreed plan) -> noised label counts, (classes,) int64.
DrawLabels = Callable[[PrivacyPlan], np.ndarray]


@dataclass(frozen=True)
class Guard:
    """The guard of one client's images in one run.

    Attributes:
        config: The run's configuration, from the server.
        client: Name of the client.
        policy: The data holder's policy.
        holder: Ledger and keys; None in a simulation without privacy, which accounts for nothing.
        plan: The run's whole plan, where the client adds the noise itself.
        parts: Digests of the images that train, and of those that evaluate.
    """

    config: RunConfig
    client: str
    policy: Policy
    holder: Holder | None
    plan: PrivacyPlan | None
    parts: tuple[ImageDigests, ImageDigests]

    def agree(self, run: str) -> SignedHead | None:
        """Register a run with its whole plan before round 1.

        Args:
            run: The server's name for the run.

        Returns:
            The ledger's head, where there is a plan.

        Raises:
            PolicyError: The policy or the budget does not allow it.
            LedgerError: The ledger cannot be used.
        """
        with self._ledger_session(run, 0, "query") as session:
            if session is None:
                return None
            if self.plan is None:
                self._note_mechanism(session, run)
                return None
            self._register(session, run, self.plan)
            return self._head(session)

    def _note_mechanism(self, session: LedgerSession, run: str) -> None:
        """Note a run without noise at the client in the ledger."""
        # Unprotected releases have no epsilon, so they are no event of a plan. The holder still sees the run.
        session.note(run, self.client, f"took part with privacy.mechanism={self.config.privacy.mechanism!r}")

    def answer(
        self,
        run: str,
        server_round: int,
        release: Release,
        asked: RecordDict,
        compute: Compute,
        draw_labels: DrawLabels | None = None,
    ) -> tuple[RecordDict, SignedHead | None]:
        """Charge a request, compute its reply, store it and return it.

        The same request gets the same bytes again, and nothing is computed for it.

        Args:
            run: The server's name for the run.
            server_round: Number of the round, from 1.
            release: Kind of release.
            asked: The message's content.
            compute: Computes the reply's arrays and metrics.
            draw_labels: Counts the labels with noise, once a run; None where the reply does not need them.

        Returns:
            The reply without the ledger's head, and the head where there is a plan.

        Raises:
            PolicyError: The policy or the budget does not allow it.
            LedgerError: The ledger cannot be used.
        """
        with self._ledger_session(run, server_round, release) as session:
            if session is None or self.holder is None:
                return compute(None, None), None
            if self.plan is None:
                self._note_mechanism(session, run)
                return self._unaccounted(session, run, server_round, release, asked, compute), None
            agreed = self._register(session, run, self.plan)
            # Before the round is reserved: a ledger with a charged round then also has the counts behind its weights.
            labels = self._label_counts(session, agreed, draw_labels)
            # Reserve before computing: a crash may count a charge too many, but never one too few.
            sent = session.reserve(agreed, server_round, release, digest_of(asked), self.policy)
            if sent is not None:
                return unpack(sent), self._head(session)
            reply = compute(agreed.plan, labels)
            packed = pack(reply)
            # Another process may have answered meanwhile. Then its bytes leave, and ours never do.
            sent = session.commit(agreed, server_round, release, packed, keep=self.holder.replies_kept)
            return reply if sent is packed else unpack(sent), self._head(session)

    def _unaccounted(
        self, session: LedgerSession, run: str, server_round: int, release: Release, asked: RecordDict, compute: Compute
    ) -> RecordDict:
        if self.config.secure is None or self.holder is None:
            return compute(None, None)
        # Two vectors under the same masks would give away their difference.
        # The closing counts have one mask, whatever round the server says they are of.
        text = f"secure sum: masked {release}" + (f" of round {server_round}" if release == "train" else "")
        keep = self.holder.replies_kept
        sent = session.answer_once(
            run, self.client, text, digest_of(asked), lambda: pack(compute(None, None)), keep=keep
        )
        return unpack(sent)

    def begin_sums(self, run: str, setup: bytes) -> None:
        """Mark a set-up of secure sums in the ledger before it leaves.

        Raises:
            PolicyError: The policy does not allow the run, sums of it have begun, or the same set-up was begun before.
            LedgerError: The ledger cannot be used.
        """
        with self._ledger_session(run, 0, "advertise") as session:
            # A round that was masked has been seen. Fresh masks for the rest would let a server mix two set-ups. The
            # file of secrets cannot say so: it may have been deleted, or be older than the ledger after a crash.
            if session is not None and session.has_summed(run, self.client):
                raise PolicyError("another set-up was asked for after sums of the run had begun")
            # Another announcement for the same set-up could be shown to some of the others only.
            if session is not None and not session.mark(run, self.client, f"secure sum: set-up {setup.hex()}", ""):
                raise PolicyError("the same set-up of secure sums was begun before")

    def open_sum(self, run: str, round_number: int, survivors: bytes, *, num_survivors: int) -> None:
        """Mark a round's one set of survivors before its sum is opened.

        `survivors` is the set's digest.

        Raises:
            PolicyError: The policy does not allow the run or so few survivors, or another set was answered in this
                round.
            LedgerError: The ledger cannot be used.
        """
        with self._ledger_session(run, round_number, "unmask") as session:
            # The run's own least number is checked by the protocol. A server may promise more and then ask for less.
            if num_survivors < self.policy.min_cohort:
                raise PolicyError(
                    f"a sum over {num_survivors} clients was to be opened, the policy wants at least "
                    f"{self.policy.min_cohort} (min-cohort)"
                )
            if session is not None:
                session.mark(run, self.client, f"secure sum: opened round {round_number}", survivors.hex())

    def _label_counts(self, session: LedgerSession, agreed: Registration, draw: DrawLabels | None) -> np.ndarray | None:
        """Return the run's noised label counts, charged and drawn by its first round alone."""
        if self.holder is None or draw is None or not agreed.plan.label_events():
            return None
        kept = session.reserve(agreed, 0, "labels", agreed.plan.digest, self.policy)
        if kept is None:
            drawn = json.dumps(draw(agreed.plan).tolist()).encode()
            # Nothing may follow from counts before they are committed. Those of another process count, if it was first.
            kept = session.commit(agreed, 0, "labels", drawn, keep=self.holder.replies_kept)
        return np.array(json.loads(kept), dtype=np.int64)

    def close(self, run: str) -> SignedHead | None:
        """Close a run, in which nothing can be reserved from then on."""
        with self._ledger_session(run, 0, "close") as session:
            if session is not None and self.plan is None and self.config.secure is not None:
                session.close(run, self.client)
            if session is None or self.plan is None or session.registration(run, self.client) is None:
                return None
            session.close(run, self.client)
            return self._head(session)

    def _register(self, session: LedgerSession, run: str, plan: PrivacyPlan) -> Registration:
        agreed = session.register(run, self.client, plan, self.parts, self.policy, self.config.data.class_names)
        # Before anything is computed: the plan's events do not say how gradients are made, and the holder must see it.
        if self.config.training.gradients == OPACUS:
            session.note(run, self.client, NOTE)
        if self.config.metrics == "exact":
            session.note(run, self.client, "exact counts of held-out images left")
        return agreed

    def _head(self, session: LedgerSession) -> SignedHead | None:
        return None if self.holder is None else self.holder.head(session)

    @contextmanager
    def _ledger_session(self, run: str, server_round: int, kind: str) -> Iterator[LedgerSession | None]:
        """Check the policy and yield the holder's ledger.

        A refusal in the block is noted in the ledger.
        """
        if self.holder is None:
            self.policy.check_run(self.config)
            yield None
            return
        with self.holder.open_session() as session:
            try:
                self.policy.check_run(self.config)
                yield session
            except PolicyError as error:
                note_refusal(session, run, self.client, server_round, kind, error)
                raise


def note_refusal(session: LedgerSession, run: str, client: str, server_round: int, kind: str, why: PolicyError) -> None:
    """Note a refusal in the ledger.

    The request stays refused even if the note cannot be written.
    """
    try:
        session.refuse(run, client, server_round, kind, str(why))
    except LedgerError as error:
        _log.error("a refusal could not be written down: %s", error)
