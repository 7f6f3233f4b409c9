"""A run is resumed as itself: same settings, same state, same clients.

Drives `server.state.resume`.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from common.config.loading import resolved
from common.config.schema import RunConfig
from common.errors import ConfigError, FederationError
from server.aggregation.strategies import build_strategy
from server.rounds.enrollment import Enrollment
from server.state.checkpoint import save_checkpoint
from server.state.phase_timer import Clock
from server.state.resume import checkpoint_of, match_clients, mismatched_clients, open_checkpoint, restore
from tests.server.state.test_resume import outcome_of, result


def test_a_resumed_run_is_the_same_run_with_the_same_clients(
    make_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    settings = {"num-clients": 2, "num-rounds": 9, "privacy.noise-multiplier": 2.0, "privacy.metrics": "none"}
    config = make_config(settings | {"output-dir": str(tmp_path)})
    state = outcome_of(config)
    state.add(result(1, 5))
    checkpoint = checkpoint_of(state, build_strategy(config), Clock())
    save_checkpoint(tmp_path, checkpoint)

    # The same settings, but for where it runs.
    assert open_checkpoint(tmp_path, resolved(config) | {"system.device": "cpu"}) is not None
    for other in ({"privacy.noise-multiplier": 1.0}, {"privacy.delta": 1e-4}, {"num-rounds": 10}, {"seed": 1}):
        with pytest.raises(ConfigError, match="the settings are not those"):
            open_checkpoint(tmp_path, resolved(config) | other)
    begun = checkpoint.facts["settings"]
    twin = begun[:-1] + ("0" if begun[-1] != "0" else "1")
    save_checkpoint(tmp_path, replace(checkpoint, facts=checkpoint.facts | {"settings": twin}))
    with pytest.raises(ConfigError, match="the settings are not those"):
        open_checkpoint(tmp_path, resolved(config))
    save_checkpoint(tmp_path, replace(checkpoint, facts=checkpoint.facts | {"status": "complete"}))
    with pytest.raises(ConfigError, match="this run is complete"):
        open_checkpoint(tmp_path, resolved(config))
    (tmp_path / "checkpoint.safetensors").unlink()
    assert open_checkpoint(tmp_path, resolved(config)) is None
    (tmp_path / "rounds.jsonl").touch()
    with pytest.raises(ConfigError, match="its checkpoint is missing"):
        open_checkpoint(tmp_path, resolved(config))

    # The same clients, each as it was.
    assert set(match_clients(checkpoint, Enrollment(state.clients), min_clients=None)) == {"x", "y"}
    known = state.clients["y"]
    for changed in ({"num_units": 11}, {"backbone_hash": "beef"}, {"classes": ("b", "a")}, {"input_shape": (9, 9, 1)}):
        other_client = replace(known, declaration=replace(known.declaration, **changed))  # type: ignore[arg-type]
        came = Enrollment({**state.clients, "y": other_client})
        with pytest.raises(FederationError, match="cannot be resumed"):
            match_clients(checkpoint, came, min_clients=None)
        assert set(mismatched_clients(checkpoint, came)) == {"client y"}


@pytest.mark.parametrize("momentum", [np.array([1 / 3, -2.0]), np.zeros(0)], ids=["steps", "none"])
def test_a_resumed_run_has_the_momentum_of_before(
    make_config: Callable[..., RunConfig], tmp_path: Path, momentum: np.ndarray
) -> None:
    """Empty in a run without such steps, and after a checkpoint of before that lacks it."""
    config = make_config({"num-clients": 2, "num-rounds": 9, "output-dir": str(tmp_path)})
    state, fresh = outcome_of(config), outcome_of(config)
    state.momentum = momentum
    save_checkpoint(tmp_path, checkpoint_of(state, build_strategy(config), Clock()))
    checkpoint = open_checkpoint(tmp_path, resolved(config))
    assert checkpoint is not None

    restore(checkpoint, fresh, build_strategy(config), Clock())

    assert fresh.momentum.tobytes() == momentum.tobytes()
