"""Resume of a run from its last checkpoint in a fresh process."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flwr.serverapp.strategy import Strategy

from common.config.loading import Scalar, load_file, resolved
from common.errors import ConfigError, FederationError
from common.messages.codec import Declaration, Evaluation
from common.metrics import Counts, NoisedCounts
from server.aggregation.strategy_state import read_state, write_state
from server.rounds.enrollment import DISAGREES, EnrolledClient, Enrollment
from server.state.checkpoint import Checkpoint, load_checkpoint
from server.state.phase_timer import Clock
from server.state.run_state import RunState

# Settings that may differ between the processes of one run: they say where it runs, not what it computes.
_FREE = ("resume", "output-dir", "system.bundle", "system.device", "system.physical-batch-size")
# Settings that say where the images are. A run's own record of them finds whether they changed. Checkpoints of before
# that record have these settings in their digest.
_PLACE = ("data.source", "data.path")
# Settings that came after 0.1.0 -> the value that computes what a run without the setting did.
_ADDED: dict[str, Scalar] = {
    "data.background": "keep",
    "data.bit-depth": 16,
    "data.gray-window": "",
    "data.subgroup-column": "",
    "data.subgroups": "",
    "data.validation": "drop",
    "evaluation.every": 1,
    "evaluation.folder": "",
    "evaluation.folder-every": 1,
    "model.cnn-depth": 2,
    "model.initial": "",
    "privacy.aggregation": "plain",
    "privacy.closing": "matrix",
    "privacy.secure-colluding": 1,
    "privacy.secure-honest": "",
    "privacy.strict-rows": False,
    "stopping.max-epsilon": "",
    "training.class-weights": "",
    "training.gradients": "auto",
    "training.method": "",
    "training.statistics": "second-moments",
    "training.step-rule": 1,
    "training.update-bits": 32,
}
# Settings whose value 0.1.0 wrote in another way -> today's value and the one that stands for it in a digest.
_REWRITTEN: dict[str, tuple[Scalar, Scalar]] = {"min-clients": (0, "")}
_MOMENTUM = "momentum"


def checkpoint_of(state: RunState, strategy: Strategy, clock: Clock) -> Checkpoint:
    """Return all that a fresh process needs to continue after the last complete round."""
    tensors, layout = read_state(strategy)
    early_stopping, latest = state.early_stopping, state.latest
    facts = {
        "run": state.run_id,
        "settings": _digest(resolved(state.config)),
        "clients": state.roll.clients,
        "joined": dict(state.joined),
        "bundles": state.roll.bundles,
        "sampler": state.sampler,
        "agreed": _agreed(next(iter(state.clients.values())).declaration),
        "rounds": state.rounds,
        "early": state.early,
        "status": state.status,
        "best": {
            "accuracy": early_stopping.best,
            "round": early_stopping.best_round,
            "waited": early_stopping.rounds_without_improvement,
        },
        "last": _plain(latest.counts),
        "last_personal": _plain(latest.personal),
        "last_noised": None if latest.noised is None else _plain_noised(latest.noised),
        "strategy": layout,
        "seconds": clock.seconds(),
    }
    steps = {_MOMENTUM: state.momentum} if state.momentum.size else {}
    return Checkpoint(facts, state.arrays, early_stopping.arrays, tensors, steps, state.roll)


def restore(checkpoint: Checkpoint, state: RunState, strategy: Strategy, clock: Clock) -> None:
    """Restore the state of a checkpoint after the clients have been enrolled.

    State and strategy must be fresh, and the checkpoint of the same run. The clock of this process then counts the
    earlier seconds too.

    Raises:
        ConfigError: The checkpoint's strategy is another one.
    """
    facts = checkpoint.facts
    write_state(strategy, checkpoint.strategy, facts["strategy"])
    state.arrays = dict(checkpoint.model)
    state.momentum = checkpoint.steps.get(_MOMENTUM, state.momentum)
    state.rounds, state.early = list(facts["rounds"]), bool(facts["early"])
    noised = facts["last_noised"]
    state.latest = Evaluation(
        _counts(facts["last"]),
        _counts(facts["last_personal"]),
        noised=None if noised is None else NoisedCounts(np.array(noised["cells"]), noised["clients"]),
    )
    best, early_stopping = facts["best"], state.early_stopping
    early_stopping.best, early_stopping.best_round = best["accuracy"], best["round"]
    early_stopping.rounds_without_improvement = best["waited"]
    early_stopping.arrays = dict(checkpoint.best)
    state.earlier_bundles = dict(facts["bundles"])
    state.forget_roll()
    clock.continue_from(facts["seconds"])


def open_checkpoint(folder: Path, settings: Mapping[str, Scalar]) -> Checkpoint | None:
    """Return the last checkpoint of a run that is not complete.

    None if the run stopped before its first checkpoint. Call it before any client is asked, because a client that takes
    part in enrollment is charged its plan. The settings are flat and complete, see `resolved`.

    Raises:
        ConfigError: The run is complete, its checkpoint is damaged or missing, or settings that change results differ.
    """
    checkpoint = load_checkpoint(folder)
    if checkpoint is None:
        # rounds.jsonl is written after the first checkpoint, so with it there must be a checkpoint.
        if (folder / "rounds.jsonl").exists():
            raise ConfigError(f"--resume {folder}: its checkpoint is missing; start a new run instead")
        return None
    if checkpoint.facts["status"] == "complete":
        raise ConfigError("this run is complete: there is nothing to resume")
    if checkpoint.facts["settings"] not in (_digest(settings), _digest_with_place(folder, settings)):
        raise ConfigError("--resume: the settings are not those that the run was started with; start a new run instead")
    return checkpoint


def match_clients(
    checkpoint: Checkpoint, enrollment: Enrollment, *, min_clients: int | None
) -> dict[str, EnrolledClient]:
    """Return the clients of a resumed run, each at its present node.

    A client that is away has no node, and is asked again when it is back. `min_clients` earlier clients are enough;
    None where exactly the earlier ones must be connected.

    Raises:
        FederationError: Too few clients are connected, or one declares something else than before.
    """
    facts = checkpoint.facts
    before = {name: _declaration(name, units, facts) for name, units in facts["clients"].items()}
    changed = _changed(checkpoint, enrollment)
    now = {name: client for name, client in enrollment.clients.items() if name not in changed}
    if min_clients is None:
        changed |= set(before) ^ set(now)
        if changed:
            raise FederationError(
                f"the run cannot be resumed: {len(changed)} clients are missing, new or declare something else than "
                f"before ({', '.join(sorted(changed)[:5])})"
            )
    elif len(set(before) & set(now)) < min_clients:
        raise FederationError(
            f"the run cannot be resumed yet: {len(set(before) & set(now))} of its clients are there, and "
            f"min-clients={min_clients} are needed"
        )
    away = {name: EnrolledClient(declaration, None) for name, declaration in before.items()}
    return dict(sorted((away | now).items()))


def mismatched_clients(checkpoint: Checkpoint, enrollment: Enrollment) -> dict[str, str]:
    """Return refusals for the connected clients whose declaration does not fit a resumed run."""
    return {f"client {name}": DISAGREES for name in sorted(_changed(checkpoint, enrollment))}


def _changed(checkpoint: Checkpoint, enrollment: Enrollment) -> set[str]:
    facts, now = checkpoint.facts, enrollment.clients
    changed = {
        name for name, units in facts["clients"].items() if name in now and now[name].declaration.num_units != units
    }
    return changed | {name for name in now if _agreed(now[name].declaration) != facts["agreed"]}


def _agreed(declaration: Declaration) -> dict[str, Any]:
    """Return the constants in which all clients of a run are equal."""
    return {
        "classes": list(declaration.classes),
        "input_shape": list(declaration.input_shape),
        "backbone_hash": declaration.backbone_hash,
    }


def _declaration(name: str, num_units: int, facts: dict[str, Any]) -> Declaration:
    agreed = facts["agreed"]
    return Declaration(name, num_units, tuple(agreed["classes"]), tuple(agreed["input_shape"]), agreed["backbone_hash"])


def _digest_with_place(folder: Path, settings: Mapping[str, Scalar]) -> str:
    """Return the digest by the place of the images when the run began."""
    file = folder / "config.toml"
    begun = load_file(file) if file.is_file() else settings
    return _digest({**settings, **{key: begun[key] for key in _PLACE if key in begun}}, with_place=True)


def _digest(settings: Mapping[str, Scalar], *, with_place: bool = False) -> str:
    free = _FREE if with_place else (*_FREE, *_PLACE)
    added = {key for key, value in _ADDED.items() if settings.get(key) == value}
    fixed = {key: value for key, value in settings.items() if key not in free and key not in added}
    fixed |= {key: before for key, (now, before) in _REWRITTEN.items() if fixed.get(key) == now}
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()


def _plain(counts: Counts | None) -> dict[str, Any] | None:
    if counts is None:
        return None
    loss = counts.loss_sum
    # JSON has no numbers that are not finite.
    return {"confusion": counts.confusion.tolist(), "loss_sum": loss if np.isfinite(loss) else None}


def _counts(stored: dict[str, Any] | None) -> Counts | None:
    if stored is None:
        return None
    loss = float("nan") if stored["loss_sum"] is None else stored["loss_sum"]
    return Counts(np.array(stored["confusion"], dtype=np.int64), loss)


def _plain_noised(noised: NoisedCounts) -> dict[str, Any]:
    return {"cells": noised.cells.tolist(), "clients": noised.num_clients}
