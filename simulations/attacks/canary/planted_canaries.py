"""A normal federated run with many canaries, each in or out by chance.

Each canary is a row with a feature of its own, at one client, whose declared size counts it in either case. The auditor
sees what the server sees, that is each round's incoming model and each client's noised update. It knows the real images
and trains on them without noise from the same incoming model. The difference of both updates shows the canaries.
"""

import hashlib
import secrets
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from client.session import ClientRef, ClientSession, RunClients, SessionCache
from client.training.dp_sgd import FRESH_STREAMS, FreshStreams
from client.training.trainer import Trainer
from common.arrays import Arrays
from common.config.schema import RunConfig
from common.data.client_dataset import Shard
from common.data.image_digests import ImageDigests
from common.errors import ConfigError
from common.models.linear_head import HEAD_WEIGHT
from common.privacy.plan import PrivacyPlan
from common.system.aligned_arrays import align_rows
from simulations.harness.harness_streams import Repeated, WithoutNoise

_NORM = 100.0
_LABEL = 0


@dataclass(eq=False)
class PlantedCanaries(SessionCache):
    """The sessions of a run's clients with canaries and their scores.

    Attributes:
        run: Configuration of the run.
        num_canaries: Number of canaries of all clients.
        coins: (m,) bool, true where a canary is in; from the operating system's randomness.
        scores: (m,) float64, sums of a matched filter over rounds, higher where a canary seems in.
        plans: Client -> privacy plan.

    Raises:
        ConfigError: The run cannot hold such canaries.
    """

    run: RunConfig
    num_canaries: int
    coins: np.ndarray = field(init=False)
    scores: np.ndarray = field(init=False)
    plans: dict[str, PrivacyPlan] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()
        config = self.run
        in_rounds = config.is_local_dp and not config.takes_statistics
        if not config.needs_no_torch or not in_rounds or config.privacy.unit != "image":
            raise ConfigError(
                "--one-run plants rows with a feature of their own: it needs a linear head on cached features, "
                "a mechanism with noise at the client in rounds, and privacy.unit='image'"
            )
        self._real_clients = RunClients(config)
        size = self._real_clients.open(0).rows.train_inputs.shape[1]
        if size < self.num_canaries:
            raise ConfigError(
                f"--canaries {self.num_canaries}: too many; there are {size} features, and each canary needs its own"
            )
        self.coins = np.frombuffer(secrets.token_bytes(self.num_canaries), np.uint8) % 2 == 1
        self.scores = np.zeros(self.num_canaries)

    def mine(self, place: int) -> np.ndarray:
        """Return the numbers of one client's canaries."""
        return np.arange(place, self.num_canaries, self.run.num_clients)

    def open(self, _: object, place: ClientRef, pinned: str) -> ClientSession:
        """Open the session of a client with its canaries."""
        base, mine = self._real_clients.open(place, pinned), self.mine(int(place))
        rows = with_rows(base.rows, mine[self.coins[mine]], num_declared=len(mine))
        plain = base.trainer
        trainer = WatchedTrainer(plain.config, plain.input_shape, plain.classes, self, base.rows, int(place))
        return replace(base, rows=rows, trainer=trainer)

    def observe(self, place: int, before: Arrays, after: Arrays, alone: Arrays, plan: PrivacyPlan) -> None:
        """Add one client's update to the scores of its canaries.

        Args:
            place: Number of the client.
            before: Incoming model.
            after: The client's noised model.
            alone: Model trained without noise and without canaries.
            plan: The client's plan.
        """
        mine = self.mine(place)
        residual = (after[HEAD_WEIGHT].astype(np.float64) - alone[HEAD_WEIGHT].astype(np.float64))[:, mine]
        signal = canary_gradients(before[HEAD_WEIGHT][:, mine], max_grad_norm=plan.max_grad_norm)
        self.scores[mine] -= (signal * residual).sum(axis=0)

    def guesses(self, num_guesses: int) -> tuple[int, int]:
        """Guess that the highest scores are in and the lowest are out.

        Args:
            num_guesses: Number of guesses, even and fixed before the run. The auditor abstains on all other canaries.

        Returns:
            The numbers of guesses and of correct guesses.
        """
        order, half = np.argsort(self.scores), num_guesses // 2
        right = int(self.coins[order[-half:]].sum() + (~self.coins[order[:half]]).sum())
        return 2 * half, right


@dataclass(frozen=True, eq=False)
class WatchedTrainer(Trainer):
    """A trainer that shows the auditor what the server sees.

    Clients must answer one after another, because they add to the same scores.

    Attributes:
        planted: Receives the updates.
        real: The client's images without canaries.
        place: Number of the client.
    """

    planted: PlantedCanaries
    real: Shard
    place: int

    def train(
        self,
        arrays: Arrays,
        shard: Shard,
        *,
        name: str,
        server_round: int,
        plan: PrivacyPlan | None,
        streams: FreshStreams = FRESH_STREAMS,
        label_counts: np.ndarray | None = None,
    ) -> Arrays:
        """Train as usual and once more for the auditor.

        The second training has no noise and no canaries.
        """
        plain = partial(
            Trainer(self.config, self.input_shape, self.classes).train,
            name=name,
            server_round=server_round,
            plan=plan,
            label_counts=label_counts,
        )
        after = plain(arrays, shard, streams=streams)
        if plan is not None:
            quiet = WithoutNoise(Repeated("sampling", []))
            alone = plain(arrays, self.real, streams=quiet)
            self.planted.plans[name] = plan
            self.planted.observe(self.place, arrays, after, alone, plan)
        return after


def canary_gradients(weights: np.ndarray, *, max_grad_norm: float) -> np.ndarray:
    """Return each canary's clipped gradient in its own feature, shape (classes, m), float64.

    Args:
        weights: (classes, m), incoming model in the canaries' features.
        max_grad_norm: The clipping bound.
    """
    logits = _NORM * weights.astype(np.float64)
    chances = np.exp(logits - logits.max(axis=0))
    chances /= chances.sum(axis=0)
    chances[_LABEL] -= 1.0
    gradient = _NORM * chances
    lengths = np.linalg.norm(gradient, axis=0)
    return np.asarray(gradient * np.minimum(1.0, max_grad_norm / np.maximum(lengths, 1e-300)))


def with_rows(rows: Shard, canaries: np.ndarray, *, num_declared: int) -> Shard:
    """Return a client's rows with some canaries, each of which is a unit.

    Args:
        rows: The client's own rows.
        canaries: Numbers of the canaries that are in.
        num_declared: Number of units that it declares in addition, which must not depend on the coins.
    """
    size = rows.train_inputs.shape[1]
    inputs = np.zeros((len(canaries), size), dtype=np.float32)
    inputs[np.arange(len(canaries)), canaries] = _NORM
    digests = np.array([list(hashlib.sha256(f"canary {n}".encode()).digest()) for n in canaries], dtype=np.uint8)
    digests = digests.reshape(-1, 32)
    units = int(rows.train_units.max(initial=-1)) + 1 + np.arange(len(canaries))
    held = rows.train_holdings
    later = int(held.units.max(initial=-1)) + 1 + np.arange(len(canaries))
    return replace(
        rows,
        train_inputs=align_rows(np.concatenate([rows.train_inputs, inputs])),
        train_labels=np.concatenate([rows.train_labels, np.full(len(canaries), _LABEL)]),
        num_units=rows.num_units + num_declared,
        train_digests=np.concatenate([rows.train_digests, digests]),
        train_units=np.concatenate([rows.train_units, units]),
        train_holdings=ImageDigests(
            np.concatenate([held.files, digests]),
            np.concatenate([held.pixels, digests]),
            np.concatenate([held.units, later]),
        ),
    )
