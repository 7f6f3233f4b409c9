"""What a client has at hand: its rows, its model, and the guard in front of what it sends."""

import hashlib
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

from client.client_config import SITE_FILE, Site, load_site
from client.guard import Guard
from client.training.personal_tensors import PersonalState
from client.training.trainer import Arrays, Trainer
from common.config.schema import RunConfig, split_list
from common.data.client_dataset import Shard, shard
from common.data.partitioning.assignment import load_or_make_partition
from common.data.partitioning.partition import Partition
from common.data.partitioning.partitioners import hold_out
from common.data.preprocessing import Prepared, prepare
from common.data.sources.base_source import OWN_IMAGES
from common.errors import ConfigError
from common.ledger.data_holder import Holder, own_holder, simulated_holder
from common.models.weight_files import RANDOM
from common.privacy.plan import PrivacyPlan
from common.privacy.policy import ANYTHING, load_policy
from common.system.paths import bract_home

ClientRef = int | str  # number of a simulated client, or the folder of a real one


@dataclass(frozen=True)
class ClientSession:
    """One client.

    Attributes:
        name: Stable name, a public constant.
        rows: Its images as rows.
        trainer: Trains and scores.
        policy_file: The holder's policy; None where anything goes, because whoever simulates sets both sides.
        place: See `client_ref`.
        pinned: Digest of the bundle of code that this client runs, and no other; empty if it runs any.
    """

    name: str
    rows: Shard
    trainer: Trainer
    policy_file: Path | None
    place: ClientRef
    pinned: str = ""

    @property
    def travelling(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the tensors that travel."""
        return _travelling(self.trainer)

    def common_start(self) -> Arrays:
        """The values that tensors which stay with clients start from, everywhere."""
        return _common_start(self.trainer)

    def guard(self, run: str) -> Guard:
        """The guard of this client in one run.

        Raises:
            ConfigError: The policy cannot be used.
            LedgerError: The holder's folder cannot be used.
        """
        config = self.trainer.config
        held = (self.rows.train_holdings, self.rows.test_holdings)
        policy = ANYTHING if self.policy_file is None else load_policy(self.policy_file)  # as it is now
        return Guard(config, self.name, policy, self._holder(run), self.plan, held)

    @cached_property
    def plan(self) -> PrivacyPlan | None:
        """The whole plan, where the client adds the noise itself.

        Raises:
            ConfigError: The run's settings admit none for so many units.
        """
        config = self.trainer.config
        return config.plan(self.rows.num_units) if config.is_local_dp else None

    def _holder(self, run: str) -> Holder | None:
        config = self.trainer.config
        if isinstance(self.place, str):
            return own_holder()
        if not config.private:
            return None  # a simulation that protects nobody has nothing to account for
        durable = config.system.ledger == "durable"
        return simulated_holder(
            simulation_folder(config, run) / "ledgers", self.name, seed=config.seed, durable=durable
        )

    def personal(self, run: str) -> PersonalState:
        """Where tensors that stay at this client are kept: in one run, under one plan, and in no other."""
        config = self.trainer.config
        home = bract_home() / "holder" if isinstance(self.place, str) else simulation_folder(config, run)
        protected = config.privacy.mechanism if self.plan is None else self.plan.digest
        agreed = hashlib.sha256(f"{run}\x1f{protected}".encode()).hexdigest()[:32]
        return PersonalState(home / "personal" / agreed / self.name)


def simulation_folder(config: RunConfig, run: str) -> Path:
    """Where simulated clients keep what real ones would keep at home: in the run's own folder, if all know it."""
    folder = Path(config.output_dir)
    return folder if folder.is_absolute() else bract_home() / "simulations" / run


@lru_cache(maxsize=64)
def open_session(config: RunConfig, place: ClientRef) -> ClientSession:
    """What the client at a place has at hand for a run.

    Raises:
        ConfigError: The client's own files are wrong, or the run lacks what a real client needs.
        DataError: Its images are missing or unusable.
        WeightsError: The backbone's weights are missing or wrong.
    """
    if isinstance(place, str):
        return _own(config, load_site(Path(place)))
    prepared, partition = _population(config)
    rows = shard(prepared, partition, place, private=config.is_local_dp, unit=config.privacy.unit)
    policy = Path(config.privacy.policy) if config.privacy.policy else None
    return ClientSession(
        client_name(place), rows, Trainer(config, prepared.inputs.shape[1:], prepared.classes), policy, place
    )


def _own(config: RunConfig, site: Site) -> ClientSession:
    if config.data.source != OWN_IMAGES:
        raise ConfigError(f"this run is a simulation's: a run over clients with images of their own has {OWN_IMAGES!r}")
    if len(split_list(config.data.classes)) < 2:
        raise ConfigError(
            "a run over clients with images of their own needs data.classes: nobody may learn it from them"
        )
    data = config.data.model_copy(update={"source": site.source, "path": site.path})
    model = config.model.model_copy(update={"weights": _own_weights(config.model.weights, site)})
    config = config.model_copy(update={"data": data, "model": model})
    prepared = prepare(config, shows_nothing=True)
    rows = shard(prepared, _everything(prepared, site), 0, private=config.is_local_dp, unit=config.privacy.unit)
    trainer = Trainer(config, prepared.inputs.shape[1:], prepared.classes)
    return ClientSession(site.name, rows, trainer, site.policy_file, str(site.folder))


def _own_weights(named: str, site: Site) -> str:
    """A file is the client's own choice: what a server named would be read, and its hash sent back."""
    if named in ("", RANDOM):
        return named
    if not site.weights:
        raise ConfigError(f"the run's weights are a file: name yours as weights in {site.folder / SITE_FILE}")
    return str(site.folder / site.weights)


def _everything(prepared: Prepared, site: Site) -> Partition:
    """All images are this client's; which are held out follows from the holder's own key, for ever."""
    count = len(prepared.labels)
    if prepared.num_train < count:
        held_out = np.arange(count) >= prepared.num_train
    else:
        units = prepared.digests if prepared.unit_digests is None else prepared.unit_digests
        held_out = hold_out(units, fraction=site.test_fraction, key=own_holder().keys.fingerprint)
    return Partition(
        owner=np.zeros(count, dtype=np.int32),
        held_out=held_out & prepared.usable,
        num_units=np.array([site.num_images]),
        num_groups=np.array([site.num_groups]),
        images_unused=0,
    )


@lru_cache(maxsize=4)
def _travelling(trainer: Trainer) -> dict[str, tuple[int, ...]]:
    return {name: shape for name, shape in trainer.trainable.items() if name not in trainer.personal}


@lru_cache(maxsize=1)
def _common_start(trainer: Trainer) -> Arrays:
    return trainer.initial_personal()


@lru_cache(maxsize=1)
def _population(config: RunConfig) -> tuple[Prepared, Partition]:
    prepared = prepare(config)
    return prepared, load_or_make_partition(config, prepared)


def client_name(partition_id: int) -> str:
    """Stable name of a simulated client; it sorts like its number."""
    return f"{partition_id:05d}"
