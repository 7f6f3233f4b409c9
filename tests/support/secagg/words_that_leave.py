"""What leaves a client in secure sums, read from the bytes that Flower sends, and how masked words must look."""

import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from flwr.app import ConfigRecord, Message
from flwr.proto.message_pb2 import PushObjectRequest
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_type_from_object_content,
)
from scipy.stats import binomtest, chi2

from common.secagg.primitives.ring import Ring, Words

# A vector of uniform words is refused in one of so many cases by each of the two tests, at most.
FALSE_ALARM = 1e-12
_REQUEST = re.compile(rb"POST (\S+) HTTP/1\.1\r\n(.*?)\r\n\r\n", re.DOTALL)
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_NUMPY = b"\x93NUMPY"
_KEY_SIZE = 32
# Words of two vectors that are compared: more would take long and show no more.
_COMPARED = 4000
# With fewer bytes, the chi-squared distribution is no approximation. Closing counts have few words.
_FEWEST_BYTES = 5 * 256


@dataclass
class Sent:
    """What some clients have sent.

    Attributes:
        words: Each array.
        keys: Each X25519 key of a set-up, channel keys and mask keys of all rounds.
        size: Bytes of all objects.
    """

    words: list[Words] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    size: int = 0


def sent_in(contents: Iterable[bytes], bits: int) -> Sent:
    """Read Flower's objects, in the form in which they are sent, with words of so many bits."""
    found = Sent()
    for content in contents:
        found.size += len(content)
        kind = get_object_type_from_object_content(content)
        if kind == "ArrayChunk":
            array = np.load(io.BytesIO(content[content.index(_NUMPY) :]), allow_pickle=False)
            # Anything else than packed words stays as it is, and would not look uniform.
            packed = array.dtype == np.uint8 and array.ndim == 1 and array.size % (bits // 8) == 0
            found.words.append(Ring(bits).unpacked(array) if packed else array)
        if kind == "ConfigRecord" and "channel-key" in (record := ConfigRecord.inflate(content)):
            keys = bytes(record["channel-key"]) + bytes(record["mask-keys"])  # type: ignore[arg-type]
            found.keys += [keys[at : at + _KEY_SIZE] for at in range(0, len(keys), _KEY_SIZE)]
    return found


def objects_of(messages: Iterable[Message]) -> Iterator[bytes]:
    """Each object of messages as it is sent: this is what would enter TLS."""
    for message in messages:
        if message.has_content():
            for part in get_all_nested_objects(message.content).values():
                yield part.deflate()


def objects_on_wire(payload: bytes) -> Iterator[bytes]:
    """Each object that a SuperNode has pushed in one direction of a connection without TLS."""
    for request in _REQUEST.finditer(payload):
        length = _LENGTH.search(request[2])
        if request[1].endswith(b"/push-object"):
            assert length is not None, "a request without its length"
            body = payload[request.end() : request.end() + int(length[1])]
            yield PushObjectRequest.FromString(body).object_content


def check_uniform(words: Words, bits: int) -> None:
    """Check that words look like uniform ones of so many bits.

    Two tests at `FALSE_ALARM` each: how often each byte value comes (chi-squared, too even counts as well as too odd
    ones), and how often each of a word's bits is set (binomial, with all bits counted for).

    Raises:
        AssertionError: They do not.
    """
    octets = np.ascontiguousarray(words.view(np.uint8).reshape(words.size, words.itemsize)[:, : bits // 8]).ravel()
    counted, expected = np.bincount(octets, minlength=256), octets.size / 256
    assert octets.size >= _FEWEST_BYTES, "too few words for the test"
    statistic = float(((counted - expected) ** 2 / expected).sum())
    likely = min(chi2.sf(statistic, 255), chi2.cdf(statistic, 255))
    assert likely > FALSE_ALARM / 2, f"byte values are not uniform: chi-squared {statistic:.0f} with 255 degrees"
    set_bits = np.unpackbits(octets.reshape(words.size, bits // 8), axis=1).sum(axis=0)
    worst = int(set_bits[np.argmax(np.abs(set_bits - words.size / 2))])
    likely = binomtest(worst, words.size).pvalue
    assert likely > FALSE_ALARM / bits, f"one bit is set in {worst} of {words.size} words"


def check_masked(words: list[Words], bits: int) -> None:
    """Check that vectors look uniform, each alone and each less any other.

    Two vectors under one mask differ by what they hide. That is small, so it would not look uniform.

    Raises:
        AssertionError: One does not, or a word comes twice.
    """
    long = [vector for vector in words if vector.size * bits // 8 >= _FEWEST_BYTES]
    assert long, "no vector is long enough"
    for number, vector in enumerate(long):
        check_uniform(vector, bits)
        for other in long[:number]:
            if other.size == vector.size:
                check_uniform((vector - other)[:_COMPARED], bits)
    together = np.concatenate(words)
    # By chance 0.8 pairs of equal words are among a million with 40 bits: ten in one of ten million tests.
    assert len(together) - len(np.unique(together)) < 10
