"""Context of a run outside its clients and messages."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from common.arrays import Arrays
from common.metrics import Counts
from server.reporting.trackers import LogTracker, Tracker
from server.rounds.loop import Evaluate


@dataclass(frozen=True)
class RunContext:
    """Context of a run, fixed before any client is asked.

    Attributes:
        tracker: Follows the rounds.
        simulated: Whether the clients are a simulation's.
        evaluate: Returns counts of a model over all held-out images; simulations only.
        evaluate_by_client: Returns counts of a model by client name; simulations only.
        public_test: Returns the figures of a model on the server's own public images, by key; None without such images.
        class_counts: (classes, clients) number of images; simulations only.
        images_unused: Number of images that the partitioner left out; simulations only.
        skipped_files: Number of files that could not be used; simulations only, because a real client does not send
            that number.
        data_warnings: Sentences about the images' values; simulations only.
        seconds: Seconds of phases before the run, such as `features`, by name.
        reports: Whether the run writes its report; False where a command writes it that still adds to the summary.
        sizes: Declared number of each client's units by name, in the order of the nodes; only for simulations whose
            clients keep nothing and would repeat public facts. They are asked neither to declare themselves nor to
            close the run. None where each client must agree by itself.
        record_images: Writes into a new run's folder which images it has, those of a simulation and public ones.
    """

    tracker: Tracker = field(default_factory=LogTracker)
    simulated: bool = False
    evaluate: Evaluate | None = None
    evaluate_by_client: Callable[[Arrays], dict[str, Counts]] | None = None
    public_test: Callable[[Arrays], Mapping[str, Any]] | None = None
    class_counts: np.ndarray | None = None
    images_unused: int = 0
    skipped_files: int = 0
    data_warnings: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    reports: bool = True
    sizes: Mapping[str, int] | None = None
    record_images: Callable[[Path], None] | None = None
