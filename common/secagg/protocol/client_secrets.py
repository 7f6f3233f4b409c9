"""The secrets of one client and when they are overwritten."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.secagg.primitives import shamir
from common.secagg.primitives.domains import Domain
from common.secagg.primitives.keys import KEY_SIZE, derive_key
from common.secagg.protocol.round_table import RoundTable, secrets_to_rows

Bytes = NDArray[np.uint8]
_TABLES = ("seeds", "mask_secrets", "pairs", "seed_shares", "mask_shares")
_KEYS = ("channel", "inbound", "blinds")


@dataclass(repr=False)
class ClientSecrets:
    """The secrets of one client in one secure sum.

    Attributes:
        seeds: Own self-mask seeds, one a round.
        mask_secrets: Own X25519 mask secrets, one a round, until they are dealt.
        pairs: Secrets shared with each neighbour, ascending, after the set-up.
        seed_shares: Shares of each present client's seed, for a committee member.
        mask_shares: Shares of each present client's mask secret, for a committee member.
        channel: X25519 secret of the channels, shape (32,), until the shares are dealt.
        inbound: Keys of the boxes from each present client, shape (present, 32), until they are opened.
        blinds: Keys for blinding with each committee member in the first round whose shares are left, shape
            (members, 32).
    """

    seeds: RoundTable
    mask_secrets: RoundTable
    pairs: RoundTable
    seed_shares: RoundTable
    mask_shares: RoundTable
    channel: Bytes
    inbound: Bytes
    blinds: Bytes

    @classmethod
    def drawn(cls, num_rounds: int) -> "ClientSecrets":
        """Return fresh seeds and mask secrets from the operating system for each round.

        The secrets of one round say nothing about those of another.
        """
        seeds, masks = (
            RoundTable(
                1, secrets_to_rows([shamir.to_bytes(shamir.random_element()) for _ in range(num_rounds)])[:, None]
            )
            for _ in range(2)
        )
        none = np.zeros((0, KEY_SIZE), dtype=np.uint8)
        pairs, seed_shares, mask_shares = (RoundTable.empty(0, 0) for _ in range(3))
        return cls(seeds, masks, pairs, seed_shares, mask_shares, none, none, none)

    def __repr__(self) -> str:
        return "ClientSecrets()"

    def enter_rounds(self, pairs: RoundTable, inbound: Bytes, blinds: Bytes, num_columns: int) -> None:
        """Replace the secrets of the set-up by what the rounds need."""
        rounds = len(self.seeds.rows)
        self.pairs, self.inbound, self.blinds = pairs, inbound, blinds
        self.seed_shares, self.mask_shares = (RoundTable.empty(rounds, num_columns) for _ in range(2))
        _overwrite(self.channel)
        self.channel = self.channel[:0]
        self.mask_secrets.erase_before(self.mask_secrets.first + rounds)

    def store_shares(self, place: int, seed_shares: Bytes, mask_shares: Bytes) -> None:
        """Keep one present client's shares of all rounds, shape (rounds, 32) each."""
        self.seed_shares.rows[:, place] = seed_shares
        self.mask_shares.rows[:, place] = mask_shares

    def forget_inbound(self) -> None:
        """Erase the keys of boxes that have been opened."""
        _overwrite(self.inbound)
        self.inbound = self.inbound[:0]

    def shares_for(self, round_number: int, survived: Sequence[bool]) -> Bytes:
        """Return shares of survivors' seeds and others' mask secrets, shape (present, 32)."""
        seeds, masks = self.seed_shares.row(round_number), self.mask_shares.row(round_number)
        return np.where(np.array(survived)[:, None], seeds, masks)

    def keep_only(self, round_number: int, survived: Sequence[bool]) -> None:
        """Erase the shares of a round that its survivor set does not open."""
        gone = np.array(survived)
        self.seed_shares.row(round_number)[~gone] = 0
        self.mask_shares.row(round_number)[gone] = 0

    def erase_own(self, round_number: int) -> None:
        """Erase the own secrets of this round and of all before it."""
        for table in (self.seeds, self.pairs):
            table.erase_before(round_number + 1)

    def blinds_of(self, round_number: int) -> Bytes:
        """Return the keys for blinding in a round, shape (members, 32)."""
        keys = [row.tobytes() for row in self.blinds]
        for _ in range(round_number - self.seed_shares.first):
            keys = [derive_key(key, Domain.BLIND_NEXT) for key in keys]
        return secrets_to_rows(keys)

    def erase_shares_before(self, round_number: int) -> None:
        """Erase the others' shares of all rounds before this one.

        The keys for blinding go one way. So nobody who steals them later can read the answers of earlier rounds.
        """
        later = self.blinds_of(round_number)
        _overwrite(self.blinds)
        self.blinds = later
        for table in (self.seed_shares, self.mask_shares):
            table.erase_before(round_number)

    def erase_all(self) -> None:
        """Erase everything."""
        for name in _TABLES:
            table = getattr(self, name)
            table.erase_before(table.first + len(table.rows))
        for name in _KEYS:
            _overwrite(getattr(self, name))

    def firsts(self) -> dict[str, int]:
        """Return the first round that is left in each table."""
        return {name: getattr(self, name).first for name in _TABLES}

    def arrays(self) -> dict[str, Bytes]:
        """Return all arrays by name."""
        return {name: getattr(self, name).rows for name in _TABLES} | {name: getattr(self, name) for name in _KEYS}

    @classmethod
    def stored(cls, firsts: Mapping[str, int], arrays: Mapping[str, Bytes]) -> "ClientSecrets":
        """Return the secrets of stored arrays."""
        tables: dict[str, Any] = {name: RoundTable(int(firsts[name]), arrays[name]) for name in _TABLES}
        keys: dict[str, Any] = {name: arrays[name] for name in _KEYS}
        return cls(**tables, **keys)


def _overwrite(keys: Bytes) -> None:
    if keys.size:
        keys[:] = 0
