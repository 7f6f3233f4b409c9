"""The sessions of clients, opened once for all messages of a run."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

from client.client_config import SITE_FILE, Site, load_site
from client.guard import Guard
from client.home import ClientHome, OwnHome, SimulatedHome
from client.secure.party import Party, own_party, simulated_party
from client.secure.secrets_file import SecretsFile
from client.training.class_weights import noised_label_counts
from client.training.dp_sgd import FRESH_STREAMS, FreshStreams
from client.training.personal_tensors import PersonalState
from client.training.trainer import Trainer
from common.arrays import Arrays
from common.config.loading import Scalar, parse
from common.config.schema import RunConfig
from common.data.client_dataset import Shard, shard
from common.data.image_digests import ImageDigests
from common.data.partitioning.assignment import load_or_make_partition
from common.data.partitioning.partition import Partition
from common.data.partitioning.partitioners import hold_out
from common.data.partitioning.subgroups import subgroups_of
from common.data.preprocessing import Prepared, prepare
from common.data.scan import Scan
from common.data.sources.base_source import OWN_IMAGES
from common.errors import ConfigError
from common.ledger.data_holder import own_holder
from common.ledger.identity_key import simulated_roster
from common.ledger.image_index import charged_by_earlier_code
from common.models.weight_files import RANDOM
from common.privacy.plan import PrivacyPlan
from common.privacy.policy import ANYTHING, load_policy
from common.secagg.protocol.roster import Roster

ClientRef = int | str  # number of a simulated client, or the folder of a real one
_RUNS, _SESSIONS = 4, 64


@dataclass(frozen=True)
class ClientSession:
    """The data, model, policy and ledger of a client in a run.

    Attributes:
        name: Stable name of the client, a public constant.
        rows: The client's training and held-out data.
        trainer: Trains and scores models as the run's configuration says.
        policy_file: The data holder's policy; None where a simulation allows everything.
        home: Where the ledger and personal tensors are kept.
        pinned: Digest of the only bundle of code that this client runs; empty if it runs any.
        party: Its identity and roster, where updates leave in secure sums only.
        streams: Makes the streams that sampling and noise draw from. Production code never sets it: no message, no
            setting and no file can. A run under other streams is NOT PRIVATE.
    """

    name: str
    rows: Shard
    trainer: Trainer
    policy_file: Path | None
    home: ClientHome
    pinned: str = ""
    party: Party | None = None
    streams: FreshStreams = FRESH_STREAMS

    @cached_property
    def travelling(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the tensors that travel between client and server."""
        personal = self.trainer.personal
        return {name: shape for name, shape in self.trainer.trainable.items() if name not in personal}

    def common_start(self) -> Arrays:
        """Return the values that personal tensors start from, equal at all clients."""
        return self.trainer.initial_personal()

    def guard(self, run: str) -> Guard:
        """Return the guard of this client in one run.

        Raises:
            ConfigError: The policy cannot be used.
            LedgerError: The data holder's folder cannot be used.
        """
        config = self.trainer.config
        digests = (self.rows.train_holdings, self.rows.test_holdings)
        if config.mechanism.clips_clients:
            # All of the client's images are one unit: a server that sees two of its sums sees both through one client.
            digests = (digests[0].as_one_unit(), digests[1].as_one_unit())
        # Read the policy for each message: its holder may have tightened it since the last one.
        policy = ANYTHING if self.policy_file is None else load_policy(self.policy_file)
        return Guard(config, self.name, policy, self.home.holder(run), self.plan, digests)

    @cached_property
    def plan(self) -> PrivacyPlan | None:
        """Privacy plan of the whole run, None without noise at the client.

        Raises:
            ConfigError: The run's settings allow no plan for the client's number of units.
        """
        config = self.trainer.config
        return config.plan(self.rows.num_units) if config.is_local_dp else None

    def train(
        self,
        arrays: Arrays,
        *,
        server_round: int,
        plan: PrivacyPlan | None,
        label_counts: np.ndarray | None = None,
    ) -> Arrays:
        """Train on the client's rows for one round by `Trainer.train`.

        Raises:
            PrivacyError: The run wants noise and there is no plan, or the other way round.
        """
        return self.trainer.train(
            arrays,
            self.rows,
            name=self.name,
            server_round=server_round,
            plan=plan,
            streams=self.streams,
            label_counts=label_counts,
        )

    def gradient_sum(
        self, arrays: Arrays, *, server_round: int, plan: PrivacyPlan, label_counts: np.ndarray | None
    ) -> np.ndarray:
        """Return the clipped gradient sum over the client's rows by `Trainer.gradient_sum`."""
        return self.trainer.gradient_sum(
            arrays, self.rows, name=self.name, server_round=server_round, plan=plan, label_counts=label_counts
        )

    def draw_labels(self, plan: PrivacyPlan) -> np.ndarray:
        """Count the client's training labels by `noised_label_counts`."""
        return noised_label_counts(self.rows, len(self.trainer.classes), plan, self.streams)

    def secrets(self, run: str) -> SecretsFile:
        """Return the file of this client's mask secrets in one run."""
        return SecretsFile.of(self.home.folder(run), run, self.name, durable=self.home.durable)

    def personal(self, run: str) -> PersonalState:
        """Return the store of personal tensors of one run under one plan."""
        protected = self.trainer.config.privacy.mechanism if self.plan is None else self.plan.digest
        # Another plan gets another store: tensors trained without noise must never start a private run.
        agreed = hashlib.sha256(f"{run}\x1f{protected}".encode()).hexdigest()[:32]
        folder = self.home.folder(run) / "personal" / agreed / self.name
        return PersonalState(folder, durable=self.home.durable)


@dataclass(frozen=True, eq=False)
class RunClients:
    """The clients of one run in this process.

    Simulated clients share their images and trainer.

    Attributes:
        config: The run.
    """

    config: RunConfig

    def open(self, place: ClientRef, pinned: str = "") -> ClientSession:
        """Open the session of one client.

        Args:
            place: Number of a simulated client, or folder of a real one.
            pinned: See `ClientSession`.

        Raises:
            ConfigError: The client's own files are wrong, or the run lacks what a real client needs.
            DataError: Its images are missing or unusable.
            WeightsError: The backbone's weights are missing or wrong.
        """
        return self._own(load_site(Path(place)), pinned) if isinstance(place, str) else self._simulated(place, pinned)

    def _simulated(self, number: int, pinned: str) -> ClientSession:
        prepared, partition = self._population
        config, name = self.config, client_name(number)
        rows = shard(
            prepared,
            partition,
            number,
            private=config.mechanism.clips_units,
            unit=config.privacy.unit,
            subgroups=self._subgroups,
        )
        policy = Path(config.privacy.policy) if config.privacy.policy else None
        durable = config.system.ledger == "durable"
        # Secure sums need the ledger too, where nothing is accounted: it says which round was answered.
        keeps_ledger = config.private or config.secure is not None
        home = SimulatedHome(name, config.seed, keeps_ledger, durable, Path(config.output_dir))
        party = simulated_party(name, self._roster, seed=config.seed) if config.secure else None
        return ClientSession(name, rows, self._trainer, policy, home, pinned=pinned, party=party)

    # Shared by all simulated clients: loading the images, or building the first model, takes seconds.
    @cached_property
    def _population(self) -> tuple[Prepared, Partition]:
        prepared = prepare(self.config)
        return prepared, load_or_make_partition(self.config, prepared)

    @cached_property
    def _roster(self) -> Roster:
        return simulated_roster(self.config.seed, map(client_name, range(self.config.num_clients)))

    @cached_property
    def _subgroups(self) -> np.ndarray | None:
        prepared, _ = self._population
        return subgroups_of(self.config.data, len(prepared.scan.labels))

    @cached_property
    def _trainer(self) -> Trainer:
        prepared, _ = self._population
        return Trainer(self.config, prepared.inputs.shape[1:], prepared.scan.classes)

    def _own(self, site: Site, pinned: str) -> ClientSession:
        config = self.config
        if config.data.source != OWN_IMAGES:
            raise ConfigError(
                f"data.source={config.data.source!r} is for simulations: a run over clients with images of their own "
                f"needs data.source={OWN_IMAGES!r}"
            )
        # A list made from the images would tell the server which classes a client has.
        if len(config.data.class_names) < 2:
            raise ConfigError("data.classes is missing: a run over clients with images of their own must name them")
        # The use of a part is the holder's: a server must not move an image between training and evaluation.
        own = {"source": site.source, "path": site.path, "validation": site.validation}
        data = config.data.model_copy(update=own)
        model = config.model.model_copy(update={"weights": _own_weights(config.model.weights, site)})
        config = config.model_copy(update={"data": data, "model": model})
        prepared = prepare(config, shows_nothing=True)
        partition = _everything(prepared, site)
        subgroups = subgroups_of(data, len(prepared.scan.labels), joined=True)
        rows = shard(
            prepared, partition, 0, private=config.mechanism.clips_units, unit=config.privacy.unit, subgroups=subgroups
        )
        trainer = Trainer(config, prepared.inputs.shape[1:], prepared.scan.classes)
        party = own_party(site, load_policy(site.policy_file), config.secure) if config.secure else None
        return ClientSession(site.name, rows, trainer, site.policy_file, OwnHome(), pinned=pinned, party=party)


def _own_weights(named: str, site: Site) -> str:
    """Return the client's own weights file wherever the run names a file.

    A path from the server would be read here, and its hash sent back: that tells the server which files exist.
    """
    if named in ("", RANDOM):
        return named
    if not site.weights:
        raise ConfigError(
            f"model.weights is a file in this run: name your own copy as weights in {site.folder / SITE_FILE}"
        )
    return str(site.folder / site.weights)


def _everything(prepared: Prepared, site: Site) -> Partition:
    """Return a partition that gives all images to this client."""
    count = len(prepared.scan.labels)
    if prepared.scan.num_train < count:
        held_out = np.arange(count) >= prepared.scan.num_train
    else:
        # The split follows from the holder's key alone, so no server can move a unit from one side to the other.
        held_out = hold_out(_split_names(prepared.scan), fraction=site.test_fraction, key=own_holder().keys.fingerprint)
    return Partition(
        owner=np.zeros(count, dtype=np.int32),
        held_out=held_out & prepared.scan.usable,
        num_units=np.array([site.num_images]),
        num_groups=np.array([site.num_groups]),
        images_unused=0,
    )


def _split_names(scan: Scan) -> np.ndarray:
    """Return the names that decide each image's side of the split, (n, 32) uint8."""
    units = scan.digests if scan.unit_digests is None else scan.unit_digests
    renamed = np.flatnonzero(scan.earlier_digests.any(axis=1) & (units == scan.digests).all(axis=1))
    if not len(renamed):
        return units
    # An image that earlier code has charged under another name must stay on its side.
    part = ImageDigests(scan.file_digests[renamed], scan.digests[renamed], renamed, scan.earlier_digests[renamed])
    holder, names = own_holder(), units.copy()
    with holder.open_session() as session:
        charged = renamed[charged_by_earlier_code(session.ledger, holder.keys, part)]
    names[charged] = scan.earlier_digests[charged]
    return names


class SessionCache:
    """Configurations and sessions that a process keeps from message to message.

    The module of a ClientApp owns one. A harness overrides `open` to put a client of its own in place.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget everything, as a new process would."""
        self._config = lru_cache(maxsize=_RUNS)(lambda items: parse(dict(items)))
        self._clients = lru_cache(maxsize=1)(RunClients)
        self._session = lru_cache(maxsize=_SESSIONS)(lambda config, *place: self._clients(config).open(*place))

    def config(self, settings: Mapping[str, Scalar]) -> RunConfig:
        """Parse a message's run configuration.

        Raises:
            ConfigError: A setting is unknown, missing or out of range.
        """
        return self._config(tuple(sorted(settings.items())))

    def open(self, config: RunConfig, place: ClientRef, pinned: str) -> ClientSession:
        """Open the session of a message's client by `RunClients.open`."""
        return self._session(config, place, pinned)


def client_name(partition_id: int) -> str:
    """Return the stable name of a simulated client.

    Names sort like the numbers.
    """
    return f"{partition_id:05d}"
