"""The one exception of secure aggregation and its codes."""

from enum import StrEnum

from common.errors import PrivacyError


class Refusal(StrEnum):
    """The reasons for which one side of a secure sum goes no further.

    Each value is the whole text about it, so that no text can name a secret.
    """

    TERMS = "the public constants of the secure sum contradict each other or the roster"
    ROSTER = "a client is not on the roster, or is on it twice"
    SIGNATURE = "a set-up message is not signed by the roster's key for this secure sum"
    SETUP = "the set-up messages are incomplete, changed, or out of order"
    SHARES = "sealed shares do not open, because they are damaged, of another run, or of another set-up"
    TOO_FEW = "fewer clients are left than the accounted noise and the colluding clients need"
    SURVIVORS = "the survivor set or its responders are not of this set-up"
    SECOND_SET = "another survivor set was answered in this round"
    ROUND = "the secrets of this round have been used or erased"
    RANGE = "the values do not fit into the words of the secure sum"
    MALFORMED = "a message has the wrong size or type"
    STORED = "the stored state of a secure sum is damaged or of another version of Bract: start the run anew"
    RECOVERY = "the opened secrets are not those that were promised in the set-up"


class SecureSumError(PrivacyError):
    """A step of a secure sum that was refused."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.value)
        self.refusal = refusal
