"""The contact sheet has the most confident mistakes and the least certain images.

Drives `common.inference.explanation.contact_sheet`.
"""

import io

import numpy as np
from PIL import Image

from common.inference.evaluation.scored_images import ScoredImages
from common.inference.explanation.contact_sheet import Tile, draw_sheet
from common.inference.explanation.doubtful_images import choose_doubtful


def scored(labels: list[int], first: list[float]) -> ScoredImages:
    """Images with the probability of the first of two classes."""
    shares = np.array(first)
    logits = np.stack([np.log(shares), np.log(1 - shares)], axis=1)
    return ScoredImages(np.array(labels), logits, np.arange(len(labels)))


def test_mistakes_come_by_confidence_and_others_by_doubt() -> None:
    images = scored([0, 1, 1, 0, 0, 1], [0.9, 0.8, 0.99, 0.45, 0.52, 0.3])

    chosen = choose_doubtful(images, 2)

    assert chosen.mistakes.tolist() == [2, 1]
    # The third mistake is so unsure that it is one of these.
    assert chosen.unsure.tolist() == [4, 3]


def test_few_images_are_shown_once_and_a_model_without_mistakes_has_none() -> None:
    right = choose_doubtful(scored([0, 0, 1], [0.9, 0.6, 0.2]), 8)
    wrong = choose_doubtful(scored([1], [0.9]), 8)

    assert (right.mistakes.tolist(), right.unsure.tolist()) == ([], [1, 2, 0])
    assert (wrong.mistakes.tolist(), wrong.unsure.tolist()) == ([0], [])


def test_a_sheet_has_room_for_all_tiles_and_odd_names() -> None:
    tile = Tile(Image.new("RGB", (82, 40)), "x/$a$\x1b[2J" + 60 * "y" + ".png", "$cat$", "dog", 0.987)
    few, many = (
        Image.open(io.BytesIO(draw_sheet("3 images", [("mistakes", [tile] * count), ("unsure", [])])))
        for count in (1, 5)
    )

    assert many.height > few.height
    assert many.width == few.width
    first, second = tile.text.split("\n")
    assert first == r"dog 0.99, is \$cat\$"
    assert second.startswith("...")
    assert second.endswith("y.png")
    assert "\x1b" not in tile.text
    assert Tile(tile.picture, "a.png", "dog", "dog", 0.5).text == "dog 0.50, right\na.png"
