"""What a dry run foresees is what the run then does.

Drives `simulations.estimates`.
"""

import io
import json
import math
import time
from collections.abc import Callable

import pytest
from rich.console import Console

from client.training.trainer import Trainer
from common.config.loading import Scalar
from common.config.schema import RunConfig
from common.data.partitioning.assignment import make_partition
from common.data.scan import scan_source
from common.data.sources.registry import open_source
from common.errors import ConfigError
from common.models.linear_head import initial_head
from common.system.console import format_alone
from common.system.progress import no_progress
from simulations import estimates
from simulations.commands.dry_run import _facts_of, _shares, foresee, show
from simulations.estimates import round_seconds

MakeConfig = Callable[..., RunConfig]
CNN: dict[str, Scalar] = {"model.backbone": "cnn", "privacy.mechanism": "none", "training.batch-size": 16}


@pytest.mark.parametrize("partitioner", ["dirichlet", "shards"])
def test_foresee_tells_the_sizes_that_the_run_deals(make_config: MakeConfig, partitioner: str) -> None:
    config = make_config(CNN | {"data.partitioner": partitioner, "data.shards-per-client": 7})

    facts = foresee(config)

    dealt = make_partition(
        scan_source(open_source(config.data), progress=no_progress),
        config.data,
        num_clients=config.num_clients,
        seed=config.seed,
    )
    assert facts["client_sizes"]["min"] == dealt.num_units.min()
    assert facts["client_sizes"]["max"] == dealt.num_units.max()
    assert facts["images_unused"] == dealt.images_unused
    assert facts["held_out"] == 0.2


def test_foresee_counts_what_is_trained_and_what_travels(make_config: MakeConfig) -> None:
    model = foresee(make_config(CNN))["model"]

    assert model["tensors"] == 8
    assert model["bytes_a_client_and_round"] == 4 * model["trained_parameters"]

    rounded = foresee(make_config(CNN | {"training.update-bits": 8}))["model"]

    # A scale of 4 bytes for 256 values of one tensor.
    scales = rounded["bytes_a_client_and_round"] - rounded["trained_parameters"]
    assert 0 <= scales - 4 * rounded["trained_parameters"] / 256 <= 4 * rounded["tensors"]

    masked = foresee(make_config(CNN | {"privacy.aggregation": "secure", "round-retries": 0}))["model"]

    # Words of 48 bits, with ten times ten counts and a loss.
    assert masked["bytes_a_client_and_round"] == 6 * (masked["trained_parameters"] + 101)


def test_foresee_tells_the_clip_bound_of_the_servers_plan(make_config: MakeConfig) -> None:
    config = make_config({"privacy.mechanism": "client-dp", "num-clients": 40, "privacy.noise-multiplier": 5.0})

    plan = foresee(config)["plan"]["every"]

    # 1.4 x 40 clients over noise 5 and the root of 30 rounds.
    assert plan["max_grad_norm"] == config.plan(40).max_grad_norm == 2.04


NOISE: dict[str, Scalar] = {
    "num-rounds": 4,
    "privacy.noise-multiplier": 40.0,
    "privacy.counts-noise": 30.0,
    "privacy.closing-noise": 30.0,
}
IN_SHARES = NOISE | {
    "round-retries": 0,
    "model.backbone": "timm:test_resnet",
    "model.weights": "random",
    "data.image-size": 32,
    "privacy.aggregation": "secure",
    "privacy.secure-honest": 3,
}


def test_a_dry_run_tells_what_noise_in_shares_rests_on(make_config: MakeConfig) -> None:
    config = make_config(IN_SHARES)
    facts = foresee(config)
    text, printed = (io.StringIO() for _ in range(2))

    show(facts, Console(file=text, width=1000), as_json=False)
    show(facts, Console(file=printed, width=1000), as_json=True)

    lines = [line for line in text.getvalue().splitlines() if line.startswith("Privacy ")]
    plans = json.loads(printed.getvalue())["plan"]
    assert len(lines) == len(plans) == 2
    for line, plan in zip(lines, plans.values(), strict=True):
        alone = config.plan(plan["num_units"]).spent_alone().pld
        assert (plan["noise_shares"], plan["epsilon_alone"]) == (3, alone)
        assert alone > 1.5 * plan["epsilon_whole_run"]
        assert "while 3 clients of each sum are honest" in line
        assert line.endswith(f"if all others collude with the server: {format_alone(alone)}")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (IN_SHARES | {"privacy.mechanism": "client-dp"}, "collude with the server: epsilon "),
        (IN_SHARES | {"privacy.noise-multiplier": 0.2}, "collude with the server: no protection"),
        (NOISE, ""),
    ],
    ids=["whole clients", "a share alone is too little", "noise in one place"],
)
def test_each_kind_of_plan_tells_whether_it_has_a_second_epsilon(
    make_config: MakeConfig, settings: dict[str, Scalar], told: str
) -> None:
    facts = _facts_of(make_config(settings).plan(5))

    assert told in _shares(facts)
    assert ("epsilon_alone" in facts) == bool(_shares(facts)) == bool(told)
    json.dumps(facts, allow_nan=False)


def test_foresee_refuses_what_the_run_would_refuse(make_config: MakeConfig) -> None:
    with pytest.raises(ConfigError, match="use a smaller batch"):
        foresee(make_config(CNN | {"training.batch-size": 2000}))


@pytest.mark.parametrize(("seconds", "cores", "clients_at_once"), [(0.02, 1, 1), (0.02, 4, 4), (0.001, 4, 1)])
def test_rounds_are_foreseen_with_the_cores_that_clients_use(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, seconds: float, cores: int, clients_at_once: int
) -> None:
    config, clock = make_config({"num-clients": 9, "num-rounds": 100}), [0.0]
    monkeypatch.setattr(estimates, "num_cores", lambda: cores)
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    def train(*_: object, **__: object) -> None:
        clock[0] += seconds / config.local_epochs

    monkeypatch.setattr(Trainer, "train", train)
    trainer = Trainer(config, (6,), ("a", "b"))

    found = round_seconds(trainer, initial_head(6, 2), 50)

    # The last of them waits for those before it.
    assert found == pytest.approx(100 * seconds * math.ceil(9 / clients_at_once), abs=0.1)
