"""A client's secrets survive a restart, end with their round, and show nowhere else.

Drives `common.secagg.protocol.client_secrets`, `common.secagg.protocol.round_table`,
`common.secagg.protocol.storage` and `common.secagg.protocol.terms`.
"""

import io
import logging
import traceback
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import chi2

from common.secagg.primitives.ring import Words
from common.secagg.protocol.client import ClientState
from common.secagg.protocol.messages import UnmaskRequest
from common.secagg.protocol.server_setup import ServerSetup
from common.secagg.protocol.storage import unpack
from common.secagg.protocol.terms import Terms
from common.secagg.refusals import Refusal, SecureSumError
from tests.support.secagg.federation import CONTEXT, Federation, identity_of, plain_sum, roster_of, terms_of

KIND = "secure sum client 2"


def restarted(state: ClientState) -> ClientState:
    return ClientState.from_bytes(state.to_bytes())


def secrets_in(state: ClientState) -> set[bytes]:
    """Return every 32-byte secret that a state holds, zeros apart."""
    _, arrays = unpack(state.to_bytes(), KIND)
    rows = [row.tobytes() for array in arrays.values() for row in array.reshape(-1, 32)]
    return set(rows) - {bytes(32)}


def test_every_message_may_be_handled_by_a_fresh_process() -> None:
    terms = terms_of(5, honest=2)
    made = Federation.announced_of(terms)
    for index in made.clients:
        made.clients[index] = restarted(made.clients[index])
    boxes = {index: state.deal(made.roster, made.setup.delivery(index)) for index, state in made.clients.items()}
    for index in made.clients:
        made.setup.add_boxes(index, boxes[index])
        made.clients[index] = restarted(made.clients[index])
    for index, state in made.clients.items():
        assert state.awaits_boxes
        state.accept(made.setup.boxes_for(index))
        made.clients[index] = restarted(state)
        assert not made.clients[index].awaits_boxes
    made.setup = ServerSetup.from_bytes(made.setup.to_bytes(), made.roster)
    for number in (1, 2):
        words = made.words(number)
        open_round = made.masked(number, words, lost={4})
        made.clients = {index: restarted(state) for index, state in made.clients.items()}
        assert np.array_equal(made.opened(open_round), plain_sum(words, range(4)))
        made.clients = {index: restarted(state) for index, state in made.clients.items()}


@pytest.mark.parametrize("cut", [0, 1, 100, -1])
def test_damaged_bytes_are_refused(cut: int) -> None:
    raw = Federation.ready(terms_of(3)).clients[0].to_bytes()

    flipped = [raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :] for place in (2, 200, len(raw) - 1)]
    for damaged in (raw[:cut], *flipped, b"PK\x03\x04", raw + b"\0", raw + b""):
        if damaged != raw:
            with pytest.raises(SecureSumError) as refused:
                ClientState.from_bytes(damaged)
            assert refused.value.refusal is Refusal.STORED
    with pytest.raises(SecureSumError):
        ServerSetup.from_bytes(raw, roster_of(3))


def test_a_rounds_secrets_are_gone_from_the_bytes_once_it_is_over() -> None:
    made = Federation.ready(terms_of(5, honest=2))
    state = made.clients[0]
    seeds, pairs = ({row.tobytes() for row in table.row(1)} for table in (state._secrets.seeds, state._secrets.pairs))
    shares = {
        row.tobytes() for table in (state._secrets.seed_shares, state._secrets.mask_shares) for row in table.row(1)
    }
    assert len(seeds | pairs | shares) == 1 + 4 + 10
    assert seeds | pairs | shares <= secrets_in(state)

    open_round = made.masked(1, made.words(1))
    assert not (seeds | pairs) & secrets_in(state)
    assert shares <= secrets_in(state)

    made.opened(open_round)
    # The half that this survivor set opens stays until the next round, for another set of responders.
    assert len(shares & secrets_in(state)) == 5

    made.masked(2, made.words(2))
    assert not shares & secrets_in(state)
    state.close()
    assert not secrets_in(state)


def test_each_round_has_secrets_of_its_own() -> None:
    """What is opened in one round must say nothing about the next one."""
    made = Federation.ready(terms_of(4, honest=2, lengths=(7,) * 5))
    secrets = made.clients[0]._secrets
    tables = (secrets.seeds, secrets.pairs, secrets.seed_shares, secrets.mask_shares)
    rows = [row.tobytes() for table in tables for row in table.rows.reshape(-1, 32)]

    assert len(rows) == 5 * (1 + 3 + 4 + 4)
    assert len(set(rows)) == len(rows)


def test_keys_for_blinding_go_one_way() -> None:
    """A member that has missed a round blinds like the others, and old keys are gone."""
    made = Federation.ready(terms_of(4, honest=2))
    state, old = made.clients[0], {row.tobytes() for row in made.clients[0]._secrets.blinds} - {bytes(32)}
    assert len(old) == 3
    assert old <= secrets_in(state)
    made.opened(made.masked(1, {index: own for index, own in made.words(1).items() if index != 3}, lost={3}))
    words = made.words(2)

    assert np.array_equal(made.opened(made.masked(2, words)), plain_sum(words, words))

    assert not old & secrets_in(state)
    assert len({row.tobytes() for row in state._secrets.blinds} - {bytes(32)}) >= 3


def test_the_memory_of_erased_rounds_is_overwritten() -> None:
    made = Federation.ready(terms_of(3))
    secrets = made.clients[0]._secrets
    views = [table.row(1) for table in (secrets.seeds, secrets.pairs, secrets.seed_shares, secrets.mask_shares)]

    made.masked(1, made.words(1))
    made.masked(2, made.words(2))

    assert not any(view.any() for view in views)


def test_the_secrets_of_the_set_up_go_with_it() -> None:
    made = Federation.announced_of(terms_of(4, honest=2))
    state = made.clients[0]
    masks, channel = set(state._secrets.mask_secrets.in_order()), state._secrets.channel.tobytes()
    assert masks | {channel} <= secrets_in(state)

    boxes = {index: each.deal(made.roster, made.setup.delivery(index)) for index, each in made.clients.items()}
    assert not (masks | {channel}) & secrets_in(state)
    inbound = {row.tobytes() for row in state._secrets.inbound} - {bytes(32)}
    assert len(inbound) == 3

    state.accept({dealer: sealed[0] for dealer, sealed in boxes.items() if dealer != 0})
    assert not inbound & secrets_in(state)


def masks_of(made: Federation, number: int, context: bytes = CONTEXT) -> list[Words]:
    """Return what is added to each client's words, zeros being masked."""
    zero = made.terms.ring.zeros(made.terms.lengths[number - 1])
    return [state.mask(number, context, zero) for state in made.clients.values()]


def test_no_mask_repeats_over_rounds_restarts_attempts_or_runs() -> None:
    masks: list[Words] = []
    for changes in ({}, {"attempt": 1}, {"run": "run-2"}, {}):
        made = Federation.ready(terms_of(4, honest=2, lengths=(64, 64, 64), **changes))
        masks += masks_of(made, 1)
        made.clients = {index: restarted(state) for index, state in made.clients.items()}
        masks += masks_of(made, 2)
        masks += masks_of(made, 3)

    # Not even two neighbouring words anywhere are the same.
    pairs = np.concatenate([words.view(np.uint64) for words in masks])
    assert len(np.unique(pairs)) == len(pairs)


def test_a_mask_depends_on_what_was_asked() -> None:
    made = Federation.ready(terms_of(4, honest=2))
    copies = {index: restarted(state) for index, state in made.clients.items()}

    first, second = masks_of(made, 1), masks_of(Federation(made.terms, made.roster, made.setup, copies), 1, b"o" * 32)

    assert all(np.count_nonzero(one == other) == 0 for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("bits", [32, 40, 48, 64])
def test_masked_words_are_uniform(bits: int) -> None:
    """Chi-square over bytes, by place in the word, for the words that a server sees of vectors full of zeros."""
    made = Federation.ready(terms_of(6, lengths=(20_000,), word_bits=bits))

    for words in masks_of(made, 1):
        # Nothing beyond the ring may leave: of words that wrap there it would be the number of negative ones.
        places = made.terms.ring.packed(made.terms.ring.checked(words, 20_000)).reshape(-1, bits // 8)
        for column in places.T:
            counts = np.bincount(column, minlength=256)
            statistic = float(np.sum((counts - len(column) / 256) ** 2) / (len(column) / 256))
            # A fair keystream fails one of these some forty times in one run of a million.
            assert chi2.sf(statistic, 255) > 1e-6
        assert abs(np.corrcoef(words[:-1].astype(np.float64), words[1:].astype(np.float64))[0, 1]) < 6 / np.sqrt(20_000)


def test_no_secret_shows_in_texts(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    made = Federation.ready(terms_of(4, honest=2))
    state, identity = made.clients[0], identity_of(0)
    texts = [repr(state), str(state), repr(identity), repr(state._secrets), repr(state._secrets.seeds)]
    attempts: list[Callable[[], object]] = [
        lambda: state.mask(9, CONTEXT, made.words(1)[0]),
        lambda: state.mask(1, CONTEXT, made.words(1)[0][:-1]),
        lambda: state.unmask(UnmaskRequest(1, (0,), (0,))),
        lambda: state.accept({}),
        lambda: ClientState.from_bytes(state.to_bytes()[:-9]),
    ]
    for attempt in attempts:
        with pytest.raises(SecureSumError) as refused:
            attempt()
        texts.append("".join(traceback.format_exception(refused.value)))
    shown = "".join(texts) + caplog.text

    for secret in [*secrets_in(state), (0).to_bytes(32, "big")]:
        assert secret.hex() not in shown
        assert repr(secret)[2:-1] not in shown
        assert str(int.from_bytes(secret, "little")) not in shown or secret == (0).to_bytes(32, "big")


def test_a_refused_step_changes_nothing() -> None:
    made = Federation.ready(terms_of(4, honest=2))
    state = made.clients[0]
    before = secrets_in(state)

    for request in (UnmaskRequest(2, (0, 1), (0, 1, 2, 3)), UnmaskRequest(2, (0, 1, 2, 9), (0, 1, 2, 3))):
        with pytest.raises(SecureSumError):
            state.unmask(request)
    with pytest.raises(SecureSumError):
        state.mask(2, CONTEXT, made.words(2)[0][:-1])

    assert secrets_in(state) == before
    assert state.next_round == 1
    state.mask(1, CONTEXT, made.words(1)[0])
    assert state.next_round == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"num_colluding": 0},
        {"num_honest": 1},
        {"num_honest": 4},
        {"lengths": ()},
        {"lengths": (3, 0)},
        {"attempt": -1},
        {"word_bits": 16},
    ],
    ids=str,
)
def test_terms_that_contradict_each_other_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(SecureSumError) as refused:
        terms_of(4, **({"honest": 2} | changes) if "num_honest" not in changes else changes)  # type: ignore[arg-type]

    assert refused.value.refusal is Refusal.TERMS


def test_every_constant_names_another_session() -> None:
    base = terms_of(6, honest=2)
    others: list[Terms] = [
        terms_of(6, honest=2, **{name: value})
        for name, value in {
            "run": "run-2",
            "attempt": 1,
            "roster": b"r" * 32,
            "num_colluding": 2,
            "lengths": (7, 8),
            "word_bits": 64,
            "plan": b"other",
        }.items()
    ]
    others += [terms_of(6, honest=3), terms_of(7, honest=2), terms_of(6, honest=2, lengths=(7, 7, 7))]

    assert len({terms.session for terms in [base, *others]}) == 1 + len(others)


def test_a_state_of_an_earlier_version_is_refused() -> None:
    """It was an archive of arrays. The run that it belongs to has words of another ring."""
    earlier = io.BytesIO()
    np.savez(earlier, header=np.frombuffer(b'{"kind": "secure sum client 1"}', dtype=np.uint8))
    now = Federation.ready(terms_of(3)).clients[0].to_bytes()
    renamed = now.partition(b"\n")[2].replace(b"client 2", b"client 1")

    for raw in (earlier.getvalue(), b"%08x\n" % zlib.crc32(renamed) + renamed):
        with pytest.raises(SecureSumError) as refused:
            ClientState.from_bytes(raw)
        assert refused.value.refusal is Refusal.STORED
    with pytest.raises(SecureSumError) as refused:
        ServerSetup.from_bytes(earlier.getvalue(), roster_of(3))
    assert refused.value.refusal is Refusal.STORED
