"""The exception tree, and the only words about a failure that may leave a client."""

from enum import IntEnum


class BractError(Exception):
    """A problem the user can act on; its message is the whole story, no traceback needed."""


class ConfigError(BractError):
    """A setting is unknown, mistyped, out of range, or clashes with another."""


class DataError(BractError):
    """Images are missing, unusable, or too few for what was asked."""


class WeightsError(BractError):
    """Pretrained weights are missing or are not the ones that were agreed on."""


class PrivacyError(BractError):
    """The guarantee that was asked for cannot be given exactly as accounted."""


class PolicyError(PrivacyError):
    """The data holder's policy, or what is left of a budget, does not allow what was asked."""


class BundleError(PrivacyError):
    """The code that a server sent is not the code that is pinned here, or no bundle at all: nothing of it may run."""


class LedgerError(PrivacyError):
    """A ledger is damaged, older than it should be, or cannot be written: nothing may be computed."""


class FederationError(BractError):
    """Clients disagree with each other, or too few of them answered."""


class ClientFailure(IntEnum):
    """Closed list of failure codes; nothing else about a failure leaves a client.

    Source: rule 3 of the privacy rules. Flower would send the text of any
    exception to the server, and that text can name files, labels and shapes.
    """

    INTERNAL = 1000
    CONFIG = 1001
    DATA = 1002
    WEIGHTS = 1003
    PRIVACY = 1004
    MESSAGE = 1005
    POLICY = 1006
    LEDGER = 1007
    BUNDLE = 1008

    @classmethod
    def of(cls, error: Exception) -> "ClientFailure":
        """The code for an exception; anything unexpected is `INTERNAL`.

        >>> ClientFailure.of(DataError("3 unreadable files in /ward-7")).name
        'DATA'
        >>> ClientFailure.of(KeyError("patient-4711")).name
        'INTERNAL'
        """
        kinds: list[tuple[type[Exception], ClientFailure]] = [
            (ConfigError, cls.CONFIG),
            (DataError, cls.DATA),
            (WeightsError, cls.WEIGHTS),
            (PolicyError, cls.POLICY),
            (LedgerError, cls.LEDGER),
            (BundleError, cls.BUNDLE),
            (PrivacyError, cls.PRIVACY),
            (FederationError, cls.MESSAGE),
        ]
        return next((code for kind, code in kinds if isinstance(error, kind)), cls.INTERNAL)
