"""A federated run with canaries and the bounds that the auditor's guesses prove."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from common.config.loading import resolved
from common.config.schema import RunConfig
from common.errors import ConfigError
from common.system.progress import ProgressFactory
from simulations.attacks.canary.planted_canaries import PlantedCanaries
from simulations.attacks.estimators.one_run import OneRunLowerBound, one_run_epsilon_lower_bound, one_run_mu_lower_bound
from simulations.attacks.estimators.verdict import Judgement, judge
from simulations.harness.workers import quiet_flower

_ADVERSARY = "who sees every update of every client and knows all but the noise and which canaries are in"


@dataclass(frozen=True)
class OneRun:
    """Bounds of one run with canaries.

    Attributes:
        any_mechanism: Bound for any mechanism (Steinke et al. 2023).
        gaussian: Bound for a Gaussian mechanism (Mahloujifar et al. 2024).
        upper: Largest epsilon of any client, by the run's own accountant.
        sample_rates: Client -> chance that a unit joins a batch.
        judgement: Verdict by `gaussian`.
    """

    any_mechanism: OneRunLowerBound
    gaussian: OneRunLowerBound
    upper: float
    sample_rates: Mapping[str, float]
    judgement: Judgement

    def as_json(self) -> dict[str, Any]:
        """Return the bounds as plain values."""
        return {
            "verdict": str(self.judgement.verdict),
            "sentence": self.judgement.sentence,
            "epsilon_lower_bound": self.gaussian.epsilon,
            "epsilon_upper_bound_of_the_ledger": self.upper,
            "bounds": {"any_mechanism": vars(self.any_mechanism), "gaussian_dp": vars(self.gaussian)},
            "sample_rates": dict(self.sample_rates),
        }


def audit_one_run(
    config: RunConfig, folder: Path, *, canaries: int, guesses: int, confidence: float, progress: ProgressFactory
) -> OneRun:
    """Run a simulation whose clients hold canaries and guess which were in.

    Args:
        config: The run.
        folder: Folder of the run.
        canaries: Number of canaries of all clients.
        guesses: Number of guesses, half of them "in" and half "out"; fixed before the run.
        confidence: Confidence of the bounds.
        progress: Shows the progress of the backbone pass.

    Raises:
        ConfigError: The number of guesses is odd or out of range, or the images have too few features.
        BractError: The configuration cannot be run.
    """
    if not 2 <= guesses <= canaries or guesses % 2:
        raise ConfigError(f"--guesses {guesses}: give an even number from 2 to the number of canaries, {canaries}")
    config = config.model_copy(update={"output_dir": str(folder.resolve())})
    planted = PlantedCanaries(config, canaries)
    _simulate(planted, progress)
    made, right = planted.guesses(guesses)
    delta, upper = config.privacy.delta, max(plan.epsilon() for plan in planted.plans.values())
    gaussian = one_run_mu_lower_bound(canaries, made, right, delta=delta, confidence=confidence)
    judgement = judge(
        lower_bound=gaussian.epsilon, upper_bound=upper, confidence=confidence, adversary=_ADVERSARY, seen=None
    )
    return OneRun(
        one_run_epsilon_lower_bound(canaries, made, right, delta=delta, confidence=confidence),
        gaussian,
        upper,
        {name: plan.sample_rate for name, plan in sorted(planted.plans.items())},
        judgement,
    )


def _simulate(planted: PlantedCanaries, progress: ProgressFactory) -> None:
    from client.app import create_app as create_client_app
    from common.ledger.data_holder import close_below
    from server.app import create_app
    from server.state.run_directory import check_free
    from simulations.app import make_context
    from simulations.engines.in_process import run_in_process

    config = planted.run
    check_free(Path(config.output_dir), config.data)
    quiet_flower()
    server_app = create_app(partial(make_context, progress=progress))
    run_in_process(server_app, create_client_app(planted), resolved(config), num_clients=config.num_clients)
    close_below(Path(config.output_dir) / "ledgers")
