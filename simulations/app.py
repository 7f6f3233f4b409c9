"""The ServerApp that `flwr run` starts, with what a simulation adds to it."""

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from client.session import client_name
from client.training.trainer import Trainer
from common.commands.early_checks import refuse_missing_folder, refuse_unknown_rows
from common.config.schema import RunConfig
from common.config.sections import DataConfig
from common.data.partitioning.assignment import load_or_make_partition
from common.data.partitioning.partition import class_counts
from common.data.partitioning.subgroups import subgroups_of
from common.data.preprocessing import Preparation, Scanned
from common.data.sources.base_source import OWN_IMAGES
from common.data.tones.range_report import unused_ranges
from common.data.tones.rendering import tones_of
from common.privacy.plan import PrivacyPlan
from common.system.progress import ProgressFactory, no_progress
from server.app import create_app
from server.reporting.trackers import LogTracker, Tracker
from server.run_context import RunContext
from simulations.class_holders import counts_by_kind, exposed_rows
from simulations.image_record import FILE, PUBLIC_FILE, ImageRecord, refuse_changed_images, refuse_changed_public_images
from simulations.pooled_evaluator import PooledEvaluator
from simulations.public_evaluator import PublicEvaluator, refuse_shared_images

_log = logging.getLogger("bract.server")


def make_context(
    config: RunConfig,
    *,
    tracker: Tracker | None = None,
    progress: ProgressFactory = no_progress,
    warn: Callable[[str], object] = _log.warning,
    in_order: bool = False,
) -> RunContext:
    """Prepare the data of a simulation, its partition and its own evaluator.

    A run over real clients gets no data but the server's own public images.

    Args:
        config: The run.
        tracker: Receives the results of each round. The default writes them to the log.
        progress: Shows the progress of the backbone pass.
        warn: Called with each warning, before anything is trained.
        in_order: Whether the grid numbers its nodes like the clients. Then these need not tell who they are.

    Raises:
        ConfigError: The settings allow no privacy plan for some client, or refuse a row of a secure sum.
        DataError: The source is missing or unusable, cannot be partitioned as configured, or is not the one that a
            resumed run began with.
        WeightsError: Pretrained weights are missing or wrong.
    """
    refuse_missing_folder(config.evaluation.folder)
    # Real clients hold the images, and the server cannot read them.
    if config.data.source == OWN_IMAGES:
        refuse_unknown_rows(config.privacy, exact_sums=config.sums_exactly)
        return _context(Trainer(config, (), config.data.class_names), tracker, progress)
    # Plans and partition need the scan alone, and are made while another process computes features.
    with Preparation(config, progress, ahead=True, warn=warn) as preparation:
        scanned = preparation.scanned
        record = _checked_record(config.data, scanned, Path(config.output_dir) if config.resume else None)
        partition = load_or_make_partition(config, scanned)
        sides = counts_by_kind(scanned.scan, partition, counted=config.privacy.metrics != "none")
        few = exposed_rows(sides, scanned.scan.classes, config.exact_sum, strict=config.privacy.strict_rows)
        units = partition.num_groups if config.privacy.unit == "group" else partition.num_units
        planned = np.unique(units).tolist() if config.is_local_dp else [config.cohort_size] * config.private
        accounting = _account(config.plan, planned)
        prepared = preparation.finish()
    trainer = Trainer(config, prepared.inputs.shape[1:], prepared.scan.classes)
    context = _context(trainer, tracker, progress, record)
    evaluator = PooledEvaluator(trainer, prepared, partition)
    keep_nothing = not (config.private or config.secure is not None or config.privacy.policy)
    data_warnings = (*unused_ranges(prepared.scan, partition.owner, tones_of(config.data)), *few)
    _warn_all(warn, data_warnings)
    return replace(
        context,
        simulated=True,
        evaluate=evaluator.pooled,
        evaluate_by_client=evaluator.by_client,
        class_counts=class_counts(scanned.scan, partition),
        seconds={"features": prepared.seconds, "accounting": accounting},
        images_unused=partition.images_unused,
        skipped_files=len(prepared.scan.faults),
        data_warnings=data_warnings,
        sizes=_sizes_by_name(units) if in_order and keep_nothing else None,
    )


def _sizes_by_name(units: np.ndarray) -> dict[str, int]:
    # Only for clients that keep nothing. Others must agree by themselves: their ledger must hold the plan, their
    # policy can refuse it, and closing erases the secrets of a secure sum.
    return {client_name(number): int(size) for number, size in enumerate(units)}


def _warn_all(warn: Callable[[str], object], warnings: Iterable[str]) -> None:
    for warning in warnings:
        warn(warning)


def _account(plan: Callable[[int], PrivacyPlan], sizes: Iterable[int]) -> float:
    """Compute what the plan of every client size costs and return the seconds.

    A setting without a plan fails here with its message. Later, a client could answer with an error code only.
    """
    started = time.perf_counter()
    for size in sizes:
        plan(size).spent()
    return time.perf_counter() - started


def _checked_record(data: DataConfig, scanned: Scanned, resumed: Path | None) -> ImageRecord:
    """Return the record of a run's images, once they are checked.

    Raises:
        ConfigError: The images are others, or the subgroups cannot be read.
    """
    record = ImageRecord.of(scanned, data)
    if resumed is not None:
        not_read = () if scanned.source is None else scanned.source.not_read
        refuse_changed_images(resumed, data, record, not_read)
    # Now, and not at a client, whose failure would be a code without words.
    subgroups_of(data, len(scanned.scan.labels))
    return record


def _context(
    trainer: Trainer, tracker: Tracker | None, progress: ProgressFactory, clients: ImageRecord | None = None
) -> RunContext:
    """Return what a run has whose images are at real clients.

    `clients` is the record of the images of simulated ones.

    Raises:
        DataError: The server's public images cannot be used, or are not those that a resumed run began with.
    """
    context, config = RunContext(tracker=tracker or LogTracker()), trainer.config
    records = {} if clients is None else {FILE: clients}
    if config.evaluation.folder:
        evaluator, prepared = PublicEvaluator.open(trainer, progress)
        record = ImageRecord.of(prepared, config.data.model_copy(update={"source": config.evaluation.folder}))
        if config.resume:
            refuse_changed_public_images(Path(config.output_dir), record)
        if config.private and clients is not None:
            refuse_shared_images(record, clients, config.evaluation.folder)
        context = replace(context, public_test=evaluator)
        records[PUBLIC_FILE] = record

    def save(folder: Path) -> None:
        for file, record in records.items():
            record.save(folder, file)

    return replace(context, record_images=save)


app = create_app(make_context)
