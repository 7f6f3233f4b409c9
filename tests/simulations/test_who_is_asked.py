"""Which simulated clients are asked who they are.

Drives `simulations.app` and `simulations.engines.in_process`.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from flwr.app import Message

from client.app import app as client_app
from common.config.loading import Scalar, resolved
from common.config.schema import RunConfig
from common.data.preprocessing import Prepared
from server.app import create_app
from simulations.app import make_context
from simulations.engines.in_process import run_in_process

MakeConfig = Callable[..., RunConfig]
OPEN: dict[str, Scalar] = {"privacy.mechanism": "none"}


@pytest.mark.parametrize(
    ("settings", "asked"), [(OPEN, (1, 0)), ({}, (5, 5)), ({"privacy.mechanism": "client-dp"}, (5, 5))]
)
def test_clients_that_keep_nothing_are_not_asked_one_by_one(
    settings: dict[str, Scalar], asked: tuple[int, int], make_config: MakeConfig, digits: Prepared, tmp_path: Path
) -> None:
    kinds, models = [], []
    for name, in_order in (("asked", False), ("known", True)):
        config = make_config({"num-rounds": 1, "output-dir": str(tmp_path / name)} | settings)
        app, seen = create_app(partial(make_context, in_order=in_order)), list[Message]()
        run_in_process(app, client_app, resolved(config), num_clients=5, observer=seen.append)
        answered = [message.metadata.message_type for message in seen]
        kinds.append((answered.count("query"), answered.count("query.close"), answered.count("train")))
        models.append((tmp_path / name / "model" / "model.safetensors").read_bytes())

    assert kinds == [(5, 5, 5), (*asked, 5)]
    assert settings != OPEN or models[0] == models[1]


def test_a_policy_of_the_clients_is_asked_about_by_each_of_them(
    make_config: MakeConfig, digits: Prepared, tmp_path: Path
) -> None:
    (tmp_path / "policy.toml").write_text('mechanisms = ["dp-sgd"]\n')
    config = make_config({"privacy.policy": str(tmp_path / "policy.toml")} | OPEN)

    assert make_context(config, in_order=True).sizes is None
    assert list(make_context(make_config(OPEN), in_order=True).sizes or ()) == [f"{n:05d}" for n in range(5)]
