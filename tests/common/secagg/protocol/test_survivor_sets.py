"""A server that names survivor sets and responders of its own choice opens nothing more.

Drives `common.secagg.protocol.blinding`, `common.secagg.protocol.client` and `common.secagg.protocol.topology`.
"""

import pytest

from common.secagg.primitives import shamir
from common.secagg.primitives.keys import AgreementKey
from common.secagg.protocol.messages import UnmaskRequest, key_of_round
from common.secagg.protocol.pair_masks import seed_commitment
from common.secagg.refusals import Refusal, SecureSumError
from tests.support.secagg.federation import Federation, terms_of


def split_survivors(round_number: int) -> UnmaskRequest:
    """A sparse graph whose survivors fall apart if two colluding clients are taken away."""
    made = Federation.announced_of(terms_of(40, honest=10, num_colluding=2))
    made.clients[0].deal(made.roster, made.setup.delivery(0))
    # The shares themselves do not matter here.
    made.clients[0]._secrets.forget_inbound()
    circle, reach = made.setup.topology.circle, made.setup.topology.reach
    assert reach is not None
    gone = {*circle[1 : reach + 1], *circle[20 : 20 + reach]}
    survivors = tuple(index for index in range(40) if index not in gone)
    request = UnmaskRequest(round_number, survivors, made.setup.topology.committee)
    made.clients[0].unmask(request)
    return request


def test_survivors_that_show_a_part_of_the_sum_are_refused() -> None:
    with pytest.raises(SecureSumError) as refused:
        split_survivors(1)

    assert refused.value.refusal is Refusal.SURVIVORS


def opened_by_mixing(made: Federation, sets: dict[int, tuple[int, ...]], threshold: int) -> dict[int, bytes]:
    """Return what a server computes for each client if it tells each member its own survivor set.

    For each client it names those members as responders that see it the same way.
    """
    opened = {}
    for place, index in enumerate(made.clients):
        survived = [member for member in sets if index in sets[member]]
        agreeing = survived if len(survived) >= threshold else [member for member in sets if member not in survived]
        responders = tuple(agreeing[:threshold])
        replies = [made.clients[member].unmask(UnmaskRequest(1, sets[member], responders)) for member in responders]
        total = sum(shamir.to_element(reply.shares[32 * place : 32 * place + 32]) for reply in replies)
        opened[index] = shamir.to_bytes(total % shamir.PRIME)
    return opened


def test_answers_to_different_survivor_sets_cannot_be_mixed() -> None:
    """With plain shares a server would open the sum of 4 of 12 clients, though each member saw at least 7 survive.

    Each of eight clients is called lost before seven of the twelve members, which is the threshold. Four clients
    survive everywhere.
    """
    made = Federation.copied(terms_of(12, honest=6))
    threshold = made.setup.topology.threshold
    assert threshold == 7
    lost = [{4 + (5 * member + step) % 8 for step in range(5)} for member in range(12)]
    assert all(sum(client in gone for gone in lost) >= threshold for client in range(4, 12))
    sets = {member: tuple(sorted(set(range(12)) - gone)) for member, gone in enumerate(lost)}
    assert min(map(len, sets.values())) == 7

    opened = opened_by_mixing(made, sets, threshold)

    assert set(opened) == set(range(12))
    for index, value in opened.items():
        assert not is_secret(made, index, value)


def is_secret(made: Federation, index: int, value: bytes) -> bool:
    """Whether a value is one of the two secrets of a client in round 1."""
    announced = made.announced[index]
    is_seed = seed_commitment(made.terms, index, 1, value) == key_of_round(announced.seed_commitments, 1)
    return is_seed or AgreementKey(value).public_key == key_of_round(announced.mask_keys, 1)


def test_the_same_computation_opens_both_secrets_where_all_members_see_one_set() -> None:
    """The attack of the test above would notice a secret."""
    made = Federation.copied(terms_of(12, honest=6))
    survivors = tuple(range(2, 12))

    opened = opened_by_mixing(made, dict.fromkeys(range(12), survivors), 7)

    assert all(is_secret(made, index, value) for index, value in opened.items())


def test_many_questions_about_one_set_do_not_show_a_members_share() -> None:
    """Four sets of responders, chosen so that equal blinding would cancel and leave a multiple of the share."""
    made = Federation.ready(terms_of(9, honest=2))
    members = tuple(range(9))
    share = shamir.to_element(made.clients[0]._secrets.seed_shares.row(1)[0].tobytes())

    total, factor = 0, 0
    for sign, gone in ((1, ()), (-1, (8,)), (-1, (7,)), (1, (7, 8))):
        responders = tuple(member for member in members if member not in gone)
        reply = made.clients[0].unmask(UnmaskRequest(1, members, responders))
        total += sign * shamir.to_element(reply.shares[:32])
        factor += sign * shamir.weight_at_zero(1, [member + 1 for member in responders])

    assert total * pow(factor, -1, shamir.PRIME) % shamir.PRIME != share
