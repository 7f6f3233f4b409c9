"""Set-up of a run's secure sums, in three exchanges with all clients."""

import json
import logging
import secrets
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from flwr.app import Message, RecordDict

from common.config.secure_sum import SecureSum
from common.errors import BractError, ClientFailure, FederationError
from common.messages.checks import check_release
from common.messages.fields import ACCEPT, ADVERTISE, DEAL
from common.messages.secure_messages import (
    SetupRequest,
    announced,
    box_values,
    boxes_in,
    delivery_values,
    request_content,
    setup_values,
)
from common.messages.secure_words import SecureWords
from common.secagg.protocol.messages import Announcement
from common.secagg.protocol.roster import Roster
from common.secagg.protocol.server_setup import ServerSetup
from common.secagg.refusals import SecureSumError
from server.rounds.enrollment import EnrolledClient
from server.rounds.messaging import LATE, UNREACHABLE, deliver, failure_of
from server.rounds.replies import Channel

_log = logging.getLogger("bract.server")
# Clients that do not deal their shares make another attempt necessary, without them.
_ATTEMPTS = 3
OTHER_ROSTER = "OTHER-ROSTER"
_LARGEST_ATTEMPT = 2**31


@dataclass(frozen=True)
class SecureSession:
    """A finished set-up for all rounds of a run.

    Nothing in it is secret.
    """

    setup: ServerSetup
    roster: Roster
    words: SecureWords

    def to_bytes(self) -> bytes:
        """Return everything as bytes for a server that is started again."""
        members = dict(zip(self.roster.names, (key.hex() for key in self.roster.keys), strict=True))
        header = {"roster": members, "sizes": dict(self.words.sizes)}
        return json.dumps(header).encode() + b"\n" + self.setup.to_bytes()

    @classmethod
    def from_bytes(cls, raw: bytes, words: SecureWords) -> "SecureSession":
        """Return the set-up of a run with this layout from stored bytes.

        Raises:
            SecureSumError: The bytes are damaged.
        """
        header, _, stored = raw.partition(b"\n")
        facts = json.loads(header)
        roster = Roster.of({name: bytes.fromhex(key) for name, key in facts["roster"].items()})
        return cls(ServerSetup.from_bytes(stored, roster), roster, replace(words, sizes=facts["sizes"]))

    @property
    def present(self) -> frozenset[str]:
        """Names of the clients that can be in a sum."""
        return frozenset(self.roster.names[index] for index in self.setup.present)


@dataclass(frozen=True)
class SetupExchange:
    """The set-up as the server runs it.

    Attributes:
        channel: Connection to the clients.
        clients: Clients by name.
        words: Layout of the vectors.
        constants: Public constants of the run.
        num_rounds: Rounds of the run.
        seconds: Seconds in which the clients must answer each exchange; None waits for all.
    """

    channel: Channel
    clients: Mapping[str, EnrolledClient]
    words: SecureWords
    constants: SecureSum
    num_rounds: int
    seconds: float | None

    def run(self) -> tuple[SecureSession, dict[str, str]]:
        """Return the finished set-up and the failure codes of clients outside it.

        Raises:
            FederationError: Too few clients have finished it. Nothing was summed.
        """
        failures: dict[str, str] = {}
        for _ in range(_ATTEMPTS):
            session = self._attempt(failures)
            if session is not None:
                return session, failures
        raise self._too_few(failures)

    def _attempt(self, failures: dict[str, str]) -> SecureSession | None:
        """Return a finished set-up, None where somebody has left between its exchanges."""
        asked = [name for name in self.clients if name not in failures]
        request = SetupRequest(secrets.randbelow(_LARGEST_ATTEMPT), dict(self.words.sizes))
        question = setup_values(request)
        found: dict[str, tuple[Announcement, Roster]] = {}
        for name, content in self._ask(ADVERTISE, dict.fromkeys(asked, question), failures).items():
            with self._at_the_cost_of(name, failures):
                check_release(content, message_type=ADVERTISE, releases=self.channel.releases, travelling={})
                found[name] = announced(content)
        roster = _common_roster(found, failures)
        if roster is None:
            raise self._too_few(failures)
        setup = self._announced(found, roster, request.attempt, failures)
        names = {roster.names[index]: index for index in setup.present}
        deliveries = {name: delivery_values(setup.delivery(index)) for name, index in names.items()}
        dealt = self._ask(DEAL, deliveries, failures)
        for name, content in dealt.items():
            with self._at_the_cost_of(name, failures):
                check_release(content, message_type=DEAL, releases=self.channel.releases, travelling={})
                setup.add_boxes(names[name], boxes_in(content))
        if setup.missing:
            return None
        inboxes = {name: box_values(setup.boxes_for(index)) for name, index in names.items()}
        # Who misses this exchange cannot help to open a sum, but its words still count.
        self._ask(ACCEPT, inboxes, {})
        return SecureSession(setup, roster, self.words)

    def _announced(
        self, found: Mapping[str, tuple[Announcement, Roster]], roster: Roster, attempt: int, failures: dict[str, str]
    ) -> ServerSetup:
        try:
            terms = self.words.terms(
                self.constants, roster, run=self.channel.run_id, attempt=attempt, num_rounds=self.num_rounds
            )
            setup = ServerSetup(terms, roster)
            for name, (announcement, _) in found.items():
                if name not in failures:
                    with self._at_the_cost_of(name, failures):
                        if announcement.advert.index != roster.index_of(name):
                            raise FederationError("its announcement has the index of another client")
                        setup.add_announcement(announcement)
            setup.close_announcements()
        except SecureSumError as error:
            _log.error("the set-up of secure sums: %s", error)
            raise self._too_few(failures) from None
        return setup

    def _ask(
        self, kind: str, values: Mapping[str, Mapping[str, Any]], failures: dict[str, str]
    ) -> dict[str, RecordDict]:
        """Send one message to each client and return the replies that arrive."""
        nodes = {name: self.clients[name].node_id for name in values}
        failures |= {name: UNREACHABLE for name, node in nodes.items() if node is None}
        channel = self.channel
        messages = [
            Message(request_content(channel.run_id, values[name]), node, kind)
            for name, node in nodes.items()
            if node is not None
        ]
        arrived = deliver(channel.grid, messages, seconds=self.seconds, one_by_one=channel.one_by_one)
        replies = {}
        for name, node in nodes.items():
            if node is None:
                continue
            reply = arrived.get(node)
            if node in arrived and reply is not None and not reply.has_error():
                replies[name] = reply.content
            else:
                failures[name] = failure_of(reply) if node in arrived else LATE
                _log.error("%s: client %s: %s", kind, name, failures[name])
        return replies

    @contextmanager
    def _at_the_cost_of(self, name: str, failures: dict[str, str]) -> Iterator[None]:
        """Leave a client out if what it sent is wrong."""
        try:
            yield
        except BractError as error:
            _log.error("left out of the secure sums: client %s: %s", name, error)
            failures[name] = ClientFailure.MESSAGE.name

    def _too_few(self, failures: Mapping[str, str]) -> FederationError:
        listed = ", ".join(f"{name} ({code})" for name, code in sorted(failures.items())[:5]) or "nobody failed"
        return FederationError(
            f"the set-up of secure sums needs {self.constants.min_survivors} of {self.constants.num_clients} clients "
            f"that answer each of its exchanges: {listed}\n  no update was sent; start again when they are there"
        )


def _common_roster(found: Mapping[str, tuple[Announcement, Roster]], failures: dict[str, str]) -> Roster | None:
    """Return the roster of most clients, None without any."""
    if not found:
        return None
    ranked = Counter(roster for _, roster in found.values()).most_common(1)
    common: Roster = ranked[0][0]
    failures |= {name: OTHER_ROSTER for name, (_, roster) in found.items() if roster.digest != common.digest}
    return common
