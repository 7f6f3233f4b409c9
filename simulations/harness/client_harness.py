"""A client on the bench: real messages to the real ClientApp, over images and streams of the auditor's choice.

What a client runs is not copied here: the bench puts images and streams in their places, and everything else, from
decoding to ledger and allow-list, is what answers a server.
"""

import logging
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import cycle
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from flwr.app import Array, ConfigRecord, Message, RecordDict

import client.app as client_app
import client.evaluation.evaluate as client_evaluation
from client.home import SimulatedHome
from client.session import ClientSession, RunClients
from client.training.dp_sgd import FreshStreams, PrivateStreams
from client.training.trainer import Arrays, Trainer
from common.config.loading import Scalar, resolved
from common.config.schema import RunConfig
from common.ledger.connection_pool import close_below
from common.messages.codec import (
    CONFIG,
    PROTOCOL,
    PROTOCOL_VERSION,
    RUN_ID,
    SERVER_ROUND,
    arrays_to_record,
    record_to_arrays,
)
from common.messages.fields import ARRAYS, METRICS
from common.models.initialization import initial_arrays
from common.privacy.discrete_gaussian import ByteStream
from common.privacy.noise import SecureStream
from common.privacy.plan import PrivacyPlan
from simulations.engines.in_process import InProcessGrid
from simulations.harness.harness_images import Images
from simulations.harness.harness_streams import Draw, Joins, Repeated, Silent


@dataclass(frozen=True)
class Streams:
    """What a client makes its streams of, in turn.

    Attributes:
        training: For sampling and noise of training.
        counts: For noise of counts.
        draws: Uses of repeated streams, in order.
    """

    training: tuple[object, ...] = (SecureStream,)
    counts: tuple[object, ...] = (SecureStream,)
    draws: list[Draw] = field(default_factory=list)

    @classmethod
    def repeated(cls, joins: Joins | None = None) -> "Streams":
        """The same sampling and noise in each replay."""
        draws: list[Draw] = []
        training = (Repeated("sampling", draws, joins), Repeated("noise", draws))
        return cls(training, (Repeated("counts", draws),), draws)

    @classmethod
    def without_noise(cls) -> "Streams":
        """Real sampling, and noise that is zero."""
        return cls((SecureStream, Silent))


OWN = Streams()


@dataclass(frozen=True)
class Observation:
    """All there is to see of one answer.

    Attributes:
        reply: What left; empty after a failure.
        failure: The failure's name, else empty.
        lines: What the client logged.
        leaving: All bytes and words that left, whatever they belong to.
        draws: Uses of repeated streams, in order.
    """

    reply: RecordDict
    failure: str
    lines: tuple[str, ...]
    leaving: bytes
    draws: tuple[Draw, ...]

    @cached_property
    def arrays(self) -> Arrays:
        """The tensors that left, float32."""
        return record_to_arrays(self.reply.array_records[ARRAYS])

    def metric(self, *names: str) -> np.ndarray:
        """Numbers out of the metrics, one after another, int64."""
        found = self.reply.metric_records[METRICS]
        return np.concatenate([np.atleast_1d(np.asarray(found[name], dtype=np.int64)) for name in names])


@dataclass(frozen=True)
class ClientHarness:
    """One configuration under audit.

    Layers take it `with_settings`, which is with plain SGD and one pass a round: whatever the optimiser is, it only
    post-processes what is released, and from plain SGD's steps the noised sum can be read off.

    Attributes:
        config: The run.
        classes: Class names.
        images: The few images of the client.
        num_units: Declared size of the client.
        folder: Where ledgers go: a new one for each run.
    """

    config: RunConfig
    classes: tuple[str, ...]
    images: Images
    num_units: int
    folder: Path

    @classmethod
    def of(cls, config: RunConfig, folder: Path, *, num_images: int | None, num_held_out: int = 6) -> "ClientHarness":
        """A few images of a configuration's first client.

        Args:
            config: The run.
            folder: Scratch.
            num_images: How many that train, at most; None for all.
            num_held_out: How many that evaluate, at most.

        Raises:
            BractError: The configuration cannot be run.
        """
        whole = RunClients(config).open(0)
        rows = whole.rows
        inputs = np.concatenate([rows.train_inputs[:num_images], rows.test_inputs[:num_held_out]])
        labels = np.concatenate([rows.train_labels[:num_images], rows.test_labels[:num_held_out]])
        images = Images.of(inputs, labels, held_out=len(rows.test_labels[:num_held_out]))
        return cls(config, whole.trainer.classes, images, rows.num_units, folder)

    @cached_property
    def plan(self) -> PrivacyPlan:
        """What the client agrees to."""
        return self.config.plan(self.num_units)

    @property
    def trainer(self) -> Trainer:
        """Trains and scores."""
        return Trainer(self.config, self.images.inputs.shape[1:], self.classes)

    @cached_property
    def start(self) -> Arrays:
        """The tensors of round 1 that travel."""
        found = initial_arrays(self.config, self.images.inputs.shape[1:], self.classes)
        return {name: array for name, array in found.items() if name not in self.trainer.personal}

    def ask(
        self,
        kind: str,
        images: Images,
        *,
        streams: Streams = OWN,
        arrays: Arrays | None = None,
        server_round: int = 1,
        settings: Mapping[str, Scalar] | None = None,
        run: str = "",
        ledger: str = "",
        policy: Path | None = None,
        name: str = "bench",
    ) -> Observation:
        """Send one message to a client over some images, and see all of its answer.

        Args:
            kind: `query`, `query.close`, `train` or `evaluate`.
            images: The client's.
            streams: What it makes its streams of.
            arrays: The model in the message; the run's start if left out.
            server_round: From 1.
            settings: More that the message says.
            run: Name of the run, 32 hex digits; a new one if left out.
            ledger: Folder of the ledger, below the bench's; one for each run if left out.
            policy: The holder's policy; anything goes if left out.
            name: Name of the client.
        """
        content = self.content(kind, arrays=arrays, server_round=server_round, settings=settings, run=run)
        with installed(self.session(images, name, policy), self.folder, ledger, streams), log_lines() as lines:
            reply = self.send(kind, content)
        failure = str(reply.error.reason) if reply.has_error() else ""
        left = RecordDict() if failure else reply.content
        return Observation(left, failure, tuple(lines), _bytes_of(reply), tuple(streams.draws))

    def content(
        self,
        kind: str,
        *,
        arrays: Arrays | None = None,
        server_round: int = 1,
        settings: Mapping[str, Scalar] | None = None,
        run: str = "",
    ) -> RecordDict:
        """What a server's message holds; see `ask`."""
        content = RecordDict({CONFIG: ConfigRecord({RUN_ID: run or secrets.token_hex(16), **(settings or {})})})
        if kind == "query":
            content.config_records[CONFIG][PROTOCOL] = PROTOCOL_VERSION
        if kind in ("train", "evaluate"):
            content.config_records[CONFIG][SERVER_ROUND] = server_round
            content[ARRAYS] = arrays_to_record(self.start if arrays is None else arrays)
        return content

    def send(self, kind: str, content: RecordDict) -> Message:
        """One message to whatever client is in place, and its reply."""
        grid = InProcessGrid(client_app.app, 1, resolved(self.config))
        return next(iter(grid.send_and_receive([grid.create_message(content, kind, 2, "")])))

    def forget(self, ledger: str) -> None:
        """Remove a ledger: audits make thousands of them."""
        close_below(self.folder / ledger)
        shutil.rmtree(self.folder / ledger, ignore_errors=True)

    def counts(self, *, closing: bool) -> np.ndarray:
        """(k,) int64: counts of no image at all, which is their noise; from the client's own code without a message."""
        session = self.session(self.images.without_training().without_held_out())
        found = client_evaluation.evaluate_incoming(session, self.start, {}, self.plan, closing=closing)
        return np.zeros(0) if found is None or found.noised is None else found.noised.cells.ravel()

    def session(self, images: Images, name: str = "bench", policy: Path | None = None) -> ClientSession:
        """The client that holds some images."""
        rows = images.shard(self.config, self.classes, num_units=self.num_units)
        home = SimulatedHome(name, self.config.seed, self.config.private, durable=False, root=self.folder)
        return ClientSession(name, rows, self.trainer, policy, home)

    def noised_sum(self, seen: Observation) -> np.ndarray:
        """(p,) float64: what the steps of a round released, added up, as anyone can read it off the reply."""
        moved = [array.astype(np.float64) - seen.arrays[name].astype(np.float64) for name, array in self.start.items()]
        rate = self.config.training.learning_rate or 0.0
        return np.concatenate([part.ravel() for part in moved]) * (self.plan.expected_batch_size / rate)

    def rounding(self) -> float:
        """How far the L2 norm of `noised_sum` may be off because weights travel as float32."""
        rate = self.config.training.learning_rate or 0.0
        size = sum(array.size for array in self.start.values())
        largest = max(float(np.abs(array).max(initial=0.0)) for array in self.start.values()) + 6.0
        return float(2.0**-23 * largest * np.sqrt(size) * self.plan.expected_batch_size / rate)

    def with_settings(self, *, local_epochs: int = 1, **sections: Mapping[str, object]) -> "ClientHarness":
        """The same bench as layers want it, under other settings of some sections."""
        update = {name: getattr(self.config, name).model_copy(update=values) for name, values in sections.items()}
        config = self.config.model_copy(update=update)
        return replace(self, config=with_plain_sgd(config, self.num_units, local_epochs=local_epochs))


def with_plain_sgd(config: RunConfig, num_units: int, *, local_epochs: int = 1) -> RunConfig:
    """A configuration with plain SGD, so many passes a round, and steps about as long as float32 reads best."""
    plain = {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "schedule": "constant", "warmup_rounds": 0}
    training = config.training.model_copy(update=plain | {"local_epochs": local_epochs, "learning_rate": 1.0})
    config = config.model_copy(update={"training": training})
    if not config.is_local_dp:
        return config
    plan = config.plan(num_units)
    rate = plan.expected_batch_size / (plan.noise_stddev * np.sqrt(plan.steps_per_round))
    training = training.model_copy(update={"learning_rate": float(min(rate, 1e6))})
    return config.model_copy(update={"training": training})


@contextmanager
def installed(session: ClientSession, folder: Path, ledger: str, streams: Streams = OWN) -> Iterator[None]:
    """The ClientApp answers for this client, with a ledger below this folder, and makes its streams of these.

    It changes modules for the whole process: enter it once, then let threads send.
    """
    home = HarnessHome(**(vars(session.home) | {"root": folder}), ledger=ledger)
    own = replace(session, home=home, streams=HarnessStreams(streams))
    with patch.object(client_app.SESSIONS, "open", lambda *_: own):
        yield


@dataclass(frozen=True)
class HarnessHome(SimulatedHome):
    """The home of a client in the harness, with a folder for each run or one for a ledger's name.

    Attributes:
        ledger: Name of the ledger's folder; empty for one folder a run.
    """

    ledger: str = ""

    def folder(self, run: str) -> Path:
        """Return the ledger's own folder below the harness's."""
        return self.root / (self.ledger or run)


class HarnessStreams(FreshStreams):
    """The streams that an auditor chose for a client, beside those that the client makes itself."""

    def __init__(self, streams: Streams) -> None:
        self._training, self._counts = cycle(streams.training), cycle(streams.counts)

    def for_training(self) -> PrivateStreams:
        """Return the client's own streams, the chosen ones in their places."""
        own = super().for_training()
        return PrivateStreams(_chosen(next(self._training), own.sampling), _chosen(next(self._training), own.noise))

    def for_counts(self) -> ByteStream:
        """Return the client's own stream, or the chosen one in its place."""
        stream: ByteStream = _chosen(next(self._counts), super().for_counts())
        return stream


def _chosen(kind: object, own: Any) -> Any:
    """Return the stream of a kind; the client's own where it is the kind that clients make."""
    # Not a new SecureStream: an audit of the client's own sampling must see what the client really made.
    return own if kind is SecureStream else kind() if callable(kind) else kind


def _bytes_of(reply: Message) -> bytes:
    """Everything that a message carries, metadata and error included, one after another."""
    parts = [repr(vars(reply.metadata)).encode()]
    if reply.has_error():
        return b"\n".join([*parts, repr(vars(reply.error)).encode()])
    for name, record in reply.content.items():
        for key, value in record.items():
            raw = value.numpy().tobytes() if isinstance(value, Array) else repr(value).encode()
            parts.append(f"{name}.{key}=".encode() + raw)
    return b"\n".join(parts)


@contextmanager
def log_lines() -> Iterator[list[str]]:
    """What clients log, kept from the screen: an audit provokes what a user should not have to read."""
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    log, handler = logging.getLogger("bract"), Keep(logging.DEBUG)
    before = log.level
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    try:
        yield lines
    finally:
        log.removeHandler(handler)
        log.setLevel(before)
