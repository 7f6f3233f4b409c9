"""Tiles of a contact sheet, made of a model and a labelled source."""

import numpy as np

from common.inference.evaluation.labelled_images import LabelledImages, Scored
from common.inference.explanation.contact_sheet import Tile
from common.inference.explanation.explainer import Explainer, Explanation
from common.system.progress import ProgressFactory, no_progress


def make_tiles(
    explainer: Explainer,
    images: LabelledImages,
    scored: Scored,
    rows: np.ndarray,
    progress: ProgressFactory = no_progress,
) -> list[Tile]:
    """Return a tile that explains the predicted class of each of some scored images.

    Args:
        explainer: Explainer of the model whose scores are the first of `scored`.
        images: The labelled images.
        scored: Their scores.
        rows: Positions in the scores, (k,) int64.
        progress: Report of progress.
    """
    model = scored.models[0]
    places = images.rows[scored.rows[rows]]
    predicted = model.predicted[rows].tolist()
    cells = [cell for _, cell in images.entries.cells(places)]
    advance = progress(len(rows), "Explaining")
    tiles = []
    for at, found in enumerate(explainer.explain(cells, predicted)):
        advance(1)
        # These images were read a moment ago. One that is gone since then is left out.
        if isinstance(found, Explanation):
            label = explainer.card.classes[model.labels[rows[at]]]
            share = float(model.confidence[rows[at]])
            tiles.append(Tile(found.overlay(), images.entries.place(places[at]), label, found.class_name, share))
    return tiles
