"""Context of a run outside its clients and messages."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from common.arrays import Arrays
from common.metrics import Counts
from server.reporting.trackers import LogTracker, Tracker
from server.rounds.loop import Evaluate


@dataclass(frozen=True)
class RunContext:
    """What is around a federation, outside every client and message.

    Attributes:
        tracker: Listens to the rounds.
        simulated: Whether the clients are a simulation's.
        evaluate: Counts a model's predictions on all held-out images; simulations
            only, None elsewhere.
        evaluate_by_client: The same, by client name.
        class_counts: (classes, clients) images held; simulations only.
        images_unused: Images that the partitioner gave to nobody; simulations only.
        skipped_files: Files that could not be used; simulations only, because a real
            client keeps that number to itself.
        seconds: Seconds of phases that came before the run, such as `features`.
    """

    tracker: Tracker = field(default_factory=LogTracker)
    simulated: bool = False
    evaluate: Evaluate | None = None
    evaluate_by_client: Callable[[Arrays], dict[str, Counts]] | None = None
    class_counts: np.ndarray | None = None
    images_unused: int = 0
    skipped_files: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)
