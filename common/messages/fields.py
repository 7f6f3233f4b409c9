"""What a client may send: the closed list of fields, by kind of message and by what the run is.

`common.messages.codec` encodes, checks and decodes them.
"""

from dataclasses import dataclass

from common.config.schema import RunConfig
from common.errors import PrivacyError
from common.privacy.mechanisms import MECHANISMS, NO_PRIVACY, Mechanism

ARRAYS = "arrays"
METRICS = "metrics"
CLIENT = "client"
LEDGER = "ledger"
NUM_EXAMPLES = "num-examples"
CONFUSION = "confusion"
LOSS_SUM = "loss-sum"
PERSONAL_CONFUSION = "personal-confusion"
PERSONAL_LOSS_SUM = "personal-loss-sum"
TRAIN_LOSS = "train-loss"
CORRECT = "noised-correct"
WRONG = "noised-wrong"
NOISED_CONFUSION = "noised-confusion"

DECLARATION_FIELDS = ("name", "num-units", "classes", "input-shape", "backbone-hash", "bundle")
LEDGER_FIELDS = ("ledger-id", "seq", "head", "public-key", "signature")
PERSONAL_COUNTS = (PERSONAL_CONFUSION, PERSONAL_LOSS_SUM)

# Record -> keys of one reply; None stands for the travelling tensors' names.
Fields = dict[str, tuple[str, ...] | None]


@dataclass(frozen=True)
class Releases:
    """What the replies of one run carry: exactly these fields, no more and no fewer.

    Attributes:
        mechanism: What protects whom.
        metrics: How counts of held-out images leave.
        train_loss: Training replies carry the incoming model's mean loss on training
            images, which QFedAvg weighs by; never with a mechanism.
        personal: Counts come twice, for the global model and for the client's own;
            never with a mechanism.

    Raises:
        PrivacyError: An extra field was asked for under a mechanism, which has no event for it.
    """

    mechanism: Mechanism = MECHANISMS[NO_PRIVACY]
    metrics: str = "exact"
    train_loss: bool = False
    personal: bool = False

    def __post_init__(self) -> None:
        if not self.mechanism.releases_losses and (self.train_loss or self.personal):
            raise PrivacyError("losses and personal counts may not leave under this mechanism")

    @classmethod
    def of(cls, config: RunConfig) -> "Releases":
        """What this configuration, and nothing the server says, lets leave.

        Raises:
            PrivacyError: The strategy needs a field that the mechanism does not release.
        """
        personal = bool(config.model.personal) and not config.private
        return cls(config.mechanism, config.metrics, config.strategy.name == "QFedAvg", personal)

    @property
    def signed(self) -> bool:
        """Whether replies carry the head of the client's ledger."""
        return self.mechanism.noise_at_client

    def fields(self, message_type: str) -> Fields:
        """Record -> keys of a reply to one type of message.

        Raises:
            PrivacyError: Nothing may leave in reply to this type of message.
        """
        head: Fields = {LEDGER: LEDGER_FIELDS} if self.signed else {}
        if message_type == "query":
            return {CLIENT: DECLARATION_FIELDS} | head
        if message_type == "query.close":
            return head
        if message_type == "train":
            return {
                ARRAYS: None,
                METRICS: (NUM_EXAMPLES, *self._counts(closing=False), *self._extra(train=True)),
            } | head
        if message_type == "evaluate" and self.metrics != "none":
            return {METRICS: (NUM_EXAMPLES, *self._counts(closing=True), *self._extra(train=False))} | head
        raise PrivacyError(f"nothing may leave in reply to {message_type!r} in this run")

    def _counts(self, *, closing: bool) -> tuple[str, ...]:
        if self.metrics == "none":
            return ()
        if self.metrics == "private":
            return (NOISED_CONFUSION,) if closing else (CORRECT, WRONG)
        # Cross-entropy is no function of counts: its sum leaves without a mechanism only.
        return (CONFUSION, LOSS_SUM) if self.mechanism.releases_losses else (CONFUSION,)

    def _extra(self, *, train: bool) -> tuple[str, ...]:
        return (PERSONAL_COUNTS if self.personal else ()) + ((TRAIN_LOSS,) if self.train_loss and train else ())
