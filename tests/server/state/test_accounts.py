"""The accounts of a run hold every client, with the whole plan wherever the run did not go to its planned end.

Drives `server.state.run_state`, `server.state.privacy_spent`, `server.reporting.artifacts`.
"""

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.config.schema import RunConfig
from common.messages.codec import Declaration
from common.privacy.accounting import Spent
from common.privacy.plan import PrivacyPlan
from server.reporting.artifacts import save_statement
from server.rounds.enrollment import EnrolledClient
from server.state import privacy_spent
from server.state.privacy_spent import (
    ClientPrivacyCost,
    RunPrivacyCost,
    account,
    charged_rounds,
    epsilon_so_far,
    rounds_of,
)
from server.state.run_directory import RunDirectory
from server.state.run_state import RunState

MakeConfig = Callable[..., RunConfig]
ROUNDS = 4


def enrolled(name: str, node: int, num_units: int = 100) -> EnrolledClient:
    return EnrolledClient(Declaration(name, num_units, ("a", "b"), (8,), "cafe"), node)


def state_of(make_config: MakeConfig, cohorts: list[list[str]], **more: Any) -> RunState:
    """A run of three clients, of which two have come, with two in each round."""
    config = make_config(
        {"privacy.noise-multiplier": 4.0, "num-rounds": ROUNDS, "num-clients": 3, "privacy.metrics": "none"} | more
    )
    clients = {name: enrolled(name, node) for node, name in enumerate("xy", start=2)}
    state = RunState(config, "ab12", clients, {}, cohorts, {"w": np.zeros(2, dtype=np.float32)})
    state.register()
    return state


def charged(state: RunState) -> dict[str, int]:
    assert state.privacy_cost is not None
    return {name: share.rounds for name, share in state.privacy_cost.shares.items()}


def stated(state: RunState, folder: Path) -> dict[str, Any]:
    save_statement(RunDirectory(folder), state, None)
    found: dict[str, Any] = json.loads((folder / "privacy.json").read_text())
    return found


def test_a_run_that_went_to_its_end_is_charged_the_rounds_that_were_sent(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    state = state_of(make_config, [["x", "y"], ["x"], ["x"], ["x"]])

    state.finish()

    assert charged(state) == {"x": 4, "y": 1}
    statement = stated(state, tmp_path)
    assert statement["charged"] == "rounds sent"
    assert {name: client["rounds"] for name, client in statement["clients"].items()} == {"x": 4, "y": 1}


def test_a_run_that_stopped_early_is_charged_its_whole_plan(make_config: MakeConfig, tmp_path: Path) -> None:
    state = state_of(make_config, [["x", "y"], ["x"], ["x"], ["x"]])
    state.early = True

    state.finish()

    assert charged(state) == {"x": 4, "y": 4}
    assert stated(state, tmp_path)["charged"].startswith("the whole plan")


def test_a_run_that_was_interrupted_is_charged_its_whole_plan(make_config: MakeConfig, tmp_path: Path) -> None:
    state = state_of(make_config, [["x", "y"], ["x"], ["x"], ["x"]])

    assert charged(state) == {"x": 4, "y": 4}
    assert stated(state, tmp_path)["charged"].startswith("the whole plan")


@pytest.mark.parametrize("ended", [False, True])
def test_a_late_client_is_in_the_accounts_from_its_first_round_on(
    make_config: MakeConfig, tmp_path: Path, ended: bool
) -> None:
    state = state_of(make_config, [["x", "y"]] * ROUNDS)

    state.join(enrolled("late", 4, num_units=30), 3)
    if ended:
        state.finish()

    assert charged(state) == {"x": 4, "y": 4, "late": 2 if ended else 4}
    statement = stated(state, tmp_path)
    assert statement["joined_late"] == {"late": 3}
    assert statement["clients"]["late"]["num_units"] == 30
    assert statement["epsilon_max"] == max(client["epsilon"] for client in statement["clients"].values())


def test_the_largest_epsilon_is_stated_and_not_the_first_or_the_least(make_config: MakeConfig, tmp_path: Path) -> None:
    # A client of few units is in more batches, at the same noise.
    state = state_of(make_config, [["x", "y"]] * ROUNDS, **{"training.batch-size": 8})
    state.join(enrolled("small", 4, num_units=10), 1)
    state.join(enrolled("zlarge", 5, num_units=900), 1)

    statement = stated(state, tmp_path)

    epsilons = {name: client["epsilon"] for name, client in statement["clients"].items()}
    assert max(epsilons, key=lambda name: epsilons[name]) == "small"
    assert statement["epsilon_max"] == epsilons["small"] > epsilons["zlarge"]


def test_figures_of_many_clients_are_those_of_each_and_computed_once_a_history(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(
        {"num-clients": 60, "num-rounds": ROUNDS, "training.batch-size": 8, "privacy.noise-multiplier": 4.0}
    )
    sizes = {f"{number:02}": (30, 100, 900)[number % 3] for number in range(60)}
    cohorts = [[*sizes][: 15 * number] for number in range(1, ROUNDS + 1)]
    cost = account(config, sizes, cohorts, complete=True)
    assert len({share.rounds for share in cost.shares.values()}) == len(cohorts)

    alone = {name: RunPrivacyCost({name: share}) for name, share in cost.shares.items()}
    each = [one.parts() for one in alone.values()]
    asked = rounds_of(cost.shares, cohorts[:2])
    so_far = max(
        privacy_spent.rdp_epsilon(privacy_spent.merged(events), share.plan.delta)
        for name, share in cost.shares.items()
        for events in privacy_spent.mechanism_named(share.plan.mechanism)
        .charged_events(share.plan, *charged_rounds(share.plan, asked[name]), closing=False)
        .values()
        if privacy_spent.merged(events)
    )
    calls = []
    priced = privacy_spent.spent_by
    monkeypatch.setattr(privacy_spent, "spent_by", lambda *given, **more: calls.append(1) or priced(*given, **more))

    assert cost.parts() == {part: max(one[part] for one in each) for part in each[0]}
    assert cost.epsilon_max == max(one.epsilon_max for one in alone.values())
    assert cost.alone_max == max(one.alone_max for one in alone.values())
    assert epsilon_so_far(cost, cohorts[:2]) == min(cost.epsilon_max, so_far)
    # Three sizes with four numbers of rounds, in four parts each.
    assert len(calls) == 3 * len(cohorts) * len(cost.parts()) < len(sizes) * len(cost.parts())


@pytest.mark.parametrize("name", [part.name for part in fields(PrivacyPlan)])
def test_a_history_tells_plans_apart_by_all_that_their_events_follow_from(name: str, make_config: MakeConfig) -> None:
    plan = make_config({"privacy.target-epsilon": 4.0}).plan(100)
    other = replace(plan, **{name: "another"})
    one, two = (RunPrivacyCost({"a": share(plan), "b": share(each)}).distinct for each in (plan, other))

    assert len(one) == 1
    # Sizes and learning rates alone do not enter into events.
    assert len(two) == (1 if name in ("num_units", "learning_rate") else 2)


def share(plan: PrivacyPlan) -> ClientPrivacyCost:
    return ClientPrivacyCost(plan, 1, 1, True, Spent(1.0, 1.0))
