"""What a client may send: the closed list of fields, by kind of message and by what the run is.

`common.records` encodes, checks and decodes them.
"""

from dataclasses import dataclass

from common.errors import PrivacyError
from common.sections import RunConfig

ARRAYS = "arrays"
METRICS = "metrics"
CLIENT = "client"
NUM_EXAMPLES = "num-examples"
CONFUSION = "confusion"
LOSS_SUM = "loss-sum"
PERSONAL_CONFUSION = "personal-confusion"
PERSONAL_LOSS_SUM = "personal-loss-sum"
TRAIN_LOSS = "train-loss"

# message type -> record -> keys that may leave a client; None stands for the travelling tensors' names.
_DECLARATION = ("name", "num-units", "classes", "input-shape", "backbone-hash")
PERSONAL_COUNTS = (PERSONAL_CONFUSION, PERSONAL_LOSS_SUM)
ALLOWED_REPLIES: dict[tuple[str, bool], dict[str, tuple[str, ...] | None]] = {
    ("query", True): {CLIENT: _DECLARATION},
    ("query", False): {CLIENT: _DECLARATION},
    ("train", True): {ARRAYS: None, METRICS: (NUM_EXAMPLES,)},
    ("train", False): {ARRAYS: None, METRICS: (NUM_EXAMPLES, CONFUSION, LOSS_SUM)},
    ("evaluate", False): {METRICS: (NUM_EXAMPLES, CONFUSION, LOSS_SUM)},
}


@dataclass(frozen=True)
class Releases:
    """What the replies of one run carry: exactly these fields, no more and no fewer.

    Attributes:
        private: Whether a privacy mechanism is on.
        train_loss: Training replies carry the incoming model's mean loss on training
            images, which QFedAvg weighs by; never with a mechanism.
        personal: Counts come twice, for the global model and for the client's own;
            never with a mechanism.

    Raises:
        PrivacyError: An extra field was asked for under a mechanism, which has no event for it.
    """

    private: bool = False
    train_loss: bool = False
    personal: bool = False

    def __post_init__(self) -> None:
        if self.private and (self.train_loss or self.personal):
            raise PrivacyError("losses and counts may not leave under this mechanism")

    @classmethod
    def of(cls, config: RunConfig) -> "Releases":
        """What this configuration, and nothing the server says, lets leave.

        Raises:
            PrivacyError: The strategy needs a field that the mechanism does not release.
        """
        personal = bool(config.model.personal) and not config.private
        return cls(config.private, config.strategy.name == "QFedAvg", personal)

    def fields(self, message_type: str) -> dict[str, tuple[str, ...] | None]:
        """Record -> keys of a reply to one type of message; None stands for the travelling tensors' names.

        Raises:
            PrivacyError: Nothing may leave in reply to this type of message.
        """
        allowed = ALLOWED_REPLIES.get((message_type, self.private))
        if allowed is None:
            raise PrivacyError(f"nothing may leave in reply to {message_type!r} under this mechanism")
        extra: tuple[str, ...] = PERSONAL_COUNTS if self.personal else ()
        extra += (TRAIN_LOSS,) if self.train_loss and message_type == "train" else ()
        if METRICS not in allowed or not extra:
            return allowed
        return allowed | {METRICS: (*(allowed[METRICS] or ()), *extra)}
