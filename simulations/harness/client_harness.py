"""A harness that sends real messages to the real ClientApp of one client.

The auditor chooses images, streams and ledger folder. All other code, from decoding to ledger and allow-list, is what
answers a server.
"""

import logging
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

from client.app import create_app
from client.evaluation.evaluate import evaluate_incoming
from client.home import SimulatedHome
from client.session import ClientSession, RunClients, SessionCache
from client.training.dp_sgd import FRESH_STREAMS, FreshStreams
from client.training.trainer import Trainer
from common.arrays import Arrays
from common.config.loading import Scalar, resolved
from common.config.schema import RunConfig
from common.ledger.data_holder import close_below
from common.messages.codec import (
    CONFIG,
    PROTOCOL,
    PROTOCOL_VERSION,
    RUN_ID,
    SERVER_ROUND,
    arrays_to_record,
    record_to_arrays,
)
from common.messages.fields import ARRAYS, CODES, METRICS, SCALES
from common.messages.rounded_update import restore_model
from common.models.initialization import initial_arrays
from common.privacy.plan import PrivacyPlan
from simulations.engines.in_process import InProcessGrid, message_bytes
from simulations.harness.harness_images import Images
from simulations.harness.harness_streams import Draw, RepeatedStreams
from simulations.harness.released_sums import released_sizes, weighed_sums

# Counts that leave in a round, and those that leave at the end.
CountsKind = Literal["pair", "matrix", "scores", "confidence", "subgroups"]
# A plan with almost no noise would give steps without bound.
_MAX_LEARNING_RATE = 1e6
# Far above the rounding of a few float64 sums.
_ROUNDED_SUMS = 1e-9


@dataclass(frozen=True)
class Observation:
    """Record of all that one answer of a client shows.

    Attributes:
        reply: Content that left; empty after a failure.
        failure: Name of the failure, or empty.
        lines: Log lines of the client.
        leaving: All bytes of the reply, with metadata and error.
        draws: Uses of repeated streams, in order.
        asked: Model in the message that was answered.
    """

    reply: RecordDict
    failure: str
    lines: tuple[str, ...]
    leaving: bytes
    draws: tuple[Draw, ...]
    asked: Arrays = field(default_factory=dict)

    @cached_property
    def arrays(self) -> Arrays:
        """Model that left, float32, as the server restores it where its update left rounded.

        Sums over features stay as they are, float64.
        """
        record = self.reply.array_records[ARRAYS]
        if set(record) != {CODES, SCALES} and set(record) != set(self.asked):
            return {name: array.numpy() for name, array in record.items()}
        if CODES in record:
            return restore_model({name: array.numpy() for name, array in record.items()}, self.asked)
        return record_to_arrays(record)

    def metric(self, *names: str) -> np.ndarray:
        """Return the numbers of some metrics, concatenated, int64."""
        metrics = self.reply.metric_records[METRICS]
        return np.concatenate([np.atleast_1d(np.asarray(metrics[name], dtype=np.int64)) for name in names])


@dataclass(frozen=True)
class HarnessHome(SimulatedHome):
    """A client's home below the harness's folder.

    Attributes:
        ledger: Name of the home's folder; empty for one folder a run.
    """

    ledger: str = ""

    def folder(self, run: str) -> Path:
        """Return the folder named after the ledger or the run."""
        return self.root / (self.ledger or run)


class OneClient(SessionCache):
    """The sessions of an app that has one client.

    Args:
        session: The client.
        parsed: Parses configurations, and keeps them.
    """

    def __init__(self, session: ClientSession, parsed: SessionCache) -> None:
        super().__init__()
        self._one, self._parsed = session, parsed

    def config(self, settings: Mapping[str, Scalar]) -> RunConfig:
        """Return the parsed run configuration of a message."""
        return self._parsed.config(settings)

    def open(self, *_: object) -> ClientSession:
        """Return the one client for any message."""
        return self._one


@dataclass(frozen=True)
class ClientHarness:
    """A configuration under test with a few images of one client.

    Privacy tests use it `with_settings`, that is with plain SGD and one pass a round. Other optimizers only process
    what is released, and from plain SGD's steps the noised sum can be computed.

    Attributes:
        config: The run.
        classes: Class names.
        images: Images of the client.
        num_units: Declared size of the client.
        folder: Scratch folder for ledgers.
    """

    config: RunConfig
    classes: tuple[str, ...]
    images: Images
    num_units: int
    folder: Path

    @classmethod
    def of(cls, config: RunConfig, folder: Path, *, num_images: int | None, num_held_out: int = 6) -> "ClientHarness":
        """Take a few images of a configuration's first client.

        Args:
            config: The run.
            folder: Scratch folder for ledgers.
            num_images: Maximum number of training images; None for all.
            num_held_out: Maximum number of held-out images.

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
        """The privacy plan that the client agrees to."""
        return self.config.plan(self.num_units)

    @cached_property
    def trainer(self) -> Trainer:
        """The client's own trainer."""
        return Trainer(self.config, self.images.inputs.shape[1:], self.classes)

    @cached_property
    def start(self) -> Arrays:
        """Tensors of round 1 that travel."""
        arrays = initial_arrays(self.config, self.images.inputs.shape[1:], self.classes)
        return {name: array for name, array in arrays.items() if name not in self.trainer.personal}

    @cached_property
    def released(self) -> dict[str, int]:
        """Tensors that a round releases, in order, with their numbers of values."""
        if self.config.takes_statistics:
            return released_sizes(self.config.training.statistics, len(self.classes), self.images.inputs.shape[1])
        return {name: array.size for name, array in self.start.items()}

    @cached_property
    def _parsed(self) -> SessionCache:
        return SessionCache()

    def session(
        self,
        images: Images,
        name: str = "bench",
        *,
        policy: Path | None = None,
        ledger: str = "",
        streams: FreshStreams = FRESH_STREAMS,
    ) -> ClientSession:
        """Return the client that holds some images.

        Args:
            images: Images of the client.
            name: Name of the client.
            policy: Policy file of the data holder; None allows everything.
            ledger: Folder of the ledger below the harness's folder; empty for one folder a run.
            streams: Makes the client's streams.
        """
        config = self.config
        rows = images.shard(
            self.classes,
            num_units=self.num_units,
            private=config.is_local_dp,
            unit=config.privacy.unit,
            num_subgroups=len(config.data.subgroup_names),
        )
        home = HarnessHome(name, config.seed, config.private, durable=False, root=self.folder, ledger=ledger)
        return ClientSession(name, rows, self.trainer, policy, home, streams=streams)

    def ask(
        self,
        kind: str,
        images: Images,
        *,
        streams: FreshStreams = FRESH_STREAMS,
        arrays: Arrays | None = None,
        server_round: int = 1,
        settings: Mapping[str, Scalar] | None = None,
        run: str = "",
        ledger: str = "",
        policy: Path | None = None,
        name: str = "bench",
    ) -> Observation:
        """Send one message to the client with some images, observing its answer.

        Args:
            kind: `query`, `query.close`, `train` or `evaluate`.
            images: Images of the client.
            streams: Makes the client's streams.
            arrays: Model in the message; the run's initial model by default.
            server_round: From 1.
            settings: Additional settings in the message.
            run: Name of the run, 32 hex digits; a new one by default.
            ledger: Folder of the ledger below the harness's folder; one folder a run by default.
            policy: Policy file of the data holder; None allows everything.
            name: Name of the client.
        """
        session = self.session(images, name, policy=policy, ledger=ledger, streams=streams)
        content = self.content(kind, arrays=arrays, server_round=server_round, settings=settings, run=run)
        return self.observe(session, kind, content)

    def observe(self, session: ClientSession, kind: str, content: RecordDict) -> Observation:
        """Observe a client's answer to one message."""
        with log_lines() as lines:
            reply = self.send(self.app(session), kind, content)
        failure = str(reply.error.reason) if reply.has_error() else ""
        left = RecordDict() if failure else reply.content
        draws = session.streams.draws if isinstance(session.streams, RepeatedStreams) else ()
        asked = record_to_arrays(content.array_records[ARRAYS]) if ARRAYS in content else {}
        return Observation(left, failure, tuple(lines), message_bytes(reply), tuple(draws), asked)

    def content(
        self,
        kind: str,
        *,
        arrays: Arrays | None = None,
        server_round: int = 1,
        settings: Mapping[str, Scalar] | None = None,
        run: str = "",
    ) -> RecordDict:
        """Return the content of a server's message.

        The arguments are those of `ask`.
        """
        content = RecordDict({CONFIG: ConfigRecord({RUN_ID: run or secrets.token_hex(16), **(settings or {})})})
        if kind == "query":
            content.config_records[CONFIG][PROTOCOL] = PROTOCOL_VERSION
        if kind in ("train", "evaluate"):
            content.config_records[CONFIG][SERVER_ROUND] = server_round
            content[ARRAYS] = arrays_to_record(self.start if arrays is None else arrays)
        return content

    def app(self, session: ClientSession) -> ClientApp:
        """Return the real ClientApp, over one client."""
        return create_app(OneClient(session, self._parsed))

    def send(self, app: ClientApp, kind: str, content: RecordDict) -> Message:
        """Return an app's reply to one message."""
        grid = InProcessGrid(app, 1, resolved(self.config))
        return next(iter(grid.send_and_receive([grid.create_message(content, kind, 2, "")])))

    def forget(self, ledger: str) -> None:
        """Remove the folder of a ledger, of which audits make thousands."""
        close_below(self.folder / ledger)
        shutil.rmtree(self.folder / ledger, ignore_errors=True)

    def counts(self, kind: CountsKind) -> np.ndarray:
        """Return the noise of an evaluation's counts, shape (k,), int64.

        These are the noised counts of no images. No message is sent, because two thousand of them would take minutes.

        Args:
            kind: A round's pair of counts, or what leaves at the end.
        """
        session = self.session(self.images.without_training().without_held_out())
        evaluation = evaluate_incoming(session, self.start, {}, self.plan, closing=kind != "pair")
        if evaluation is None:
            return np.zeros(0)
        histograms, divided = evaluation.histograms, evaluation.subgroups
        part = {"scores": histograms, "confidence": histograms, "subgroups": divided}.get(kind, evaluation.noised)
        return np.zeros(0) if part is None else np.asarray(getattr(part, kind, getattr(part, "cells", None))).ravel()

    def labels(self) -> np.ndarray:
        """Return the noise of the label counts, shape (classes,), int64.

        These are the noised counts of no images.
        """
        return self.session(self.images.without_training().without_held_out()).draw_labels(self.plan)

    def noised_sum(self, seen: Observation) -> np.ndarray:
        """Return the sum of a round's noised step sums, shape (p,), float64.

        It is computed from the reply, so that any server could compute it.
        """
        if self.config.takes_statistics:
            return weighed_sums(self.config.training.statistics, seen.arrays, self.images.inputs.shape[1])
        moved = [array.astype(np.float64) - seen.arrays[name].astype(np.float64) for name, array in self.start.items()]
        rate = self.config.training.learning_rate or 0.0
        return np.concatenate([part.ravel() for part in moved]) * (self.plan.expected_batch_size / rate)

    def rounding(self) -> float:
        """Return the largest rounding error of `noised_sum`, as an L2 norm."""
        if self.config.takes_statistics:
            return _ROUNDED_SUMS
        rate = self.config.training.learning_rate or 0.0
        size = sum(array.size for array in self.start.values())
        largest = max(float(np.abs(array).max(initial=0.0)) for array in self.start.values()) + 6.0
        return float(2.0**-23 * largest * np.sqrt(size) * self.plan.expected_batch_size / rate)

    def with_settings(self, *, local_epochs: int = 1, **sections: Mapping[str, object]) -> "ClientHarness":
        """Return the harness with plain SGD and some other settings.

        Each round is counted, so that each round's release is tested. Noise at the client sets the learning rate, so
        that a round's noise moves each weight by about 1. That is where float32 resolves it best.

        Args:
            local_epochs: Passes a round.
            sections: Section of the configuration -> name of a setting -> its value.
        """
        changed = {"evaluation": {"every": 1}} | sections
        update = {name: getattr(self.config, name).model_copy(update=values) for name, values in changed.items()}
        config = self.config.model_copy(update=update)
        plain = {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "schedule": "constant", "warmup_rounds": 0}
        training = config.training.model_copy(update=plain | {"local_epochs": local_epochs, "learning_rate": 1.0})
        config = config.model_copy(update={"training": training})
        if config.is_local_dp:
            plan = config.plan(self.num_units)
            rate = plan.expected_batch_size / (plan.noise_stddev * np.sqrt(plan.steps_per_round))
            training = training.model_copy(update={"learning_rate": float(min(rate, _MAX_LEARNING_RATE))})
        return replace(self, config=config.model_copy(update={"training": training}))


@contextmanager
def log_lines() -> Iterator[list[str]]:
    """Collect the log lines of clients instead of printing them.

    An audit provokes warnings that would alarm its user.
    """
    lines: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    log, handler = logging.getLogger("bract"), Collector(logging.DEBUG)
    before = log.level
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    try:
        yield lines
    finally:
        log.removeHandler(handler)
        log.setLevel(before)
