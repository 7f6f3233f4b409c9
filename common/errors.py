"""The exceptions of Bract and the failure codes of a client."""

from enum import IntEnum


class BractError(Exception):
    """A problem that the user can fix.

    The message says what is wrong and what to do; commands show it without a traceback.
    """


class ConfigError(BractError):
    """A setting that is unknown, mistyped, out of range or in conflict with another."""


class DataError(BractError):
    """Images that are missing, unusable or too few."""


class WeightsError(BractError):
    """Pretrained weights that are missing or differ from the agreed ones."""


class ModelError(BractError):
    """A stored model that is damaged or does not fit its card."""


class PrivacyError(BractError):
    """A privacy guarantee that cannot hold as it would be accounted."""


class PolicyError(PrivacyError):
    """A request that the data holder's policy or remaining budget does not allow."""


class BundleError(PrivacyError):
    """A bundle of code that must not run, unreadable or not the pinned one."""


class LedgerError(PrivacyError):
    """A ledger that is damaged, out of date or not writable.

    Nothing may be computed from private data, because it could not be charged.
    """


class FederationError(BractError):
    """Clients that disagree, break the agreed format or are too few."""


class NotFiniteError(FederationError):
    """An update that is not finite, as from training that diverged."""


class ClientFailure(IntEnum):
    """The failure codes of a client.

    Nothing else about a failure leaves a client. Flower would send the text of any exception to the server, and that
    text can name files, labels and shapes.
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
        """Return the code of an exception, `INTERNAL` for an unexpected one.

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
