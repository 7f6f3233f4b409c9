"""The unmasked sum is the plain sum, bit for bit, whoever is lost and when.

Drives `common.secagg.protocol.round_sum`, `common.secagg.protocol.server_setup`, `common.secagg.protocol.pair_masks`,
`common.secagg.protocol.blinding` and `common.secagg.protocol.dealing`.
"""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.secagg.protocol import pair_masks, topology
from common.secagg.protocol.client import ClientState
from common.secagg.protocol.round_sum import RoundSum
from common.secagg.refusals import Refusal, SecureSumError
from tests.support.secagg.federation import CONTEXT, Federation, plain_sum, terms_of


def federation(num_clients: int, colluding: int = 1, honest: int = 2, bits: int = 32) -> Federation:
    return Federation.copied(terms_of(num_clients, honest=honest, num_colluding=colluding, word_bits=bits))


def number_of(num_clients: int, share: float) -> int:
    return min(num_clients, math.ceil(share)) if share >= 1 else math.ceil(num_clients * share)


def drawn(num_clients: int, share: float, seed: int = 0) -> set[int]:
    stream = np.random.default_rng([num_clients, seed])
    return set(stream.choice(num_clients, number_of(num_clients, share), replace=False).tolist())


def without_words(made: Federation, gone: set[int]) -> set[int]:
    words = {index: own for index, own in made.words(1).items() if index not in gone}
    total = made.opened(made.masked(1, words))
    assert np.array_equal(total, plain_sum(words, words))
    return set(words)


def words_lost(made: Federation, gone: set[int]) -> set[int]:
    words = made.words(1)
    total = made.opened(made.masked(1, words, lost=gone))
    assert np.array_equal(total, plain_sum(words, set(words) - gone))
    return set(words) - gone


def silent_at_unmasking(made: Federation, gone: set[int]) -> set[int]:
    words = made.words(1)
    total = made.opened(made.masked(1, words), silent=gone)
    assert np.array_equal(total, plain_sum(words, words))
    return set(words)


def lost_at_both(made: Federation, gone: set[int]) -> set[int]:
    words, silent = made.words(1), drawn(len(gone) * 10, 0.1, seed=1)
    total = made.opened(made.masked(1, words, lost=gone), silent=silent)
    assert np.array_equal(total, plain_sum(words, set(words) - gone))
    return set(words) - gone


STAGES = [without_words, words_lost, silent_at_unmasking, lost_at_both]
CASES = [(10, stage, share) for stage in STAGES for share in (0, 1, 0.1, 0.3)]
CASES += [(6, stage, 1) for stage in STAGES] + [(50, words_lost, 0.1), (50, lost_at_both, 0.3)]
LARGE = [(without_words, 1), (words_lost, 0.1), (words_lost, 0.3), (silent_at_unmasking, 0.3), (lost_at_both, 0.3)]


@pytest.mark.parametrize(("num_clients", "stage", "share"), CASES)
def test_the_sum_is_exact_whoever_is_lost(
    num_clients: int, stage: Callable[[Federation, set[int]], set[int]], share: float
) -> None:
    stage(federation(num_clients), drawn(num_clients, share))


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "share"), LARGE)
def test_the_sum_of_two_hundred_is_exact(stage: Callable[[Federation, set[int]], set[int]], share: float) -> None:
    stage(federation(200, colluding=10, honest=100), drawn(200, share))


@pytest.mark.parametrize("num_clients", [3, 4, 5])
def test_few_clients_sum_without_losses(num_clients: int) -> None:
    without_words(federation(num_clients), set())


@pytest.mark.parametrize("bits", [40, 48, 56, 64])
def test_the_sum_is_exact_in_each_ring(bits: int) -> None:
    made = federation(5, bits=bits)
    words, ring = made.words(1), made.terms.ring

    total = made.opened(made.masked(1, words, lost={2}))

    # A sum beyond the ring would say more than the sum in it.
    assert np.array_equal(ring.checked(total, 7), ring.reduced(plain_sum(words, set(words) - {2})))


@pytest.mark.parametrize("gone", [{1}, {1, 5, 7}])
def test_clients_that_never_came_are_left_out_of_the_whole_run(gone: set[int]) -> None:
    made = Federation.ready(terms_of(10, honest=4), set(range(10)) - gone)

    without_words(made, set())


def test_one_that_announced_and_did_not_deal_needs_another_attempt() -> None:
    made = Federation.announced_of(terms_of(5, honest=2))
    for index in range(4):
        made.setup.add_boxes(index, made.clients[index].deal(made.roster, made.setup.delivery(index)))

    with pytest.raises(SecureSumError) as refused:
        RoundSum(made.setup, 1, CONTEXT)

    assert refused.value.refusal is Refusal.SETUP
    assert made.setup.missing == (4,)
    assert all(state.next_round == 1 for state in made.clients.values())
    without_words(Federation.ready(terms_of(5, honest=2, attempt=1), range(4)), set())


@given(data=st.data(), shape=st.sampled_from([(3, 1, 2), (5, 1, 2), (8, 2, 3), (9, 1, 5)]))
@settings(max_examples=25, deadline=None)
def test_any_pattern_of_losses_gives_the_exact_sum_or_nothing(data: st.DataObject, shape: tuple[int, int, int]) -> None:
    num_clients, colluding, honest = shape
    made = federation(*shape)
    clients = st.sets(st.integers(0, num_clients - 1))
    absent, lost, silent = data.draw(clients), data.draw(clients), data.draw(clients)
    words = {index: own for index, own in made.words(1).items() if index not in absent}
    survivors, members = set(words) - lost, set(made.setup.topology.committee)
    open_round = made.masked(1, words, lost=lost) if words else RoundSum(made.setup, 1, CONTEXT)

    enough = len(survivors) - colluding >= honest and len(members & survivors) >= made.setup.topology.threshold
    answering = len((members & survivors) - silent) >= made.setup.topology.threshold
    if enough and answering and made.setup.topology.hides(survivors):
        assert np.array_equal(made.opened(open_round, silent=silent), plain_sum(words, survivors))
    else:
        with pytest.raises(SecureSumError) as refused:
            made.opened(open_round, silent=silent)
        assert refused.value.refusal in (Refusal.TOO_FEW, Refusal.SURVIVORS)


def test_below_the_threshold_no_member_answers() -> None:
    """The server's own check is left out here. What is opened is decided by the clients."""
    made = federation(9, honest=5)
    words = made.words(1)
    open_round = made.masked(1, words, lost={0, 1, 2, 3})

    with pytest.raises(SecureSumError) as refused:
        open_round.ask()

    assert refused.value.refusal is Refusal.TOO_FEW


def test_both_rounds_of_a_run_open_and_an_aborted_one_never_does() -> None:
    made = federation(6)
    first, words = made.masked(1, made.words(1)), made.words(2)
    late = first.ask()

    assert np.array_equal(made.opened(made.masked(2, words)), plain_sum(words, words))
    with pytest.raises(SecureSumError) as refused:
        made.clients[0].unmask(late)

    assert refused.value.refusal is Refusal.ROUND


def test_clients_that_were_asked_different_things_give_a_sum_that_says_nothing() -> None:
    """A server sends one client a model of its own, to which all others give nothing (arXiv:2111.07380)."""
    made = federation(6)
    words = made.words(1)
    open_round = RoundSum(made.setup, 1, CONTEXT)
    for index, own in words.items():
        context = b"another model".ljust(32) if index == 0 else CONTEXT
        open_round.add_words(index, made.clients[index].mask(1, context, own))

    total = made.opened(open_round)

    assert np.count_nonzero(total == plain_sum(words, words)) == 0
    others = total - words[0]
    assert np.count_nonzero(others == plain_sum(words, set(words) - {0})) == 0


def test_the_words_of_a_client_that_is_called_lost_stay_hidden() -> None:
    """Its mask key is opened, so that all its pairwise masks are known. Its self mask is not."""
    made = federation(6)
    words = made.words(1)
    secret = made.clients[3]._secrets.pairs.row(1).copy()
    copied = ClientState.from_bytes(made.clients[3].to_bytes()).mask(1, CONTEXT, words[3])
    neighbours = made.setup.topology.neighbours(3)
    pairs = [(-pair_masks.sign_of(3, other), row.tobytes()) for other, row in zip(neighbours, secret, strict=True)]

    pair_masks.add_pair_masks(copied, made.terms, 1, CONTEXT, pairs)

    assert np.count_nonzero(copied == words[3]) == 0


def test_a_wrong_answer_is_noticed() -> None:
    made = federation(6)
    open_round = made.masked(1, made.words(1))
    request = open_round.ask()
    for member in request.responders:
        reply = made.clients[member].unmask(request)
        shares = reply.shares if member else b"\x01" + reply.shares[1:]
        open_round.add_answer(type(reply)(reply.index, reply.request, shares))

    with pytest.raises(SecureSumError) as refused:
        open_round.finish()

    assert refused.value.refusal is Refusal.RECOVERY


@pytest.mark.parametrize("lost", [(), (3,)])
def test_secrets_of_both_kinds_are_compared_with_the_announcement(lost: tuple[int, ...]) -> None:
    made = federation(6)
    open_round = made.masked(1, made.words(1), lost=lost)
    made.answer(open_round, open_round.ask())
    # A step of 8, because the lowest three bits of an X25519 secret do not count.
    place = open_round._answers[0]
    place[3] = (place[3] + 8) % (2**256 - 189)

    with pytest.raises(SecureSumError):
        open_round.finish()


def test_the_server_takes_each_message_once_and_only_what_it_asked_for() -> None:
    made = federation(6)
    words = made.words(1)
    open_round = made.masked(1, {0: words[0]})
    with pytest.raises(SecureSumError):
        open_round.add_words(0, words[0])
    with pytest.raises(SecureSumError):
        open_round.add_words(17, words[0])
    with pytest.raises(SecureSumError):
        open_round.add_words(1, words[0][:-1])
    with pytest.raises(SecureSumError):
        open_round.finish()
    whole = made.masked(2, made.words(2), lost={4})
    request = whole.ask()
    with pytest.raises(SecureSumError):
        whole.add_words(4, words[4])
    made.answer(whole, request, silent={5})
    assert whole.missing == (5,)
    with pytest.raises(SecureSumError):
        whole.finish()
    with pytest.raises(SecureSumError):
        made.setup.add_announcement(made.setup.announcement(2))
    with pytest.raises(SecureSumError):
        made.setup.add_boxes(2, made.setup.boxes_for(2))


def test_neighbours_masks_are_uniform_words_and_cancel() -> None:
    made = federation(6)
    zero = {index: made.terms.ring.zeros(7) for index in made.clients}
    masked = {index: state.mask(1, CONTEXT, zero[index]) for index, state in made.clients.items()}

    assert len({words.tobytes() for words in masked.values()}) == 6
    assert pair_masks.sign_of(1, 2) == -pair_masks.sign_of(2, 1) == 1
    assert topology.threshold_of(6, 1) == made.setup.topology.threshold
