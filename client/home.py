"""The place of a client's ledger and personal tensors."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from common.errors import ConfigError
from common.ledger.data_holder import Holder, own_holder, simulated_holder
from common.system.paths import bract_home


class ClientHome(Protocol):
    """The place for everything that a client keeps between messages.

    If `durable`, what is kept survives a power failure.
    """

    @property
    def durable(self) -> bool:  # noqa: D102 -- said above
        ...

    def holder(self, run: str) -> Holder | None:
        """Return the ledger and keys for a run.

        None stands for a run in which nothing is accounted.

        Raises:
            LedgerError: The ledger's folder or keys cannot be used.
        """
        ...

    def folder(self, run: str) -> Path:
        """Return the folder below which personal tensors of a run are kept."""
        ...


@dataclass(frozen=True)
class OwnHome:
    """The home of a real client, shared by all clients of one data holder."""

    durable: ClassVar[bool] = True

    def holder(self, run: str) -> Holder:
        """Return the data holder's ledger, the same for all runs.

        Raises:
            LedgerError: The ledger's folder or keys cannot be used.
        """
        del run
        return own_holder()

    def folder(self, run: str) -> Path:
        """Return the data holder's folder, the same for all runs."""
        del run
        return bract_home() / "holder"


@dataclass(frozen=True)
class SimulatedHome:
    """The home of a simulated client, with one ledger for each run.

    Attributes:
        name: The client's name, which names its ledger.
        seed: The run's seed. A simulated client's keys follow from it, so that a simulation repeats.
        private: Whether the run keeps ledgers, as with a privacy mechanism or secure sums.
        durable: Whether ledger entries survive a power failure.
        root: The run's output folder; where this is not absolute, clients use one below `$BRACT_HOME`.
    """

    name: str
    seed: int
    private: bool
    durable: bool
    root: Path

    def holder(self, run: str) -> Holder | None:
        """Return the client's ledger of one run.

        None stands for a run that keeps no ledgers.

        Raises:
            ConfigError: This machine has not the run's folder.
            LedgerError: The ledger's folder cannot be made.
        """
        if not self.private:
            return None
        return simulated_holder(self.folder(run) / "ledgers", self.name, seed=self.seed, durable=self.durable)

    def folder(self, run: str) -> Path:
        """Return the run's own folder or one below `$BRACT_HOME`.

        Raises:
            ConfigError: This machine has not the run's folder.
        """
        # Ray and `flwr run` start clients in other working folders, so a relative path would name several places.
        if not self.root.is_absolute():
            return bract_home() / "simulations" / run
        # On a cluster a client's rounds run on several machines. Ledgers in a folder of each would know some of them.
        if not self.root.is_dir():
            raise ConfigError(
                f"the run's folder {self.root} is not on this machine, and clients keep their ledgers and personal "
                "tensors there: all nodes of a Ray cluster must share it (docs/scaling.md)"
            )
        return self.root
