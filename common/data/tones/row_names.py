"""Names under which the inputs of images are stored.

They depend on the tones that models see an image in.
"""

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

from common.data.tones.rendering import FULL_DEPTH, Tones
from common.data.tones.value_facts import OPAQUE

if TYPE_CHECKING:
    from common.data.scan import Scan


def row_names(scan: "Scan", tones: Tones) -> np.ndarray:
    """Return what each entry's inputs are stored under, (n, 32) uint8.

    An image that the tones show as the canonical decode does is named by its pixels. Others are named by their file
    and the tones, because equal canonical pixels may differ in the bits that the tones show.
    """
    names = scan.digests.copy()
    for row in np.flatnonzero(is_shown_otherwise(scan, scan.channels, tones) & scan.usable):
        named = hashlib.sha256(repr(tones).encode() + scan.file_digests[row].tobytes())
        names[row] = np.frombuffer(named.digest(), np.uint8)
    return names


def is_shown_otherwise(facts: Any, channels: Any, tones: Tones) -> Any:
    """Return whether tones show images otherwise than the canonical decode does.

    The facts are `ValueFacts` of one image or a `Scan`, with a number of channels or an array of them.
    """
    deep, window = abs(facts.depths) > 8, tones.gray_window is not None
    shown = (facts.plain ^ True) | deep & (tones.bit_depth < FULL_DEPTH or window) | (channels == 1) & window
    return shown | (facts.transparency != OPAQUE) & (tones.background != "keep")
