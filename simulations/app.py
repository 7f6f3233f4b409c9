"""The ServerApp with a simulation around it: what `flwr run` starts."""

from common.data.deal import class_counts, deal
from common.data.prepared import prepare
from common.progress import ProgressFactory, no_progress
from common.sections import RunConfig
from server.app import Surroundings, create_app
from server.tracking import LogTracker, Tracker
from simulations.evaluator import PooledEvaluator


def surround(
    config: RunConfig, *, tracker: Tracker | None = None, progress: ProgressFactory = no_progress
) -> Surroundings:
    """Prepare the source and the partition, and an evaluator beside the federation.

    Args:
        config: The run.
        tracker: Listens to the rounds; the log if left out.
        progress: Shows the backbone pass.

    Raises:
        DataError: The source is missing, unusable, or cannot be dealt as asked.
        WeightsError: Pretrained weights are missing or wrong.
    """
    prepared = prepare(config, progress)
    partition = deal(config, prepared)
    evaluator = PooledEvaluator(config, prepared, partition)
    return Surroundings(
        tracker=tracker or LogTracker(),
        evaluate=evaluator.pooled,
        evaluate_by_client=evaluator.by_client,
        class_counts=class_counts(prepared, partition),
        seconds={"features": prepared.seconds},
        images_unused=partition.images_unused,
        skipped_files=len(prepared.faults),
    )


app = create_app(surround)
