"""One ordinary federated run with many canaries in it, each in or out by a coin of its own.

Every canary is a row with a feature of its own, held by one client, and declared whether it is in or not. The
auditor sees what the server sees: each round's incoming model and each client's noised update. It knows the real
images, trains on them without noise from the same incoming model, and looks for each canary in what is left.
"""

import hashlib
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from unittest.mock import patch

import numpy as np

import client.app as client_app
from client.session import ClientSession, RunClients
from client.training.dp_sgd import FRESH_STREAMS, FreshStreams, PrivateStreams
from client.training.trainer import Arrays, Trainer
from common.config.schema import RunConfig
from common.data.client_dataset import ImageDigests, Shard
from common.errors import ConfigError
from common.models.linear_head import HEAD_WEIGHT
from common.privacy.plan import PrivacyPlan
from common.system.aligned_arrays import align_rows
from simulations.harness.harness_streams import Repeated, Silent

_NORM = 100.0
_LABEL = 0


@dataclass
class Planted:
    """Canaries of one run, and what has been seen of them.

    Attributes:
        config: The run.
        num_canaries: How many, in all clients together.
        coins: (m,) bool, who is in; thrown here, by the operating system.
        scores: (m,) float64, the matched filter's sum over rounds, higher where a canary seems in.
        plans: Client -> what it agreed to.
    """

    config: RunConfig
    num_canaries: int
    coins: np.ndarray = field(init=False)
    scores: np.ndarray = field(init=False)
    plans: dict[str, PrivacyPlan] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        config = self.config
        if not config.needs_no_torch or not config.is_local_dp or config.privacy.unit != "image":
            raise ConfigError(
                "--one-run plants rows with a feature of their own: it needs a linear head on cached features, "
                "privacy.mechanism='dp-sgd' and privacy.unit='image'"
            )
        self._clients = RunClients(config)
        size = self._clients.open(0).rows.train_inputs.shape[1]
        if size < self.num_canaries:
            raise ConfigError(
                f"each canary needs a feature of its own: {self.num_canaries} are too many for {size} features"
            )
        self.coins = np.frombuffer(secrets.token_bytes(self.num_canaries), np.uint8) % 2 == 1
        self.scores = np.zeros(self.num_canaries)

    def mine(self, place: int) -> np.ndarray:
        """Numbers of the canaries that one client holds: every n-th one."""
        return np.arange(place, self.num_canaries, self.config.num_clients)

    def open_session(self, config: RunConfig, place: int | str, pinned: str) -> ClientSession:
        """A client as it is, with its canaries."""
        del config
        base, mine = self._clients.open(place, pinned), self.mine(int(place))
        rows = with_rows(base.rows, mine[self.coins[mine]], num_declared=len(mine))
        same = base.trainer
        trainer = Watched(same.config, same.input_shape, same.classes, self, base.rows, int(place))
        return replace(base, rows=rows, trainer=trainer)

    def see(self, place: int, before: Arrays, after: Arrays, alone: Arrays, plan: PrivacyPlan) -> None:
        """Add up what one client's update tells of its canaries."""
        mine = self.mine(place)
        left = (after[HEAD_WEIGHT].astype(np.float64) - alone[HEAD_WEIGHT].astype(np.float64))[:, mine]
        signal = canary_gradients(before[HEAD_WEIGHT][:, mine], max_grad_norm=plan.max_grad_norm)
        self.scores[mine] -= (signal * left).sum(axis=0)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Clients hold their canaries, and updates are watched, as long as this lasts."""
        with patch.object(client_app.SESSIONS, "open", self.open_session):
            yield

    def guesses(self, num_guesses: int) -> tuple[int, int]:
        """How many guesses are made and how many are right: the highest scores are in, the lowest are out.

        Args:
            num_guesses: Even; the auditor abstains on all others. Fixed before the run.
        """
        order, half = np.argsort(self.scores), num_guesses // 2
        right = int(self.coins[order[-half:]].sum() + (~self.coins[order[:half]]).sum())
        return 2 * half, right


@dataclass(frozen=True, eq=False)  # equal where the learners are
class Watched(Trainer):
    """A learner that trains as ever, and shows the auditor what the server sees; clients answer one by one."""

    planted: Planted
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
    ) -> Arrays:
        """Train as ever; then once more without noise and without canaries, for the auditor alone."""
        plain = Trainer(self.config, self.input_shape, self.classes)
        after = plain.train(arrays, shard, name=name, server_round=server_round, plan=plan, streams=streams)
        if plan is not None:
            quiet = WithoutNoise()
            alone = plain.train(arrays, self.real, name=name, server_round=server_round, plan=plan, streams=quiet)
            self.planted.plans[name] = plan
            self.planted.see(self.place, arrays, after, alone, plan)
        return after


def canary_gradients(weights: np.ndarray, *, max_grad_norm: float) -> np.ndarray:
    """(classes, m) float64: each canary's clipped gradient in its own feature's column.

    Args:
        weights: (classes, m) the incoming model in the canaries' columns.
        max_grad_norm: The clip bound.
    """
    logits = _NORM * weights.astype(np.float64)
    chances = np.exp(logits - logits.max(axis=0))
    chances /= chances.sum(axis=0)
    chances[_LABEL] -= 1.0
    gradient = _NORM * chances
    lengths = np.linalg.norm(gradient, axis=0)
    return np.asarray(gradient * np.minimum(1.0, max_grad_norm / np.maximum(lengths, 1e-300)))


def with_rows(rows: Shard, canaries: np.ndarray, *, num_declared: int) -> Shard:
    """A client's rows and some canaries, each a unit of its own.

    Args:
        rows: The client's.
        canaries: Numbers of the canaries that are in.
        num_declared: How many it declares more than before, whoever is in.
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


class WithoutNoise(FreshStreams):
    """The streams of the auditor's own training, with noise of zero."""

    def for_training(self) -> PrivateStreams:
        """Return the same sampling for each training, and no noise."""
        return PrivateStreams(Repeated("sampling", []), Silent())
