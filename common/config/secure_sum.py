"""Public constants of secure aggregation."""

from collections.abc import Iterable
from dataclasses import dataclass

from common.config.sections import TrainingConfig
from common.errors import ConfigError
from common.privacy.batched_gradients import AUTO

# With one honest client and a colluding one, a sum of two would show the honest update.
_FEWEST_HONEST = 2
# Whether a setting is wrong, its key and the remedy.
_Conflict = tuple[bool, str, str]


@dataclass(frozen=True)
class SecureSum:
    """Public constants under which clients sum their updates unseen.

    Attributes:
        num_clients: Clients of the run, all of which take part in the set-up.
        colluding: Most clients that collude with the server.
        honest: Fewest honest clients in a sum that is opened.
    """

    num_clients: int
    colluding: int
    honest: int

    @classmethod
    def of(cls, num_clients: int, colluding: int, honest: int | None = None) -> "SecureSum":
        """Return the constants of a run, `honest` by rule where it is None.

        By rule the smallest sum has as many clients as the shares need, see `threshold`.

        >>> SecureSum.of(5, 1).honest, SecureSum.of(10, 2).honest
        (3, 5)

        Raises:
            ConfigError: So many clients cannot keep these numbers.
        """
        most = num_clients - colluding
        if most < _FEWEST_HONEST:
            raise ConfigError(
                f"privacy.aggregation='secure' needs {_FEWEST_HONEST} honest clients beside the "
                f"{colluding} of privacy.secure-colluding, and num-clients={num_clients}: raise num-clients"
            )
        by_rule = max(_FEWEST_HONEST, cls(num_clients, colluding, 0).threshold - colluding)
        chosen = by_rule if honest is None else honest
        if not _FEWEST_HONEST <= chosen <= most:
            raise ConfigError(
                f"privacy.secure-honest={chosen} must be from {_FEWEST_HONEST} to {most}, which is num-clients - "
                "privacy.secure-colluding"
            )
        return cls(num_clients, colluding, chosen)

    @property
    def threshold(self) -> int:
        """Number of shares that open a mask, more than (n + c) / 2.

        Each honest client gives its shares for one set of survivors, so no two sets can both be opened.
        """
        return (self.num_clients + self.colluding) // 2 + 1

    @property
    def min_survivors(self) -> int:
        """Fewest clients of a sum that is opened."""
        return self.honest + self.colluding

    @property
    def most_exposed(self) -> int:
        """Most holders of a value that may be one honest client's."""
        # Clients that are lost add nothing, and those that collude subtract their own parts.
        return self.num_clients - self.min_survivors + self.colluding + 1


def gradient_sum_conflicts(
    training: TrainingConfig, batch_size: int | None, local_epochs: int
) -> tuple[_Conflict, ...]:
    """Return what clients cannot do where they send one gradient sum a round."""
    return (
        (training.optimizer != "sgd", "training.optimizer", "use sgd"),
        (batch_size is not None, "training.batch-size", "leave it empty, as every image is in the sum"),
        (local_epochs != 1, "training.local-epochs", "leave it empty, as the server makes the steps"),
        (training.gradients != AUTO, "training.gradients", "leave it at auto"),
        (training.weight_decay != 0, "training.weight-decay", "leave it at 0"),
        (training.schedule != "constant" or training.warmup_rounds > 0, "training.schedule", "leave it constant"),
    )


def refuse_conflicts(conflicts: Iterable[_Conflict]) -> None:
    """Refuse settings that do not go with a secure sum.

    Raises:
        ValueError: One of them is wrong.
    """
    for is_wrong, key, remedy in conflicts:
        if is_wrong:
            raise ValueError(
                f"{key} does not go with privacy.aggregation='secure', under which the server sees no single update: "
                f"{remedy}"
            )
