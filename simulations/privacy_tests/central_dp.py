"""T1 and T2 where the server adds the noise: real rounds over clients that send what the auditor wants."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from unittest.mock import patch

import numpy as np
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from scipy import stats

import server.rounds.loop as server_rounds
from client.session import client_name
from common.config.loading import resolved
from common.config.schema import RunConfig
from common.messages.codec import Declaration, encode_update
from common.messages.fields import Releases
from common.privacy.plan import SENSITIVITY_SLACK
from server.aggregation.strategies import build_strategy
from server.rounds.enrollment import Client
from server.rounds.loop import RoundSettings, run_rounds
from server.rounds.replies import Channel
from simulations.engines.in_process import InProcessGrid
from simulations.harness.harness_streams import Draw, Repeated, StreamFactory
from simulations.privacy_tests.check import Check
from simulations.privacy_tests.noise_scale import ALARM

_SIZE = 400
_CLASSES = ("a", "b")


def central_replay(config: RunConfig) -> Iterator[Check]:
    """T1 for `client-dp`: one client more, with any update, moves the released sum by no more than the clip bound.

    Args:
        config: A run with mechanism `client-dp`.
    """
    plan, rng = config.plan(config.cohort_size), np.random.default_rng(5)
    others = list(0.01 * rng.standard_normal((3, _SIZE)))
    direction = rng.standard_normal(_SIZE)
    direction /= np.linalg.norm(direction)
    updates = {f"norm {norm:g}": direction * norm for norm in (0, 1, 10, 1000)}
    for odd in (np.nan, np.inf):
        updates[f"a {odd}"] = np.where(np.arange(_SIZE) == 3, odd, direction)
    bound, reach = plan.max_grad_norm * (1 + SENSITIVITY_SLACK) * (1 + 1e-3), 0.0
    for name, update in updates.items():
        draws: list[list[Draw]] = [[], []]
        ours = released(config, others, draws=draws[0])
        theirs = released(config, [*others, update], draws=draws[1])
        moved = float(np.linalg.norm(theirs - ours))
        reach = max(reach, moved / plan.max_grad_norm)
        yield Check(f"a client whose update has {name} moves a sum by no more than C", moved <= bound, f"{moved:.6g}")
        yield Check(
            f"a client whose update has {name} changes no use of streams",
            draws[0] == draws[1] != [],
            f"{len(draws[0])} and {len(draws[1])} uses",
        )
    yield Check("some client reaches the bound", reach > 0.9, f"{reach:.3f} C")


def central_noise_scale(config: RunConfig, *, rounds: int = 60) -> Iterator[Check]:
    """T2 and T3 for `client-dp`: the server's noise has the declared scale, and no round repeats another's."""
    plan = config.plan(config.cohort_size)
    found = np.stack([released(config, [np.zeros(_SIZE)] * 2) for _ in range(rounds)])
    energy = float((found**2).sum()) / (plan.noise_multiplier * plan.max_grad_norm * (1 + SENSITIVITY_SLACK)) ** 2
    chance = 2 * min(stats.chi2.sf(energy, found.size), stats.chi2.cdf(energy, found.size))
    factor = np.sqrt(energy / found.size)
    yield Check("the server's noise has the declared scale", bool(chance > ALARM), f"{factor:.4f} over {found.size}")
    largest = float(np.abs(np.corrcoef(found)[~np.eye(rounds, dtype=bool)]).max())
    yield Check("the server's noise is new in each round", largest < 0.4, f"correlation {largest:.3f}")


def released(config: RunConfig, updates: Sequence[np.ndarray], *, draws: list[Draw] | None = None) -> np.ndarray:
    """What one real round at the server releases: the noised sum of updates.

    Args:
        config: A run with mechanism `client-dp`.
        updates: (p,) of each client that answers.
        draws: Where uses of repeated noise are noted; real noise if left out.
    """
    plan, start = config.plan(config.cohort_size), {"weights": np.zeros(_SIZE, dtype=np.float32)}
    grid = InProcessGrid(_senders(updates), len(updates), resolved(config))
    clients = {
        client_name(at): Client(Declaration("", _num_units(at), _CLASSES, (4,), ""), node)
        for at, node in enumerate(grid.get_node_ids())
    }
    wire = Channel(grid, Releases.of(config), "0" * 32)
    course = RoundSettings(clients, [sorted(clients)], central=plan)
    repeated = None if draws is None else StreamFactory(Repeated("central", draws))
    with nullcontext() if repeated is None else patch.object(server_rounds, "SecureStream", repeated), _quiet():
        (result,) = run_rounds(wire, build_strategy(config), start, course)
    return result.arrays["weights"].astype(np.float64) * plan.expected_batch_size


def _num_units(number: int) -> int:
    """Declared size of a client, twice that of the one before: none may weigh more for it."""
    return int(100 * 2**number)


def _senders(updates: Sequence[np.ndarray]) -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        number = int(str(context.node_config["partition-id"]))
        update = updates[number]
        with np.errstate(over="ignore", invalid="ignore"):
            arrays = {"weights": update.astype(np.float32)}
        return Message(encode_update(arrays, _num_units(number), None), reply_to=message)

    return app


@contextmanager
def _quiet() -> Iterator[None]:
    """Flower's strategies say something in each round, and there are hundreds."""
    log = logging.getLogger("flwr")
    before = log.level
    log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        log.setLevel(before)
