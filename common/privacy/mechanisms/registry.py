"""Privacy mechanisms by name.

Only this room and `common.config` know mechanisms by name. All other code asks the object that `mechanism_named` or
`RunConfig.mechanism` returns, so that a new mechanism is a new class here and a row in `MECHANISMS`.
"""

from collections.abc import Mapping
from types import MappingProxyType

from common.errors import ConfigError
from common.privacy.mechanisms.client_dp import ClientDp
from common.privacy.mechanisms.contract import Mechanism
from common.privacy.mechanisms.dp_sgd import DpSgd
from common.privacy.mechanisms.dp_statistics import DpStatistics

MECHANISMS: Mapping[str, Mechanism] = MappingProxyType(
    {mechanism.name: mechanism for mechanism in (Mechanism(), DpSgd(), ClientDp(), DpStatistics())}
)
NO_PRIVACY = Mechanism.name
DEFAULT_MECHANISM = DpSgd.name


def mechanism_named(name: str) -> Mechanism:
    """Return the mechanism of a setting, a plan or a statement.

    Raises:
        ConfigError: This version knows no mechanism of that name.
    """
    try:
        return MECHANISMS[name]
    except KeyError:
        raise ConfigError(f"{name!r} is not a privacy mechanism; there are {', '.join(MECHANISMS)}") from None


def names_where(attribute: str) -> tuple[str, ...]:
    """Return the names of the mechanisms that have a property.

    >>> names_where("noise_at_server")
    ('client-dp',)
    """
    return tuple(name for name, mechanism in MECHANISMS.items() if getattr(mechanism, attribute))
