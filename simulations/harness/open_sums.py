"""Clients of a secure sum whose masks an auditor has taken off.

The words of all survivors add up to what the server opens, because masks cancel exactly. So the sum of some clients'
words without their masks is what a server sees that colludes with all the others. All other code is what clients run.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from client.secure.exchange import words_of
from client.secure.party import simulated_party
from client.secure.secrets_file import SecretsFile
from client.session import ClientSession, client_name
from client.training.dp_sgd import FRESH_STREAMS, FreshStreams
from common.errors import FederationError
from common.ledger.identity_key import simulated_roster
from common.messages.fields import ARRAYS, WORDS
from common.messages.secure_words import SecureWords
from common.secagg.noise_shares import values_of_sum
from common.secagg.primitives.ring import Words
from common.secagg.protocol.client import ClientState
from common.secagg.protocol.terms import Terms
from simulations.harness.client_harness import ClientHarness, Observation
from simulations.harness.harness_images import Images


class _WithoutMasks(ClientState):
    """The state of a client whose masks are all zero."""

    def __init__(self, terms: Terms) -> None:
        self.terms = terms

    def mask(self, round_number: int, context: bytes, words: Words) -> Words:  # noqa: ARG002 -- as it is called
        return words

    def forget_masks(self, round_number: int) -> bool:  # noqa: ARG002 -- as it is called
        return False


@dataclass(frozen=True)
class _NoSecrets(SecretsFile):
    """A file that has no secrets and keeps none."""

    terms: Terms
    declared: Mapping[str, int]

    def load(self) -> tuple[ClientState, dict[str, int]]:
        return _WithoutMasks(self.terms), dict(self.declared)

    def sizes(self) -> dict[str, int]:
        return dict(self.declared)

    def save(self, state: ClientState, sizes: Mapping[str, int]) -> None:
        """Keep nothing."""


@dataclass(frozen=True)
class OpenSession(ClientSession):
    """A client of a secure sum whose words leave without masks.

    Attributes:
        declared: Declared number of units of each client, by name.
    """

    declared: Mapping[str, int] = field(default_factory=dict)

    def secrets(self, run: str) -> SecretsFile:
        """Return secrets that mask nothing.

        Raises:
            FederationError: The run has no secure sums.
        """
        config = self.trainer.config
        if config.secure is None or self.party is None:
            raise FederationError("the run has no secure sums")
        layout = words_of(self, self.declared)
        terms = layout.terms(config.secure, self.party.roster, run=run, attempt=1, num_rounds=config.num_rounds)
        kept = super().secrets(run)
        return _NoSecrets(kept.file, kept.durable, terms, self.declared)


@dataclass(frozen=True)
class OpenClient:
    """Client of a run that is asked by real messages.

    Attributes:
        harness: The configuration, whose images every client has.
        number: Number of the client.
    """

    harness: ClientHarness
    number: int = 0

    def session(self, images: Images, streams: FreshStreams = FRESH_STREAMS) -> OpenSession:
        """Return the client with some images."""
        config = self.harness.config
        names = [client_name(other) for other in range(config.num_clients)]
        one = self.harness.session(images, names[self.number], streams=streams)
        party = simulated_party(names[self.number], simulated_roster(config.seed, names), seed=config.seed)
        return OpenSession(
            one.name, one.rows, one.trainer, one.policy_file, one.home, one.pinned, party, streams,
            dict.fromkeys(names, self.harness.num_units),
        )  # fmt: skip

    def layout(self) -> SecureWords:
        """Return the layout of the words."""
        session = self.session(self.harness.images)
        return words_of(session, session.declared)

    def ask(self, images: Images, *, server_round: int = 1, streams: FreshStreams = FRESH_STREAMS) -> Observation:
        """Ask for one round in a new run and observe the answer."""
        content = self.harness.content("train", server_round=server_round)
        return self.harness.observe(self.session(images, streams), "train", content)


def sum_of(layout: SecureWords, *answers: Observation) -> np.ndarray:
    """Return the sum of some answers as a server reads it, (d,) float64.

    Counts are left out.

    Raises:
        FederationError: A client has not answered.
    """
    if refused := [seen.failure for seen in answers if seen.failure]:
        raise FederationError(f"a client has not answered: {refused[0]}")
    total = layout.ring.zeros(0)
    for seen in answers:
        words = layout.ring.unpacked(seen.reply.array_records[ARRAYS][WORDS].numpy())
        total = words if not len(total) else layout.ring.reduced(total + words)
    return values_of_sum(layout.part_of_sum(total), layout.gradient_scale)
