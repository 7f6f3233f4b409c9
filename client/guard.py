"""Policy and ledger, in front of every release of one client."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from flwr.app import RecordDict

from common.config.schema import RunConfig
from common.data.image_digests import ImageDigests
from common.errors import LedgerError, PolicyError
from common.ledger.data_holder import Holder
from common.ledger.registrations import Registration, Release
from common.ledger.signed_heads import SignedHead
from common.ledger.transactions import LedgerSession
from common.messages.serialization import digest_of, pack, unpack
from common.privacy.plan import PrivacyPlan
from common.privacy.policy import Policy

_log = logging.getLogger("bract.client")
# Computes a reply under an agreed plan; None where no plan is needed.
Compute = Callable[[PrivacyPlan | None], RecordDict]


@dataclass(frozen=True)
class Guard:
    """Policy and ledger between a server's requests and one client's images.

    Attributes:
        config: The run, as the server wants it.
        client: Name of the client.
        policy: The holder's.
        holder: Ledger and keys; None where a simulation protects nobody, and nothing is kept.
        plan: The whole plan; only where the client adds the noise itself.
        parts: Names of the images that train, and of those that evaluate.
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
            run: The server's name for it.

        Returns:
            The ledger's head, where there is a plan.

        Raises:
            PolicyError: The policy or the budget does not allow it.
            LedgerError: The ledger cannot be used.
        """
        with self._books(run, 0, "query") as session:
            if session is None:
                return None
            if self.plan is None:
                self._note_mechanism(session, run)
                return None
            self._register(session, run)
            return self._head(session)

    def _note_mechanism(self, session: LedgerSession, run: str) -> None:
        """Note in the ledger that a run took part without noise at the client."""
        session.note(run, self.client, f"took part with privacy.mechanism={self.config.privacy.mechanism!r}")

    def answer(
        self, run: str, server_round: int, release: Release, asked: RecordDict, compute: Compute
    ) -> tuple[RecordDict, SignedHead | None]:
        """Answer a request once.

        The request is charged before anything is computed, and the reply is stored before it is sent.

        The same request gets the same bytes again, and nothing is computed for it.

        Args:
            run: The server's name for the run.
            server_round: From 1.
            release: What is asked for.
            asked: The message's content.
            compute: Makes the reply's arrays and metrics.

        Returns:
            The reply without the head, and the head where there is a plan.

        Raises:
            PolicyError: The policy or the budget does not allow it.
            LedgerError: The ledger cannot be used.
        """
        with self._books(run, server_round, release) as session:
            if session is None or self.holder is None:
                return compute(None), None
            if self.plan is None:
                self._note_mechanism(session, run)
                return compute(None), None
            agreed = self._register(session, run)
            sent = session.reserve(agreed, server_round, release, digest_of(asked), self.policy)
            if sent is not None:
                return unpack(sent), self._head(session)
            reply = compute(agreed.plan)
            packed = pack(reply)
            sent = session.commit(agreed, server_round, release, packed, keep=self.holder.replies_kept)
            return reply if sent is packed else unpack(sent), self._head(session)

    def close(self, run: str) -> SignedHead | None:
        """Close a run, after which nothing more can be reserved in it."""
        with self._books(run, 0, "close") as session:
            if session is None or self.plan is None or session.registration(run, self.client) is None:
                return None
            session.close(run, self.client)
            return self._head(session)

    def _register(self, session: LedgerSession, run: str) -> Registration:
        assert self.plan is not None  # noqa: S101 -- callers have checked
        agreed = session.register(run, self.client, self.plan, self.parts, self.policy)
        if self.config.metrics == "exact":
            session.note(run, self.client, "exact counts of held-out images left")
        return agreed

    def _head(self, session: LedgerSession) -> SignedHead | None:
        return None if self.holder is None else self.holder.head(session)

    @contextmanager
    def _books(self, run: str, server_round: int, kind: str) -> Iterator[LedgerSession | None]:
        """Open the holder's ledger and note any refusal in it.

        None if a simulation protects nobody.
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

    The refusal stands even if the note cannot be written.
    """
    try:
        session.refuse(run, client, server_round, kind, str(why))
    except LedgerError as error:
        _log.error("a refusal could not be written down: %s", error)
