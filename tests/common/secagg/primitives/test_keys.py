"""Keys, keystreams and boxes agree with other implementations and have one purpose each.

Drives `common.secagg.primitives.domains`, `common.secagg.primitives.keys`, `common.secagg.primitives.masks` and
`common.secagg.primitives.sealing`.
"""

import hashlib

import numpy as np
import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from common.secagg.primitives.domains import PROTOCOL, Domain, digest, frame
from common.secagg.primitives.keys import AgreementKey, derive_key, random_secret
from common.secagg.primitives.masks import keystream, mask_words
from common.secagg.primitives.ring import Ring
from common.secagg.primitives.sealing import seal, unseal
from common.secagg.refusals import Refusal, SecureSumError


def test_derive_key_is_hkdf_over_a_framed_purpose() -> None:
    secret, info = b"s" * 32, frame(Domain.PAIR, 3, "x", b"y")

    assert derive_key(secret, Domain.PAIR, 3, "x", b"y") == HKDF(SHA256(), 32, PROTOCOL, info).derive(secret)


def test_each_purpose_and_each_part_gives_another_key() -> None:
    keys = {
        derive_key(b"s" * 32, domain, *parts) for domain in Domain for parts in ((1,), (2,), (1, 1), ("1",), (b"1", 1))
    }

    assert len(keys) == 5 * len(Domain)
    assert len({domain.value for domain in Domain}) == len(Domain)


def test_frozen_values_of_the_protocol() -> None:
    """Another value is another protocol, and needs another version in its name."""
    assert PROTOCOL == b"bract secure sum 1"
    assert digest(Domain.SESSION, "run", 7).hex() == "d460dd6bff53a1cd4318b9d982410338e49943d89b976bd00e459a38f2c590a8"
    assert (
        hashlib.sha256(b"".join(domain.value + b"," for domain in Domain)).hexdigest()
        == "b342a2100a0ea39e5540a442c8108a3468dd44b782ebc41172b1c8d28ea6e89d"
    )
    assert (
        derive_key(bytes(32), Domain.PAIR_MASK, bytes(32)).hex()
        == "12ad8cc47bd173962fecd12864953d525096be4964594e3ee4effccf360f26df"
    )
    assert keystream(bytes(32), 16).hex() == "dc95c078a2408989ad48a21492842087"  # AES-256 of zeros, a NIST vector


def test_two_parties_agree() -> None:
    first, second = AgreementKey(random_secret()), AgreementKey(random_secret())

    assert first.agree(second.public_key) == second.agree(first.public_key)


@pytest.mark.parametrize("key", [bytes(32), b"\x01" + bytes(31), b"short", b""], ids=["zero", "one", "short", "none"])
def test_agree_refuses_a_key_that_forces_the_result(key: bytes) -> None:
    with pytest.raises(SecureSumError) as refused:
        AgreementKey(random_secret()).agree(key)

    assert refused.value.refusal is Refusal.SETUP


@pytest.mark.parametrize(("bits", "held"), [(32, 32), (40, 64), (64, 64)])
def test_mask_words_are_the_keystream(bits: int, held: int) -> None:
    words = mask_words(b"k" * 32, Ring(bits), 5)

    assert words.tobytes() == keystream(b"k" * 32, 5 * held // 8)
    assert np.array_equal(mask_words(b"k" * 32, Ring(bits), 3), words[:3])


def test_a_box_opens_with_its_key_in_its_place_only() -> None:
    box = seal(b"k" * 32, b"content", b"from 1 to 2")

    assert unseal(b"k" * 32, box, b"from 1 to 2") == b"content"
    assert seal(b"k" * 32, b"content", b"from 1 to 2") != box
    for key, changed, place in (
        (b"j" * 32, box, b"from 1 to 2"),
        (b"k" * 32, box, b"from 2 to 1"),
        (b"k" * 32, box[:-1] + bytes([box[-1] ^ 1]), b"from 1 to 2"),
        (b"k" * 32, b"", b"from 1 to 2"),
    ):
        with pytest.raises(SecureSumError) as refused:
            unseal(key, changed, place)
        assert refused.value.refusal is Refusal.SHARES
        assert refused.value.__cause__ is None
