"""The roster by which the clients of a secure sum know each other."""

import pytest

from common.secagg.protocol.client import ClientState
from common.secagg.protocol.roster import Roster
from common.secagg.refusals import Refusal, SecureSumError
from tests.support.secagg.federation import identity_of, roster_of, terms_of


def test_a_roster_has_every_key_once() -> None:
    key = identity_of(0).public_key

    for members in ({"a": key, "b": key}, {"a": key[:-1]}):
        with pytest.raises(SecureSumError) as refused:
            Roster.of(members)
        assert refused.value.refusal is Refusal.ROSTER


def test_a_roster_digest_depends_on_every_name_and_key() -> None:
    keys = [identity_of(index).public_key for index in range(3)]
    rosters = [
        Roster.of(dict(zip(names, order, strict=True))) for names in ("ab", "ac") for order in (keys[:2], keys[1:])
    ]

    assert len({roster.digest for roster in rosters}) == 4
    assert roster_of(3).digest == Roster.of(dict(zip(roster_of(3).names, roster_of(3).keys, strict=True))).digest


def test_an_identity_must_be_that_of_the_name() -> None:
    with pytest.raises(SecureSumError) as refused:
        ClientState.begin(terms_of(3), roster_of(3), "client-0001", identity_of(2))
    assert refused.value.refusal is Refusal.ROSTER
    with pytest.raises(SecureSumError):
        ClientState.begin(terms_of(3), roster_of(3), "client-0009", identity_of(2))
