"""What a run would do: settings, privacy plan, time and disk, without training anything."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from client.learner import Learner
from common.config import bract_home, resolved
from common.data.deal import Shard, check_batch
from common.data.partition import assign_clients
from common.data.sources import ImageSource, open_source
from common.models.backbones import BACKBONES
from common.models.initial import initial_arrays
from common.privacy.plan import plan_for
from common.sections import RunConfig
from server.aggregation import build_strategy
from server.run_directory import check_free


def show(config: RunConfig, console: Console, *, as_json: bool) -> None:
    """Print the resolved settings, the plan of each client size, and estimates.

    Args:
        config: The run.
        console: Where to print.
        as_json: Print one JSON object instead of tables.

    Raises:
        BractError: What would stop the run stops the dry run too.
    """
    facts = foresee(config)
    if as_json:
        console.print_json(json.dumps(facts))
        return
    table = Table(title="Settings (change any with --set KEY=VALUE)", title_justify="left", show_header=False)
    for key, value in facts["config"].items():
        table.add_row(key, "(not set)" if value == "" else escape(str(value)))
    console.print(table)
    for line in _lines(facts):
        console.print(line, highlight=False, markup=False)


def foresee(config: RunConfig) -> dict[str, Any]:
    """Settings, plan and estimates as one dictionary."""
    build_strategy(config)
    if config.output_dir:
        check_free(Path(config.output_dir))
    source = open_source(config.data)
    labels = source.labels()
    check_batch(config, source.num_train)
    owner = assign_clients(labels[: source.num_train], config.data, num_clients=config.num_clients, seed=config.seed)
    sizes = np.bincount(owner, minlength=config.num_clients)
    shape = _input_shape(config, source)
    item = int(np.prod(shape)) * (4 if config.model.tuning == "head" else 1)
    return {
        "config": resolved(config),
        "images": len(labels),
        "classes": list(source.classes),
        "held_out": 0 if source.test is not None else config.data.test_fraction,
        "client_sizes": {"min": int(sizes.min()), "median": float(np.median(sizes)), "max": int(sizes.max())},
        "plan": _plan(config, sizes),
        "seconds": {
            "backbone_pass_if_not_cached": _backbone_seconds(config, source),
            "rounds": _round_seconds(config, shape, len(source.classes), int(np.median(sizes))),
        },
        "disk_bytes": {"cache": item * len(labels), "results_about": 400_000},
        "disk_free_bytes": shutil.disk_usage(bract_home().anchor or "/").free,
    }


def _plan(config: RunConfig, sizes: np.ndarray) -> dict[str, Any] | None:
    if not config.private:
        return None
    plans = {
        which: plan_for(config, int(size)) for which, size in (("smallest", sizes.min()), ("largest", sizes.max()))
    }
    return {
        which: {
            "num_units": plan.num_units,
            "sample_rate": plan.sample_rate,
            "steps_a_round": plan.steps_per_round,
            "rounds_at_most": plan.num_rounds,
            "noise_multiplier": plan.noise_multiplier,
            "epsilon_whole_run": plan.epsilon(),
            "delta": plan.delta,
        }
        for which, plan in plans.items()
    }


def _input_shape(config: RunConfig, source: ImageSource) -> tuple[int, ...]:
    if config.model.tuning == "head":
        return (BACKBONES[config.model.backbone].num_features,)
    first = source.train[0]["image"]
    side = config.data.image_size or first.size[0]
    return (side, side, 1 if first.mode == "L" else 3)


def _backbone_seconds(config: RunConfig, source: ImageSource) -> float:
    """Time of the first images through the backbone, scaled up."""
    if config.model.tuning != "head":
        return 0.0
    from common.data.prepared import no_progress
    from common.features import CHUNK, choose_device, extract_features
    from common.models.backbones import load_backbone

    info = BACKBONES[config.model.backbone]
    sample = source.train.select(range(min(2 * CHUNK, len(source.train))))
    backbone = load_backbone(info.name, config.model.weights)
    side, device = config.data.image_size or info.image_size, choose_device(config.system.device)
    for _ in range(2):  # the first pass pays for warming up
        started = time.perf_counter()
        extract_features(
            sample,
            backbone,
            info,
            side=side,
            device=device,
            features=np.zeros((len(sample), info.num_features), dtype=np.float32),
            digests=np.zeros((len(sample), 32), dtype=np.uint8),
            progress=no_progress(0, ""),
        )
    return round((time.perf_counter() - started) / len(sample) * len(source.labels()), 1)


def _round_seconds(config: RunConfig, shape: tuple[int, ...], num_classes: int, size: int) -> float:
    """Time of one client of middling size on made-up inputs, times clients and rounds."""
    rng = np.random.default_rng(0)
    if config.model.tuning == "head":
        inputs = rng.standard_normal((size, *shape)).astype(np.float32)
    else:
        inputs = rng.integers(0, 255, (size, *shape)).astype(np.uint8)
    labels = rng.integers(0, num_classes, size)
    rows = Shard(inputs, labels, inputs[:0], labels[:0], size)
    learner = Learner(config)
    arrays = initial_arrays(config, shape, num_classes)
    if config.private:
        plan_for(config, size)  # calibrated once a run, not once a client
    started = time.perf_counter()
    learner.train(arrays, rows, name="dry-run", server_round=1)
    return round((time.perf_counter() - started) * config.cohort_size * config.num_rounds, 1)


def _shortened(names: list[str]) -> str:
    return ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")


def _lines(facts: dict[str, Any]) -> list[str]:
    sizes = facts["client_sizes"]
    lines = [
        f"Data      {facts['images']} images of {len(facts['classes'])} classes: {_shortened(facts['classes'])}",
        f"Clients   {facts['config']['num-clients']}, holding {sizes['min']} to {sizes['max']} images to train on"
        + (f", about {facts['held_out']:.0%} of them held out" if facts["held_out"] else ""),
    ]
    if facts["plan"] is None:
        lines.append("Privacy   NOT PRIVATE: updates and exact counts leave every client")
    for which, plan in (facts["plan"] or {}).items():
        lines.append(
            f"Privacy   {which} client: noise multiplier {plan['noise_multiplier']:.4g}, sample rate "
            f"{plan['sample_rate']:.3f}, {plan['rounds_at_most']} x {plan['steps_a_round']} steps, epsilon "
            f"{plan['epsilon_whole_run']:.3f} at delta {plan['delta']:g} over the whole run"
        )
    seconds, disk = facts["seconds"], facts["disk_bytes"]
    lines.append(
        f"Time      about {seconds['backbone_pass_if_not_cached']:.0f} s for the backbone pass (0 if cached), "
        f"about {seconds['rounds']:.0f} s for all rounds on this machine"
    )
    lines.append(f"Disk      {disk['cache'] / 1e6:.1f} MB cache below {bract_home()}, under 1 MB of results")
    return [*lines, "Nothing was trained and nothing was written."]
