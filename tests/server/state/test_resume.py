"""What a fresh process gets back of a run, and which other run it refuses to go on as.

Drives `server.state.phase_timer`, `server.state.run_state`.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.config.loading import Scalar, resolved
from common.config.schema import RunConfig
from common.errors import ConfigError, FederationError
from common.messages.codec import Declaration, Evaluation
from common.metrics import Counts, NoisedCounts
from server.aggregation.strategies import build_strategy
from server.rounds.enrollment import EnrolledClient, Enrollment
from server.rounds.loop import RoundResult
from server.rounds.round_record import RoundRecord
from server.state import phase_timer as clock_module
from server.state import resume as resume_module
from server.state.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from server.state.phase_timer import Clock
from server.state.resume import checkpoint_of, match_clients, mismatched_clients, restore
from server.state.resume import open_checkpoint as open_at
from server.state.run_state import RunState

MakeConfig = Callable[..., RunConfig]
Make = Callable[..., RunState]
SETTINGS: dict[str, Scalar] = {
    "privacy.mechanism": "none",
    "num-clients": 2,
    "num-rounds": 9,
    "strategy.name": "FedAdam",
    "stopping.keep": "best",
    "stopping.patience": 4,
}
DECLARED = {name: Declaration(name, 10, ("a", "b"), (8, 8, 1), "cafe") for name in "xy"}


def outcome_of(config: RunConfig, declared: dict[str, Declaration] = DECLARED, first_node: int = 2) -> RunState:
    clients = {name: EnrolledClient(one, at) for at, (name, one) in enumerate(declared.items(), start=first_node)}
    names = list(clients)
    return RunState(config, "ab12", clients, {}, [names] * 9, {"w": np.zeros(2, dtype=np.float32)})


def result(number: int, right: int, loss: float = 1 / 3) -> RoundResult:
    counts = Counts(np.array([[right, 10 - right], [0, 0]]), loss)
    record = RoundRecord(
        server_round=number,
        num_clients=2,
        failures={"y": "DATA"},
        counts=counts,
        simulation_only=False,
        seconds=0.1,
        bytes_up=1.0,
        bytes_down=2.0,
        personal=Counts(counts.confusion.T.copy(), float("nan")),
        noised=None,
    )
    return RoundResult({"w": np.full(2, number / 3, dtype=np.float32)}, record)


@pytest.fixture
def config(make_config: MakeConfig, tmp_path: Path) -> RunConfig:
    return make_config(SETTINGS | {"output-dir": str(tmp_path), "resume": True})


@pytest.fixture
def stopped(config: RunConfig) -> RunState:
    """After four rounds; the third judged the best model, which is the one after round 2."""
    state = outcome_of(config)
    for number, right in enumerate((9, 3, 8, 5), start=1):
        state.add(result(number, right))
    return state


def reloaded(state: RunState, folder: Path, clock: Clock | None = None) -> Checkpoint:
    save_checkpoint(folder, checkpoint_of(state, build_strategy(state.config), clock or Clock()))
    found = load_checkpoint(folder)
    assert found is not None
    return found


def test_restore_gives_back_rounds_models_counts_and_choice(
    stopped: RunState, config: RunConfig, tmp_path: Path
) -> None:
    fresh = outcome_of(config)

    restore(reloaded(stopped, tmp_path), fresh, build_strategy(config), Clock())

    assert fresh.rounds == stopped.rounds
    assert fresh.arrays["w"].tobytes() == stopped.arrays["w"].tobytes()
    assert fresh.arrays["w"].dtype == np.float32
    for found, expected in (
        (fresh.latest.counts, stopped.latest.counts),
        (fresh.latest.personal, stopped.latest.personal),
    ):
        assert found is not None
        assert expected is not None
        assert found.confusion.dtype == np.int64
        assert np.array_equal(found.confusion, expected.confusion)
        assert np.array_equal(found.loss_sum, expected.loss_sum, equal_nan=True)
    assert (
        fresh.early_stopping.best,
        fresh.early_stopping.best_round,
        fresh.early_stopping.rounds_without_improvement,
    ) == (0.8, 2, 1)
    assert np.array_equal(fresh.final["w"], np.full(2, 2 / 3, dtype=np.float32))
    assert fresh.final_round == 2


def test_restore_goes_on_as_the_stopped_run_would_have(stopped: RunState, config: RunConfig, tmp_path: Path) -> None:
    fresh = outcome_of(config)
    restore(reloaded(stopped, tmp_path), fresh, build_strategy(config), Clock())

    for number, right in ((5, 8), (6, 7), (7, 7)):  # none is better: with one before, these are patience's four
        for state in (stopped, fresh):
            state.add(result(number, right))
        assert fresh.early == stopped.early == (number == 7)

    assert fresh.rounds == stopped.rounds
    assert np.array_equal(fresh.final["w"], stopped.final["w"])


def test_restore_says_that_a_run_had_stopped_early(stopped: RunState, config: RunConfig, tmp_path: Path) -> None:
    stopped.early = True
    fresh = outcome_of(config)

    restore(reloaded(stopped, tmp_path), fresh, build_strategy(config), Clock())

    assert fresh.early is True


def test_restore_gives_back_noised_counts(stopped: RunState, config: RunConfig, tmp_path: Path) -> None:
    stopped.latest = Evaluation(noised=NoisedCounts(np.array([31, -4], dtype=np.int64), 2))
    fresh = outcome_of(config)

    restore(reloaded(stopped, tmp_path), fresh, build_strategy(config), Clock())

    assert fresh.latest.noised is not None
    assert fresh.latest.noised.cells.tolist() == [31, -4]
    assert fresh.latest.noised.num_clients == 2
    assert fresh.latest.noised.cells.dtype == np.int64


def test_restore_gives_a_strategy_its_moments_to_the_bit(stopped: RunState, config: RunConfig, tmp_path: Path) -> None:
    strategy: Any = build_strategy(config)
    strategy.m_t, strategy.v_t = {"w": np.array([1 / 3, 0.0])}, {"w": np.array(2 / 3)}
    save_checkpoint(tmp_path, checkpoint_of(stopped, strategy, Clock()))
    checkpoint, fresh = load_checkpoint(tmp_path), build_strategy(config)
    assert checkpoint is not None

    restore(checkpoint, outcome_of(config), fresh, Clock())

    for name in ("m_t", "v_t"):
        found, expected = getattr(fresh, name)["w"], getattr(strategy, name)["w"]
        assert (found.tobytes(), found.dtype, found.shape) == (expected.tobytes(), expected.dtype, expected.shape)


def test_restore_refuses_the_state_of_another_strategy(
    stopped: RunState, config: RunConfig, make_config: MakeConfig, tmp_path: Path
) -> None:
    other = build_strategy(make_config(SETTINGS | {"strategy.name": "FedAvg"}))

    with pytest.raises(ConfigError, match="is not FedAvg"):
        restore(reloaded(stopped, tmp_path), outcome_of(config), other, Clock())


class Hands:
    """A clock's hands, moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


def test_restore_counts_the_seconds_of_rounds_that_an_earlier_process_ran(
    stopped: RunState, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hands = Hands()
    monkeypatch.setattr(clock_module, "time", hands)
    clock = Clock()
    clock.add("features", 2.0)
    with clock.phase("rounds"):
        hands.now += 5.0  # the checkpoint is written inside, after each round
        checkpoint = reloaded(stopped, tmp_path, clock)
    hands.now += 1000.0
    fresh = Clock()
    restore(checkpoint, outcome_of(config), build_strategy(config), fresh)

    with fresh.phase("rounds"):
        hands.now += 3.0

    assert fresh.seconds() == {"features": 2.0, "rounds": 8.0, "total": 8.0}


def test_checkpoint_holds_no_key_no_stream_and_no_reply(stopped: RunState, tmp_path: Path) -> None:
    found = reloaded(stopped, tmp_path)

    assert set(found.facts) == {
        "run",
        "settings",
        "clients",
        "joined",
        "sampler",
        "agreed",
        "bundles",
        "rounds",
        "early",
        "status",
        "best",
        "last",
        "last_personal",
        "last_noised",
        "strategy",
        "seconds",
    }
    assert (set(found.model), set(found.best), set(found.strategy)) == ({"w"}, {"w"}, set())
    assert found.facts["clients"] == {"x": 10, "y": 10}
    assert found.facts["agreed"] == {"classes": ["a", "b"], "input_shape": [8, 8, 1], "backbone_hash": "cafe"}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", 1),
        ("num-rounds", 10),
        ("training.learning-rate", 0.5),
        ("privacy.mechanism", "dp-sgd"),
        ("stopping.patience", 5),
        ("strategy.beta-1", 0.5),
        ("system.ledger", "durable"),
        ("privacy.policy", "mine.toml"),
        ("data.bit-depth", 12),
        ("data.gray-window", "0,900"),
        ("data.background", "white"),
    ],
)
def test_open_checkpoint_refuses_other_settings(
    stopped: RunState, make_config: MakeConfig, tmp_path: Path, key: str, value: Scalar
) -> None:
    reloaded(stopped, tmp_path)
    other = make_config(SETTINGS | {"output-dir": str(tmp_path), key: value})

    with pytest.raises(ConfigError, match="settings are not those"):
        open_checkpoint(other)


def test_open_checkpoint_goes_on_with_a_run_from_before_a_setting(
    stopped: RunState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reloaded(stopped, tmp_path)
    settings = resolved(stopped.config) | {"output-dir": str(tmp_path), "stopping.new": 0}

    with pytest.raises(ConfigError, match="settings are not those"):
        open_at(tmp_path, settings)
    monkeypatch.setitem(resume_module._ADDED, "stopping.new", 0)
    assert open_at(tmp_path, settings) is not None
    with pytest.raises(ConfigError, match="settings are not those"):
        open_at(tmp_path, settings | {"stopping.new": 1})


@pytest.mark.parametrize(
    ("key", "value"), [("resume", False), ("system.device", "cpu"), ("system.physical-batch-size", 3)]
)
def test_open_checkpoint_lets_speed_and_place_differ(
    stopped: RunState, make_config: MakeConfig, tmp_path: Path, key: str, value: Scalar
) -> None:
    moved = tmp_path / "moved"
    moved.mkdir()
    reloaded(stopped, moved)

    found = open_checkpoint(make_config(SETTINGS | {"output-dir": str(moved), key: value}))

    assert found is not None
    assert found.facts["run"] == "ab12"


def test_open_checkpoint_refuses_a_complete_run(stopped: RunState, config: RunConfig, tmp_path: Path) -> None:
    stopped.finish()
    reloaded(stopped, tmp_path)

    with pytest.raises(ConfigError, match="complete"):
        open_checkpoint(config)


def test_open_checkpoint_refuses_a_run_whose_checkpoint_is_gone(config: RunConfig, tmp_path: Path) -> None:
    assert open_checkpoint(config) is None

    (tmp_path / "rounds.jsonl").write_text('{"round": 1}\n')

    with pytest.raises(ConfigError, match="is missing"):
        open_checkpoint(config)


def open_checkpoint(config: RunConfig) -> Checkpoint | None:
    return open_at(Path(config.output_dir), resolved(config))


def meeting_of(declared: dict[str, Declaration], first_node: int = 2) -> Enrollment:
    return Enrollment(
        {name: EnrolledClient(one, at) for at, (name, one) in enumerate(declared.items(), start=first_node)}
    )


def test_reunite_lets_the_same_clients_come_back_at_other_nodes(stopped: RunState, tmp_path: Path) -> None:
    came = meeting_of(dict(reversed(DECLARED.items())), first_node=77)

    clients = match_clients(reloaded(stopped, tmp_path), came, min_clients=None)

    assert clients == {"x": EnrolledClient(DECLARED["x"], 78), "y": EnrolledClient(DECLARED["y"], 77)}
    assert list(clients) == ["x", "y"]


CHANGED: dict[str, dict[str, Any]] = {
    "size": {"num_units": 11},
    "classes": {"classes": ("b", "a")},
    "shape": {"input_shape": (8, 8, 3)},
    "backbone": {"backbone_hash": "beef"},
}


@pytest.mark.parametrize("what", CHANGED)
def test_reunite_refuses_a_client_that_declares_something_else(stopped: RunState, tmp_path: Path, what: str) -> None:
    came = meeting_of(DECLARED | {"y": replace(DECLARED["y"], **CHANGED[what])})

    with pytest.raises(FederationError, match=r"1 clients .*\(y\)"):
        match_clients(reloaded(stopped, tmp_path), came, min_clients=None)


@pytest.mark.parametrize("what", CHANGED)
def test_reunite_leaves_a_client_out_that_declares_something_else_where_others_are_enough(
    stopped: RunState, tmp_path: Path, what: str
) -> None:
    checkpoint = reloaded(stopped, tmp_path)
    came = meeting_of(DECLARED | {"y": replace(DECLARED["y"], **CHANGED[what])})

    clients = match_clients(checkpoint, came, min_clients=1)

    assert clients == {"x": EnrolledClient(DECLARED["x"], 2), "y": EnrolledClient(DECLARED["y"], None)}
    assert mismatched_clients(checkpoint, came) == {"client y": "DISAGREES"}
    with pytest.raises(FederationError, match="cannot be resumed yet: 1 "):
        match_clients(checkpoint, came, min_clients=2)


def test_reunite_refuses_missing_and_new_clients_where_all_must_be_there(stopped: RunState, tmp_path: Path) -> None:
    checkpoint = reloaded(stopped, tmp_path)
    fewer = meeting_of({"x": DECLARED["x"]})
    others = meeting_of({"x": DECLARED["x"], "z": replace(DECLARED["y"], name="z")})

    for came, named in ((fewer, r"\(y\)"), (others, r"\(y, z\)")):
        with pytest.raises(FederationError, match=named):
            match_clients(checkpoint, came, min_clients=None)


def test_reunite_goes_on_without_clients_that_are_away_and_with_new_ones(stopped: RunState, tmp_path: Path) -> None:
    new = replace(DECLARED["y"], name="z", num_units=33)

    clients = match_clients(reloaded(stopped, tmp_path), meeting_of({"x": DECLARED["x"], "z": new}), min_clients=1)

    assert clients == {
        "x": EnrolledClient(DECLARED["x"], 2),
        "y": EnrolledClient(DECLARED["y"], None),
        "z": EnrolledClient(new, 3),
    }


def test_reunite_waits_for_enough_clients_of_before(stopped: RunState, tmp_path: Path) -> None:
    new = replace(DECLARED["y"], name="z")

    with pytest.raises(FederationError, match=r"cannot be resumed yet: 1 .* min-clients=2"):
        match_clients(reloaded(stopped, tmp_path), meeting_of({"x": DECLARED["x"], "z": new}), min_clients=2)


@pytest.mark.parametrize(
    ("key", "as_before", "other"),
    [
        ("evaluation.every", 1, 2),
        ("model.cnn-depth", 2, ""),
        ("training.update-bits", 32, 8),
        ("training.step-rule", 1, 2),
    ],
)
def test_a_run_from_before_a_setting_has_the_digest_of_the_value_that_does_the_same(
    stopped: RunState, key: str, as_before: Scalar, other: Scalar
) -> None:
    settings = resolved(stopped.config)
    before = {name: value for name, value in settings.items() if name != key}

    assert resume_module._digest(settings | {key: as_before}) == resume_module._digest(before)
    assert resume_module._digest(settings | {key: other}) != resume_module._digest(before)
