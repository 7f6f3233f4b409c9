"""Go on with a run: give a fresh process what its last checkpoint holds."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from flwr.serverapp.strategy import Strategy

from common.config.loading import resolved
from common.config.schema import RunConfig
from common.errors import ConfigError, FederationError
from common.messages.codec import Declaration
from common.metrics import Counts, NoisedCounts
from server.aggregation.strategy_state import read_state, write_state
from server.rounds.enrollment import DISAGREES, Client, Meeting
from server.state.checkpoint import Checkpoint, load_checkpoint
from server.state.phase_timer import Clock
from server.state.run_state import RunState

# What may differ between the processes of one run: where it runs, not what it does.
_FREE = ("resume", "output-dir", "system.bundle", "system.device", "system.physical-batch-size")


def checkpoint_of(state: RunState, strategy: Strategy, clock: Clock) -> Checkpoint:
    """What a fresh process needs to go on after the last complete round."""
    tensors, kinds = read_state(strategy)
    early_stopping = state.early_stopping
    facts = {
        "run": state.run_id,
        "settings": _settings(state.config),
        "clients": {name: client.declaration.num_units for name, client in state.clients.items()},
        "joined": dict(state.joined),
        "bundles": dict(state.bundles),
        "agreed": _agreed(next(iter(state.clients.values())).declaration),
        "rounds": state.rounds,
        "early": state.early,
        "status": state.status,
        "best": {
            "accuracy": early_stopping.best,
            "round": early_stopping.best_round,
            "waited": early_stopping.rounds_without_improvement,
        },
        "last": _plain(state.last),
        "last_personal": _plain(state.last_personal),
        "last_noised": None if state.last_noised is None else _plain_noised(state.last_noised),
        "strategy": kinds,
        "seconds": clock.seconds(),
    }
    return Checkpoint(facts, state.arrays, early_stopping.arrays, tensors)


def restore(checkpoint: Checkpoint, state: RunState, strategy: Strategy, clock: Clock) -> None:
    """Bring a run that has just met its clients to where the checkpoint was taken.

    Args:
        checkpoint: See `checkpoint_of`.
        state: Fresh, of the same run; changed.
        strategy: Fresh; changed.
        clock: Counts the earlier seconds too from now on.

    Raises:
        ConfigError: The strategy is another one.
    """
    facts = checkpoint.facts
    write_state(strategy, checkpoint.strategy, facts["strategy"])
    state.arrays = {name: checkpoint.model[name] for name in checkpoint.model}
    state.rounds, state.early = list(facts["rounds"]), bool(facts["early"])
    state.last, state.last_personal = _counts(facts["last"]), _counts(facts["last_personal"])
    noised = facts["last_noised"]
    state.last_noised = None if noised is None else NoisedCounts(np.array(noised["cells"]), noised["clients"])
    best, early_stopping = facts["best"], state.early_stopping
    early_stopping.best, early_stopping.best_round, early_stopping.rounds_without_improvement = (
        best["accuracy"],
        best["round"],
        best["waited"],
    )
    early_stopping.arrays = dict(checkpoint.best)
    state.earlier_bundles = dict(facts["bundles"])
    clock.go_on_from(facts["seconds"])


def open_checkpoint(config: RunConfig) -> Checkpoint | None:
    """Where a run stopped; None if that was before its first checkpoint.

    To be asked before any client is: a client that meets the run charges its plan.

    Args:
        config: With `resume`; `output_dir` is the run's folder.

    Raises:
        ConfigError: The run is complete, its checkpoint is damaged or gone, or settings that change results differ.
    """
    folder = Path(config.output_dir)
    checkpoint = load_checkpoint(folder)
    if checkpoint is None:
        if (folder / "rounds.jsonl").exists():  # which comes after the first checkpoint
            raise ConfigError(f"--resume {folder}: its checkpoint is gone; start a new run instead")
        return None
    if checkpoint.facts["status"] == "complete":
        raise ConfigError("this run is complete: there is nothing to resume")
    if checkpoint.facts["settings"] != _settings(config):
        raise ConfigError("--resume: the settings are not those that the run was started with; start a new run instead")
    return checkpoint


def match_clients(checkpoint: Checkpoint, enrollment: Meeting, *, least: int | None) -> dict[str, Client]:
    """The clients of a run that goes on, each where it is now; those that are away are asked when they are back.

    Args:
        checkpoint: Where the run stopped.
        enrollment: Who came.
        least: How many clients of before are enough; None where all must be there, and nobody else.

    Returns:
        Clients of before and new ones, by name.

    Raises:
        FederationError: Too few came, or one declares something else than before.
    """
    facts = checkpoint.facts
    before = {name: _declaration(name, units, facts) for name, units in facts["clients"].items()}
    changed = _changed(checkpoint, enrollment)
    now = {name: client for name, client in enrollment.clients.items() if name not in changed}
    if least is None:
        changed |= set(before) ^ set(now)
    if changed and least is None:
        raise FederationError(
            f"the run cannot be resumed: {len(changed)} clients are missing, new or declare something else than before "
            f"({', '.join(sorted(changed)[:5])})"
        )
    if least is not None and len(set(before) & set(now)) < least:
        raise FederationError(
            f"the run cannot be resumed yet: {len(set(before) & set(now))} of its clients are there, and "
            f"min-clients={least} are needed"
        )
    away = {name: Client(declaration, None) for name, declaration in before.items()}
    return dict(sorted((away | now).items()))


def mismatched_clients(checkpoint: Checkpoint, enrollment: Meeting) -> dict[str, str]:
    """Why clients that came do not take part in a run that goes on: they declare something else than it is about.

    Args:
        checkpoint: Where the run stopped.
        enrollment: Who came.
    """
    return {f"client {name}": DISAGREES for name in sorted(_changed(checkpoint, enrollment))}


def _changed(checkpoint: Checkpoint, enrollment: Meeting) -> set[str]:
    facts, now = checkpoint.facts, enrollment.clients
    changed = {
        name for name, units in facts["clients"].items() if name in now and now[name].declaration.num_units != units
    }
    return changed | {name for name in now if _agreed(now[name].declaration) != facts["agreed"]}


def _agreed(declaration: Declaration) -> dict[str, Any]:
    """What all clients of a run declare alike."""
    return {
        "classes": list(declaration.classes),
        "input_shape": list(declaration.input_shape),
        "backbone_hash": declaration.backbone_hash,
    }


def _declaration(name: str, num_units: int, facts: dict[str, Any]) -> Declaration:
    agreed = facts["agreed"]
    return Declaration(name, num_units, tuple(agreed["classes"]), tuple(agreed["input_shape"]), agreed["backbone_hash"])


def _settings(config: RunConfig) -> str:
    fixed = {key: value for key, value in resolved(config).items() if key not in _FREE}
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()


def _plain(counts: Counts | None) -> dict[str, Any] | None:
    if counts is None:
        return None
    loss = counts.loss_sum
    return {"confusion": counts.confusion.tolist(), "loss_sum": loss if np.isfinite(loss) else None}


def _counts(found: dict[str, Any] | None) -> Counts | None:
    if found is None:
        return None
    loss = float("nan") if found["loss_sum"] is None else found["loss_sum"]
    return Counts(np.array(found["confusion"], dtype=np.int64), loss)


def _plain_noised(noised: NoisedCounts) -> dict[str, Any]:
    return {"cells": noised.cells.tolist(), "clients": noised.num_clients}
