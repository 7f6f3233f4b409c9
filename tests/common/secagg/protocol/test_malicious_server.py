"""A server that lies to its clients is refused by them, or opens nothing.

Drives `common.secagg.protocol.client`, `common.secagg.protocol.messages`, `common.secagg.protocol.roster` and
`common.secagg.refusals`.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from common.errors import ClientFailure
from common.secagg.primitives.domains import Domain, digest
from common.secagg.protocol.client import ClientState
from common.secagg.protocol.messages import Advert, Delivery, UnmaskRequest
from common.secagg.protocol.roster import Identity, Roster
from common.secagg.refusals import Refusal, SecureSumError
from tests.support.secagg.federation import CONTEXT, Federation, identity_of, terms_of

Attack = Callable[[], object]
N, C, T = 9, 2, 4


def announced() -> Federation:
    return Federation.announced_of(terms_of(N, honest=T, num_colluding=C))


def ready() -> Federation:
    return Federation.copied(terms_of(N, honest=T, num_colluding=C))


def falsified(made: Federation, *, adverts: tuple[Advert, ...] = (), **mask_keys: bytes) -> Delivery:
    """Return client 0's delivery with some adverts exchanged."""
    right = made.setup.delivery(0)
    others = {advert.index: advert for advert in (*right.adverts, *adverts)}
    return Delivery(tuple(others[index] for index in sorted(others)), dict(right.mask_keys) | mask_keys)


def deal_with(made: Federation, delivery: Delivery) -> object:
    return made.clients[0].deal(made.roster, delivery)


def invented_client() -> object:
    """A client of the server's own, whose index is past the roster."""
    made, identity = announced(), Identity(b"i" * 32)
    invented = replace(made.announced[1].advert, index=N, channel_key=b"k" * 32).signed_by(identity, made.terms)
    return deal_with(made, falsified(made, adverts=(invented,)))


def invented_clients_fill_up_the_number() -> object:
    """Honest clients are withheld, and their places are taken by keys of the server's own."""
    made, identity = announced(), Identity(b"i" * 32)
    fakes = [
        replace(made.announced[index].advert, index=index).signed_by(identity, made.terms) for index in range(3, N)
    ]
    return deal_with(made, falsified(made, adverts=tuple(fakes)))


def substituted_channel_key() -> object:
    """The man in the middle of all shares."""
    made = announced()
    return deal_with(made, falsified(made, adverts=(replace(made.announced[4].advert, channel_key=b"k" * 32),)))


def substituted_mask_keys() -> object:
    made = announced()
    right = made.setup.delivery(0)
    return deal_with(made, Delivery(right.adverts, dict(right.mask_keys) | {4: b"k" * 64}))


def withheld_mask_keys() -> object:
    """A client without a pairwise mask would be hidden by its own seed alone, which is opened."""
    made = announced()
    return deal_with(made, Delivery(made.setup.delivery(0).adverts, {}))


def mask_keys_of_a_known_result() -> object:
    """A colluding client announces keys of small order, so that everybody knows its pairwise masks."""
    made = announced()
    state, _ = ClientState.begin(made.terms, made.roster, made.roster.names[4], identity_of(4))
    zeros = bytes(64)
    advert = replace(state._advert, mask_keys_digest=_keys_digest(made, zeros)).signed_by(identity_of(4), made.terms)
    right = falsified(made, adverts=(advert,))
    return deal_with(made, Delivery(right.adverts, dict(right.mask_keys) | {4: zeros}))


def _keys_digest(made: Federation, keys: bytes) -> bytes:
    return digest(Domain.MASK_KEYS, made.terms.session, keys)


def reflected_channel_key() -> object:
    """A colluding client announces this client's own channel key."""
    made = announced()
    mine = made.announced[0].advert.channel_key
    copied = replace(made.announced[4].advert, channel_key=mine).signed_by(identity_of(4), made.terms)
    return deal_with(made, falsified(made, adverts=(copied,)))


def own_advert_exchanged() -> object:
    made = announced()
    _, other = ClientState.begin(made.terms, made.roster, made.roster.names[0], identity_of(0))
    return deal_with(made, falsified(made, adverts=(other.advert,)))


def client_named_twice() -> object:
    made = announced()
    right = made.setup.delivery(0)
    return deal_with(made, Delivery((right.adverts[0], *right.adverts), right.mask_keys))


def fewer_than_needed() -> object:
    made = announced()
    right = made.setup.delivery(0)
    return deal_with(made, Delivery(right.adverts[: T + C - 1], right.mask_keys))


def set_up_of_another_run() -> object:
    """Adverts that all are signed, for another run with the same clients."""
    made = announced()
    other = Federation.announced_of(terms_of(N, honest=T, num_colluding=C, run="run-2"))
    adverts = tuple(other.announced[index].advert for index in range(1, N))
    return deal_with(made, falsified(made, adverts=adverts))


def set_up_with_other_constants() -> object:
    """The others were told that nobody colludes more than one, so their signatures are over other terms."""
    made = announced()
    other = Federation.announced_of(terms_of(N, honest=T, num_colluding=1))
    return deal_with(made, falsified(made, adverts=tuple(other.announced[index].advert for index in range(1, N))))


def set_up_twice() -> object:
    made = announced()
    deal_with(made, made.setup.delivery(0))
    return deal_with(made, made.setup.delivery(0))


def another_roster() -> object:
    made = announced()
    keys = {f"client-{index:04}": identity_of(index + 100).public_key for index in range(N)}
    return made.clients[0].deal(Roster.of(keys), made.setup.delivery(0))


def shares_of(other: Federation, made: Federation) -> object:
    """Every box of client 0 comes from another set-up of the same clients."""
    for federation in (other, made):
        for index, state in federation.clients.items():
            federation.setup.add_boxes(index, state.deal(federation.roster, federation.setup.delivery(index)))
    return made.clients[0].accept(other.setup.boxes_for(0))


def shares_of_another_run() -> object:
    return shares_of(Federation.announced_of(terms_of(N, honest=T, num_colluding=C, run="run-2")), announced())


def shares_of_another_attempt() -> object:
    return shares_of(Federation.announced_of(terms_of(N, honest=T, num_colluding=C, attempt=1)), announced())


def shares_of_another_dealer() -> object:
    made = _dealt()
    boxes = made.setup.boxes_for(0)
    return made.clients[0].accept(boxes | {3: boxes[4]})


def own_shares_reflected() -> object:
    """The server sends a box back to its maker, as if the receiver had made it."""
    made = announced()
    mine = deal_with(made, made.setup.delivery(0))
    for index in range(1, N):
        made.setup.add_boxes(index, made.clients[index].deal(made.roster, made.setup.delivery(index)))
    return made.clients[0].accept(made.setup.boxes_for(0) | {3: mine[3]})  # type: ignore[index]


def shares_missing() -> object:
    made = _dealt()
    boxes = made.setup.boxes_for(0)
    return made.clients[0].accept({dealer: box for dealer, box in boxes.items() if dealer != 3})


def two_views_of_who_is_present() -> object:
    """Client 3 was told that client 8 is not there, so that it shares no mask with it."""
    made = announced()
    delivery = made.setup.delivery(3)
    fewer = Delivery(delivery.adverts[:-1], {i: keys for i, keys in delivery.mask_keys.items() if i != 8})
    for index, state in made.clients.items():
        boxes = state.deal(made.roster, fewer if index == 3 else made.setup.delivery(index))
        made.setup.add_boxes(index, boxes | ({8: boxes[0]} if index == 3 else {}))
    return made.clients[0].accept(made.setup.boxes_for(0))


def _dealt() -> Federation:
    made = announced()
    for index, state in made.clients.items():
        made.setup.add_boxes(index, state.deal(made.roster, made.setup.delivery(index)))
    return made


EVERYBODY = tuple(range(N))


def unmask(
    made: Federation,
    survivors: tuple[int, ...] = EVERYBODY,
    responders: tuple[int, ...] = EVERYBODY,
    number: int = 1,
) -> object:
    return made.clients[0].unmask(UnmaskRequest(number, survivors, responders))


def masked() -> Federation:
    made = ready()
    made.masked(1, made.words(1))
    return made


def exactly_t_with_c_of_them_colluding() -> object:
    return unmask(masked(), survivors=EVERYBODY[:T])


def one_fewer_than_needed() -> object:
    return unmask(masked(), survivors=EVERYBODY[: T + C - 1])


def second_survivor_set() -> object:
    made = masked()
    unmask(made)
    return unmask(made, survivors=EVERYBODY[1:])


def second_survivor_set_after_a_restart() -> object:
    made = masked()
    unmask(made)
    made.clients[0] = ClientState.from_bytes(made.clients[0].to_bytes())
    return unmask(made, survivors=EVERYBODY[1:])


def dropped_client_revived() -> object:
    """Client 5 is called dropped, and after its mask key was opened its words arrive."""
    made = masked()
    unmask(made, survivors=tuple(index for index in EVERYBODY if index != 5))
    return unmask(made)


def both_secrets_of_one_client() -> object:
    """The same as a revived client, the other way round."""
    made = masked()
    unmask(made)
    return unmask(made, survivors=tuple(index for index in EVERYBODY if index != 5))


def survivor_that_is_not_there() -> object:
    return unmask(masked(), survivors=(*EVERYBODY, 17))


def survivor_counted_twice() -> object:
    return unmask(masked(), survivors=(0, 0, 1, 1, 2, 2))


def survivors_out_of_order() -> object:
    """Another order has another digest, and could pass for another request of the same set."""
    return unmask(masked(), survivors=EVERYBODY[::-1])


def too_few_responders() -> object:
    return unmask(masked(), responders=EVERYBODY[: (N + C) // 2])


def responders_without_this_client() -> object:
    return unmask(masked(), responders=EVERYBODY[1:])


def responder_that_is_not_a_member() -> object:
    return unmask(masked(), responders=(*EVERYBODY, 17))


def round_replayed() -> object:
    made = masked()
    return made.clients[0].mask(1, CONTEXT, made.words(1)[0])


def round_replayed_with_another_model() -> object:
    made = masked()
    return made.clients[0].mask(1, b"other".ljust(32), made.words(1)[0])


def round_replayed_after_a_restart() -> object:
    made = masked()
    return ClientState.from_bytes(made.clients[0].to_bytes()).mask(1, CONTEXT, made.words(1)[0])


def words_after_unmasking() -> object:
    """The client's words are asked for after its survival was decided."""
    made = ready()
    unmask(made)
    return made.clients[0].mask(1, CONTEXT, made.words(1)[0])


def earlier_round_opened_late() -> object:
    made = masked()
    made.masked(2, made.words(2))
    return unmask(made)


def round_that_does_not_exist() -> object:
    return unmask(masked(), number=3)


def round_zero() -> object:
    made = ready()
    return made.clients[0].mask(0, CONTEXT, made.words(1)[0])


def words_before_the_set_up() -> object:
    made = announced()
    return made.clients[0].mask(1, CONTEXT, np.zeros(7, dtype=np.uint32))


def unmasking_before_shares() -> object:
    return unmask(_dealt())


def empty_context() -> object:
    made = ready()
    return made.clients[0].mask(1, b"", made.words(1)[0])


ATTACKS: dict[Attack, Refusal] = {
    invented_client: Refusal.ROSTER,
    invented_clients_fill_up_the_number: Refusal.SIGNATURE,
    substituted_channel_key: Refusal.SIGNATURE,
    substituted_mask_keys: Refusal.SETUP,
    withheld_mask_keys: Refusal.SETUP,
    mask_keys_of_a_known_result: Refusal.SETUP,
    reflected_channel_key: Refusal.SETUP,
    own_advert_exchanged: Refusal.SETUP,
    client_named_twice: Refusal.SETUP,
    fewer_than_needed: Refusal.TOO_FEW,
    set_up_of_another_run: Refusal.SIGNATURE,
    set_up_with_other_constants: Refusal.SIGNATURE,
    set_up_twice: Refusal.SETUP,
    another_roster: Refusal.ROSTER,
    shares_of_another_run: Refusal.SHARES,
    shares_of_another_attempt: Refusal.SHARES,
    shares_of_another_dealer: Refusal.SHARES,
    own_shares_reflected: Refusal.SHARES,
    shares_missing: Refusal.SETUP,
    two_views_of_who_is_present: Refusal.SHARES,
    exactly_t_with_c_of_them_colluding: Refusal.TOO_FEW,
    one_fewer_than_needed: Refusal.TOO_FEW,
    second_survivor_set: Refusal.SECOND_SET,
    second_survivor_set_after_a_restart: Refusal.SECOND_SET,
    dropped_client_revived: Refusal.SECOND_SET,
    both_secrets_of_one_client: Refusal.SECOND_SET,
    survivor_that_is_not_there: Refusal.SURVIVORS,
    survivor_counted_twice: Refusal.SURVIVORS,
    survivors_out_of_order: Refusal.SURVIVORS,
    too_few_responders: Refusal.SURVIVORS,
    responders_without_this_client: Refusal.SURVIVORS,
    responder_that_is_not_a_member: Refusal.SURVIVORS,
    round_replayed: Refusal.ROUND,
    round_replayed_with_another_model: Refusal.ROUND,
    round_replayed_after_a_restart: Refusal.ROUND,
    words_after_unmasking: Refusal.ROUND,
    earlier_round_opened_late: Refusal.ROUND,
    round_that_does_not_exist: Refusal.ROUND,
    round_zero: Refusal.ROUND,
    words_before_the_set_up: Refusal.SETUP,
    unmasking_before_shares: Refusal.SETUP,
    empty_context: Refusal.SETUP,
}


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_the_client_refuses(attack: Attack) -> None:
    with pytest.raises(SecureSumError) as refused:
        attack()

    assert refused.value.refusal is ATTACKS[attack]
    assert ClientFailure.of(refused.value) is ClientFailure.PRIVACY
    assert str(refused.value) == ATTACKS[attack].value


def test_a_server_refuses_an_announcement_that_is_not_its_clients() -> None:
    made = announced()
    one = made.announced[1]
    wrong = [
        replace(one, mask_keys=one.mask_keys[:-1]),
        replace(one, mask_keys=one.mask_keys[::-1]),
        replace(one, seed_commitments=one.seed_commitments[::-1]),
        replace(one, seed_commitments=b""),
        replace(one, advert=replace(one.advert, index=2)),
        replace(one, advert=replace(one.advert, index=-1)),
        replace(one, advert=replace(one.advert, signature=b"")),
    ]
    for each in wrong:
        with pytest.raises(SecureSumError):
            each.check(made.terms, made.roster)
    one.check(made.terms, made.roster)
