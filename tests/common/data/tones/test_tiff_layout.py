"""A TIFF that is not read is refused in one line that says its depth or layout, and what to save instead."""

import struct
from io import BytesIO

import numpy as np
import pytest

from common.data.decoding import BadImage, decode
from common.data.tones.tiff_layout import layout_reason
from tests.support.data.deep_files import tiff

VALUES = np.arange(256).reshape(16, 16)
REMEDY = "save it as gray or RGB with 8 or 16 bits"
SCALED = f"{REMEDY}, its values scaled to 0..65,535"
_KIND, _FLOAT, _COMPLEX = 339, 3, 5


def of_depth(bits: int, order: str = "<") -> bytes:
    """A file whose header says another depth than its pixels have."""
    content = tiff(VALUES.astype(np.uint16), order=order)
    field = struct.pack(f"{order}HHI", 258, 3, 1)
    return content.replace(field + struct.pack(f"{order}H", 16), field + struct.pack(f"{order}H", bits), 1)


def of_compression(number: int) -> bytes:
    field = struct.pack("<HHI", 259, 3, 1)
    return tiff(VALUES.astype(np.uint16)).replace(field + b"\1\0", field + struct.pack("<H", number), 1)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (of_depth(9), f"TIFF of 9 bits per channel (whole numbers), which is not read: {REMEDY}"),
        (of_depth(10), f"TIFF of 10 bits per channel (whole numbers), which is not read: {REMEDY}"),
        (of_depth(14, ">"), f"TIFF of 14 bits per channel (whole numbers), which is not read: {REMEDY}"),
        (of_depth(24), f"TIFF of 24 bits per channel (whole numbers), which is not read: {SCALED}"),
        (
            tiff(VALUES.astype(np.uint32), bits=32),
            f"TIFF of 32 bits per channel (whole numbers), which is not read: {SCALED}",
        ),
        (
            tiff(VALUES.astype(np.int32), bits=32),
            f"TIFF of 32 bits per channel (signed whole numbers), which is not read: {SCALED}",
        ),
        (
            tiff(VALUES.astype(np.uint32), bits=32, more={_KIND: _FLOAT}),
            f"TIFF of 32 bits per channel (floating point), which is not read: {SCALED}",
        ),
        (
            tiff(VALUES.astype(np.uint16), more={_KIND: _FLOAT}),
            f"TIFF of 16 bits per channel (floating point), which is not read: {SCALED}",
        ),
        (
            tiff(VALUES.astype(np.uint32), bits=32, more={_KIND: _COMPLEX}),
            f"TIFF of 32 bits per channel (complex whole numbers), which is not read: {SCALED}",
        ),
        (
            tiff(np.dstack([VALUES] * 5).astype(np.uint8), bits=8),
            f"TIFF of 5 channels of 8 bits in a layout that is not read: {REMEDY}",
        ),
        (of_compression(34712), f"TIFF of 1 channel of 16 bits in a layout that is not read: {REMEDY}"),
        # Of a damaged header nothing is known, so nothing is said of its layout.
        (of_depth(10)[:20], "damaged or truncated TIFF (UnidentifiedImageError)"),
        (b"II+\0\x08\0\0\0" + bytes(60), "damaged or truncated TIFF (UnidentifiedImageError)"),
        (b"II*\0\xff\xff\xff\xff" + bytes(60), "damaged or truncated TIFF (UnidentifiedImageError)"),
    ],
)
def test_a_tiff_that_is_not_read_says_its_depth_and_the_remedy(content: bytes, said: str) -> None:
    with pytest.raises(BadImage) as caught:
        decode({"bytes": content, "path": None})

    assert str(caught.value) == said


@pytest.mark.parametrize("content", [b"", b"II", b"II*\0", bytes(100), of_depth(10)[:60]])
def test_a_header_that_cannot_be_read_has_no_layout(content: bytes) -> None:
    assert layout_reason(BytesIO(content)) == ""
