"""Privacy tests T1 and T2 of noise at the server, over chosen updates."""

from collections.abc import Iterator, Sequence

import numpy as np
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client.session import client_name
from common.config.loading import resolved
from common.messages.codec import Declaration, encode_update
from common.messages.fields import Releases
from common.messages.rounded_update import leaving_arrays
from common.privacy.plan import SENSITIVITY_SLACK
from server.aggregation.strategies import build_strategy
from server.rounds.enrollment import EnrolledClient
from server.rounds.loop import RoundSettings, run_rounds
from server.rounds.replies import Channel
from simulations.engines.in_process import InProcessGrid
from simulations.harness.client_harness import ClientHarness
from simulations.harness.harness_streams import Draw, Repeated
from simulations.harness.workers import quiet_flower
from simulations.privacy_tests.check import Check
from simulations.privacy_tests.noise_scale import scale_check

_SIZE = 400
_CLASSES = ("a", "b")


def central_replay(harness: ClientHarness) -> Iterator[Check]:
    """Check that no client moves the released sum beyond the clipping bound (T1).

    The same round is run with and without one client, under the same noise. That client sends updates of any length,
    or with values that are not finite.

    Args:
        harness: A configuration with mechanism `client-dp`.
    """
    plan, rng = harness.config.plan(harness.config.cohort_size), np.random.default_rng(5)
    others = list(0.01 * rng.standard_normal((3, _SIZE)))
    direction = rng.standard_normal(_SIZE)
    direction /= np.linalg.norm(direction)
    updates = {f"norm {norm:g}": direction * norm for norm in (0, 1, 10, 1000)}
    for odd in (np.nan, np.inf):
        updates[f"a {odd}"] = np.where(np.arange(_SIZE) == 3, odd, direction)
    bound, reach = plan.max_grad_norm * (1 + SENSITIVITY_SLACK) * (1 + 1e-3), 0.0
    for name, update in updates.items():
        draws: list[list[Draw]] = [[], []]
        ours = released(harness, others, draws=draws[0])
        theirs = released(harness, [*others, update], draws=draws[1])
        moved = float(np.linalg.norm(theirs - ours))
        reach = max(reach, moved / plan.max_grad_norm)
        yield Check(f"a client whose update has {name} moves a sum by no more than C", moved <= bound, f"{moved:.6g}")
        yield Check(
            f"a client whose update has {name} changes no use of streams",
            draws[0] == draws[1] != [],
            f"{len(draws[0])} and {len(draws[1])} uses",
        )
    # Updates that are all dropped would pass the checks above.
    yield Check("some client reaches the bound", reach > 0.9, f"{reach:.3f} C")


def central_noise_scale(harness: ClientHarness, *, rounds: int = 60) -> Iterator[Check]:
    """Check the scale of the server's noise and its independence between rounds (T2).

    Args:
        harness: A configuration with mechanism `client-dp`.
        rounds: Number of rounds to look at, in each of which all updates are zero.
    """
    plan = harness.config.plan(harness.config.cohort_size)
    noise = np.stack([released(harness, [np.zeros(_SIZE)] * 2) for _ in range(rounds)])
    declared = plan.noise_multiplier * plan.max_grad_norm * (1 + SENSITIVITY_SLACK)
    yield scale_check("the server's noise", noise / declared)
    largest = float(np.abs(np.corrcoef(noise)[~np.eye(rounds, dtype=bool)]).max())
    yield Check("the server's noise is new in each round", largest < 0.4, f"correlation {largest:.3f}")


def released(harness: ClientHarness, updates: Sequence[np.ndarray], *, draws: list[Draw] | None = None) -> np.ndarray:
    """Return the noised sum of one real round, shape (p,), float64.

    Args:
        harness: A configuration with mechanism `client-dp`.
        updates: Update of each client, each of shape (p,).
        draws: List that receives the uses of repeated noise; without it the noise is real.
    """
    config = harness.config
    plan, start = config.plan(config.cohort_size), {"weights": np.zeros(_SIZE, dtype=np.float32)}
    grid = InProcessGrid(_sending_app(updates, Releases.of(config)), len(updates), resolved(config))
    clients = {
        client_name(number): EnrolledClient(Declaration("", _num_units(number), _CLASSES, (4,), ""), node)
        for number, node in enumerate(grid.get_node_ids())
    }
    channel = Channel(grid, Releases.of(config), "0" * 32)
    stream = None if draws is None else lambda: Repeated("central", draws)
    settings = RoundSettings(clients, [sorted(clients)], central=plan, stream=stream)
    quiet_flower()
    (result,) = run_rounds(channel, build_strategy(config), start, settings)
    return result.arrays["weights"].astype(np.float64) * plan.expected_batch_size


def _num_units(number: int) -> int:
    """Return a client's declared size, twice that of the client before.

    No client may weigh more because of it.
    """
    return int(100 * 2**number)


def _sending_app(updates: Sequence[np.ndarray], releases: Releases) -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        number = int(str(context.node_config["partition-id"]))
        with np.errstate(over="ignore", invalid="ignore"):
            arrays = {"weights": updates[number].astype(np.float32)}
            sent = leaving_arrays(
                arrays,
                {"weights": np.zeros(_SIZE, dtype=np.float32)},
                releases,
                seed=0,
                client=client_name(number),
                server_round=1,
            )
        return Message(encode_update(sent, _num_units(number), None), reply_to=message)

    return app
