"""The ServerApp with a simulation around it: what `flwr run` starts."""

import time

import numpy as np

from common.config.schema import RunConfig
from common.data.partitioning.assignment import load_or_make_partition
from common.data.partitioning.partition import Partition, class_counts
from common.data.preprocessing import prepare
from common.data.sources.base_source import OWN_IMAGES
from common.system.progress import ProgressFactory, no_progress
from server.app import create_app
from server.reporting.trackers import LogTracker, Tracker
from server.run_context import RunContext
from simulations.pooled_evaluator import PooledEvaluator


def make_context(
    config: RunConfig, *, tracker: Tracker | None = None, progress: ProgressFactory = no_progress
) -> RunContext:
    """Prepare the source and the partition, and an evaluator beside the federation.

    Args:
        config: The run.
        tracker: Listens to the rounds; the log if left out.
        progress: Shows the backbone pass.

    Raises:
        DataError: The source is missing, unusable, or cannot be dealt as asked.
        WeightsError: Pretrained weights are missing or wrong.
    """
    if config.data.source == OWN_IMAGES:  # no simulation: the images are out of the server's reach
        return RunContext(tracker=tracker or LogTracker())
    prepared = prepare(config, progress)
    partition = load_or_make_partition(config, prepared)
    evaluator = PooledEvaluator(config, prepared, partition)
    started = time.perf_counter()
    _try_plans(config, partition)
    return RunContext(
        tracker=tracker or LogTracker(),
        simulated=True,
        evaluate=evaluator.pooled,
        evaluate_by_client=evaluator.by_client,
        class_counts=class_counts(prepared, partition),
        seconds={"features": prepared.seconds, "accounting": time.perf_counter() - started},
        images_unused=partition.images_unused,
        skipped_files=len(prepared.faults),
    )


def _try_plans(config: RunConfig, partition: Partition) -> None:
    """Make every client's plan here first: a setting that admits none is explained, where a client says a bare code."""
    if config.is_local_dp:
        sizes = partition.num_groups if config.privacy.unit == "group" else partition.num_units
        for size in np.unique(sizes).tolist():
            config.plan(size).spent()
    elif config.private:
        config.plan(config.cohort_size).spent()


app = create_app(make_context)
