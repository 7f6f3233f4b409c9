"""A dry run that shows settings, privacy plan, time and disk."""

import json
import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from client.training.trainer import Trainer
from common.arrays import Arrays
from common.commands.early_checks import check_packages, policy_of
from common.config.loading import resolved
from common.config.schema import RunConfig
from common.data.partitioning.assignment import check_batch
from common.data.partitioning.client_sizes import client_sizes
from common.data.partitioning.privacy_units import check_unit
from common.data.partitioning.subgroups import subgroups_of
from common.data.scan import check_training_labels
from common.data.sources.registry import OpenSource, open_source
from common.inference.earlier_model import with_earlier_model
from common.messages.fields import Releases
from common.messages.rounded_update import update_bytes
from common.messages.secure_words import SecureWords
from common.models.backbone_info import backbone_info
from common.models.initialization import initial_arrays
from common.privacy.plan import PrivacyPlan
from common.privacy.plan_table import shares_facts
from common.privacy.policy import Policy
from common.system.console import busy, format_alone, format_epsilon
from common.system.paths import bract_home
from server.aggregation.strategies import build_strategy
from server.state.run_directory import check_free, fresh_path
from simulations.class_holders import exposed_before_a_scan
from simulations.estimates import backbone_seconds, input_shape, round_seconds


def show(facts: Mapping[str, Any], console: Console, *, as_json: bool) -> None:
    """Print the settings, the privacy plans and the estimates of a dry run.

    Args:
        facts: Result of `foresee`.
        console: Where to print.
        as_json: Print one JSON object instead of tables.
    """
    if as_json:
        console.print_json(json.dumps(facts))
        return
    table = Table(title="Settings (change any with --set KEY=VALUE)", title_justify="left", show_header=False)
    for key, value in facts["config"].items():
        table.add_row(key, "(not set)" if value == "" else escape(str(value)))
    console.print(table)
    for line in _lines(facts):
        console.print(line, highlight=False, markup=False)


@busy("Estimating privacy, time and disk")
def foresee(config: RunConfig, opener: OpenSource = open_source) -> dict[str, Any]:
    """Return the settings, privacy plans and estimates of a run, as plain values.

    `opener` opens the source. Images are counted and not decoded. The run itself finds the unreadable ones.

    Raises:
        BractError: The run itself would stop for the same reason.
    """
    build_strategy(config)
    check_free(Path(config.output_dir or fresh_path(config.data, config.model, config.privacy)), config.data)
    check_packages(config.model)
    policy = policy_of(config.privacy)
    policy.check_run(config)
    entries = opener(config.data).entries
    check_batch(config.training, entries.num_train)
    check_unit(config.privacy.unit, has_groups=entries.units is not None)
    subgroups_of(config.data, len(entries.labels))
    labels = entries.labels[: entries.num_train]
    check_training_labels(labels[labels >= 0], entries.classes)
    sizes_of = partial(client_sizes, entries, config.data, num_clients=config.num_clients, seed=config.seed)
    sizes, unused = sizes_of()
    backbone = None if config.model.backbone == "cnn" else backbone_info(config.backbone_spec)
    head = config.model.head if config.caches_features else None
    shape = input_shape(entries, backbone, image_size=config.data.image_size, head=head)
    trainer = Trainer(config, shape, entries.classes)
    pass_seconds = 0.0
    if backbone is not None and config.caches_features:
        from common.models.classifier import feature_network

        network = feature_network(config.model, config.backbone_spec)
        pass_seconds = backbone_seconds(network, backbone, entries, shape=shape, device=config.system.device)
    strict = config.privacy.strict_rows
    exposed = exposed_before_a_scan(entries, config.data, config.exact_sum, seed=config.seed, strict=strict)
    units = sizes_of(unit=config.privacy.unit)[0] if config.is_local_dp else sizes
    plans = {"every": config.plan(config.cohort_size)} if config.private and not config.is_local_dp else {}
    if config.is_local_dp:
        plans = {"smallest": config.plan(int(units.min())), "largest": config.plan(int(units.max()))}
        _check_plans(plans.values(), policy)
    arrays = with_earlier_model(
        config.model, initial_arrays(config, shape, entries.classes), input_shape=shape, classes=entries.classes
    )
    item = int(np.prod(shape)) * (4 if config.caches_features else 1)
    return {
        "config": resolved(config),
        "images": len(entries.labels),
        "images_unused": unused,
        "classes": list(entries.classes),
        "held_out": 0 if entries.num_train < len(entries.labels) else config.data.test_fraction,
        "client_sizes": {"min": int(sizes.min()), "median": float(np.median(sizes)), "max": int(sizes.max())},
        "exposed_rows": list(exposed),
        "model": _model(trainer, arrays, units.tolist(), plans.get("largest")),
        "plan": {which: _facts_of(plan) for which, plan in plans.items()} or None,
        "seconds": {
            "backbone_pass_if_not_cached": pass_seconds,
            "rounds": round_seconds(trainer, arrays, int(np.median(sizes))),
        },
        "disk_bytes": {"cache": item * len(entries.labels), "results_about": 400_000},
        "disk_free_bytes": shutil.disk_usage(bract_home().anchor or "/").free,
    }


def _check_plans(plans: Iterable[PrivacyPlan], policy: Policy) -> None:
    for plan in plans:
        policy.check_plan(plan)
        policy.check_spent(plan.spent(), plan.spent_alone())


def _facts_of(plan: PrivacyPlan) -> dict[str, Any]:
    return {
        "num_units": plan.num_units,
        "sample_rate": plan.sample_rate,
        "steps_a_round": plan.steps_per_round,
        "rounds_at_most": plan.num_rounds,
        "noise_multiplier": plan.noise_multiplier,
        "learning_rate": plan.learning_rate,
        "max_grad_norm": plan.max_grad_norm,
        "label_noise_stddev": plan.label_noise_stddev,
        "epsilon_whole_run": plan.epsilon(),
        "delta": plan.delta,
        **shares_facts(plan, plan.spent_alone()),
    }


def _labels(plan: Mapping[str, Any]) -> str:
    return "" if plan["label_noise_stddev"] is None else f", label counts with noise {plan['label_noise_stddev']:.4g}"


def _shares(plan: Mapping[str, Any]) -> str:
    """Return what the epsilon of noise in shares rests on."""
    if "noise_shares" not in plan:
        return ""
    alone = math.inf if plan["epsilon_alone"] is None else plan["epsilon_alone"]
    return (
        f"; noise added in shares at the clients: the epsilon holds while {plan['noise_shares']} clients of each sum "
        f"are honest, a unit's own client among them; if all others collude with the server: {format_alone(alone)}"
    )


def _rate(plan: Mapping[str, Any]) -> str:
    return "" if plan["learning_rate"] is None else f" of learning rate {plan['learning_rate']:g}"


def _model(trainer: Trainer, arrays: Arrays, sizes: Sequence[int], plan: PrivacyPlan | None) -> dict[str, Any]:
    config, releases = trainer.config, Releases.of(trainer.config)
    travelling = {name: array.shape for name, array in arrays.items() if name not in trainer.personal}
    sent = update_bytes(travelling, releases)
    if releases.secure:
        named = {str(number): size for number, size in enumerate(sizes)}
        words = SecureWords(travelling, len(trainer.classes), releases, named, config.num_clients, plan)
        sent = words.num_bytes(config.num_rounds)
    return {
        "tensors": len(arrays),
        "trained_parameters": int(sum(array.size for array in arrays.values())),
        "bytes_a_client_and_round": sent,
        "tuning": config.tuning,
    }


def _shortened(names: list[str]) -> str:
    return ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")


def _lines(facts: Mapping[str, Any]) -> list[str]:
    sizes = facts["client_sizes"]
    lines = [
        f"Data      {facts['images']} images of {len(facts['classes'])} classes: {_shortened(facts['classes'])}",
        f"Clients   {facts['config']['num-clients']}, holding {sizes['min']} to {sizes['max']} images to train on"
        + (f", about {facts['held_out']:.0%} of them held out" if facts["held_out"] else "")
        + (f"; {facts['images_unused']} training images unused" if facts["images_unused"] else ""),
        f"Model     {facts['config']['model.backbone']}, tuning {facts['model']['tuning']}: "
        f"{facts['model']['trained_parameters']:,} trained parameters, each client sends "
        f"{facts['model']['bytes_a_client_and_round'] / 1e6:.2f} MB a round",
    ]
    if facts["plan"] is None:
        secure = facts["config"]["privacy.aggregation"] == "secure"
        left = (
            "exact sums of updates and counts leave, and no client's own"
            if secure
            else ("updates and exact counts leave every client")
        )
        lines.append(f"Privacy   NOT PRIVATE: {left}")
    for which, plan in (facts["plan"] or {}).items():
        lines.append(
            f"Privacy   {which} client: noise multiplier {plan['noise_multiplier']:.4g}, sample rate "
            f"{plan['sample_rate']:.3f}, {plan['rounds_at_most']} x {plan['steps_a_round']} steps{_rate(plan)}"
            f"{_labels(plan)}, clip bound {plan['max_grad_norm']:g}, epsilon "
            f"{format_epsilon(plan['epsilon_whole_run'])} at delta {plan['delta']:g} over the whole run"
            f"{_shares(plan)}"
        )
    seconds, disk = facts["seconds"], facts["disk_bytes"]
    lines.append(
        f"Time      about {seconds['backbone_pass_if_not_cached']:.0f} s for the backbone pass (0 if cached), "
        f"about {seconds['rounds']:.0f} s for all rounds on this machine"
    )
    lines.append(f"Disk      {disk['cache'] / 1e6:.1f} MB cache below {bract_home()}, under 1 MB of results")
    lines += [f"Classes   {line}" for line in facts["exposed_rows"]]
    return [*lines, "Nothing was trained, and no results were written."]
