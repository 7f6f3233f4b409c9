"""The allow-list of the fields that a client may send.

`common.messages.codec` encodes and decodes the fields, `common.messages.checks` enforces the list.
"""

from dataclasses import dataclass, replace

from common.config.schema import RunConfig
from common.errors import PrivacyError
from common.privacy.mechanisms.contract import Mechanism
from common.privacy.mechanisms.registry import MECHANISMS, NO_PRIVACY
from common.statistics.sums import StatisticsKind
from common.strategies import STRATEGIES

ARRAYS, METRICS, CLIENT, LEDGER, SECURE = "arrays", "metrics", "client", "ledger", "secure"
NUM_EXAMPLES, TRAIN_LOSS = "num-examples", "train-loss"
CONFUSION, LOSS_SUM = "confusion", "loss-sum"
PERSONAL_CONFUSION, PERSONAL_LOSS_SUM = "personal-confusion", "personal-loss-sum"
CORRECT, WRONG, NOISED_CONFUSION = "noised-correct", "noised-wrong", "noised-confusion"
# The tensors of an update in 8 bits.
CODES, SCALES = "codes", "scales"
SCORE_COUNTS, CONFIDENCE_COUNTS = "score-counts", "confidence-counts"
NOISED_SCORE_COUNTS, NOISED_CONFIDENCE_COUNTS = "noised-score-counts", "noised-confidence-counts"
SUBGROUP_COUNTS, NOISED_SUBGROUP_COUNTS = "subgroup-counts", "noised-subgroup-counts"

# The masked vector of a round, which holds update and counts.
WORDS = "words"
# Message types of a secure sum: its set-up in three exchanges, and the opening of a round.
ADVERTISE, DEAL, ACCEPT, UNMASK = "query.advertise", "query.deal", "query.accept", "query.unmask"
# Keys of the reply to each of these types.
SECURE_FIELDS = {
    ADVERTISE: (
        *("index", "channel-key", "mask-keys-digest", "seeds-digest", "signature"),
        *("mask-keys", "seed-commitments", "names", "identity-keys"),
    ),
    DEAL: ("members", "boxes"),
    UNMASK: ("index", "request", "shares"),
}

DECLARATION_FIELDS = ("name", "num-units", "classes", "input-shape", "backbone-hash", "bundle")
LEDGER_FIELDS = ("ledger-id", "seq", "head", "public-key", "signature")
PERSONAL_COUNTS = (PERSONAL_CONFUSION, PERSONAL_LOSS_SUM)
HISTOGRAMS = (SCORE_COUNTS, CONFIDENCE_COUNTS)
NOISED_HISTOGRAMS = (NOISED_SCORE_COUNTS, NOISED_CONFIDENCE_COUNTS)

# Record of a reply -> its keys; None stands for the names of the tensors that travel.
Fields = dict[str, tuple[str, ...] | None]


@dataclass(frozen=True)
class Releases:
    """The choice of fields that the replies of one run carry.

    A reply has exactly these fields, no more and no fewer. A round's reply holds counts if its number is a multiple of
    `counted_every`, the closing one always. A `train_loss` is the incoming model's mean loss on training
    images, which QFedAvg weighs by. `personal` counts are of the global and of the client's own model. Both are
    impossible with a mechanism. Under `secure` nothing of this leaves by itself: masked words of all of it leave, see
    `common.messages.secure_words`. Updates of fewer than 32 `update_bits` leave rounded, see
    `common.messages.rounded_update`. With `histograms` the closing reply has those of scores and confidence too, with
    `subgroups` counts of so many subgroups. Where `statistics` are asked for, a round's reply holds these sums in place
    of a model.

    Raises:
        PrivacyError: `train_loss` or `personal` is set with a mechanism, which does not account for them.
    """

    mechanism: Mechanism = MECHANISMS[NO_PRIVACY]
    metrics: str = "exact"
    train_loss: bool = False
    personal: bool = False
    counted_every: int = 1
    update_bits: int = 32
    histograms: bool = False
    subgroups: int = 0
    statistics: StatisticsKind | None = None
    secure: bool = False

    def __post_init__(self) -> None:
        if not self.mechanism.releases_losses and (self.train_loss or self.personal):
            raise PrivacyError("losses and personal counts may not leave under this mechanism")

    @classmethod
    def of(cls, config: RunConfig) -> "Releases":
        """Return the fields that the settings of a run allow.

        Raises:
            PrivacyError: The strategy needs a field that the mechanism does not release.
        """
        personal = bool(config.model.personal) and not config.private
        needs_loss = STRATEGIES[config.strategy.name].needs_exact_loss
        every, histograms = config.evaluation.every, config.releases_histograms
        bits, subgroups = config.training.update_bits, len(config.data.subgroup_names)
        statistics = config.training.statistics if config.takes_statistics else None
        secure, exact = config.secure is not None, (needs_loss, personal)
        return cls(config.mechanism, config.metrics, *exact, every, bits, histograms, subgroups, statistics, secure)

    def in_round(self, server_round: int) -> "Releases":
        """Return the fields of one round's replies.

        They hold no counts where the round is not counted.
        """
        counted = server_round % self.counted_every == 0
        return self if counted else replace(self, metrics="none", personal=False)

    @property
    def rounded(self) -> bool:
        """True if updates leave as whole multiples of a scale."""
        return self.update_bits < 32

    @property
    def signed(self) -> bool:
        """True if replies carry the signed head of the client's ledger."""
        return self.mechanism.noise_at_client

    def fields(self, message_type: str) -> Fields:
        """Return the records of a reply to one type of message, with their keys.

        Raises:
            PrivacyError: Nothing may leave in reply to this type of message.
        """
        head: Fields = {LEDGER: LEDGER_FIELDS} if self.signed else {}
        if message_type == "query":
            return {CLIENT: DECLARATION_FIELDS} | head
        if message_type == "query.close":
            return head
        if self.secure:
            return self._secure_fields(message_type, head)
        if message_type == "train":
            return {
                ARRAYS: (CODES, SCALES) if self.rounded else None,
                METRICS: (NUM_EXAMPLES, *self._counts(closing=False), *self._extra(train=True)),
            } | head
        if message_type == "evaluate" and self.metrics != "none":
            return {METRICS: (NUM_EXAMPLES, *self._counts(closing=True), *self._extra(train=False))} | head
        raise PrivacyError(f"nothing may leave in reply to {message_type!r} in this run")

    def _secure_fields(self, message_type: str, head: Fields) -> Fields:
        if message_type == ACCEPT:
            return {}
        if message_type in SECURE_FIELDS:
            return {SECURE: SECURE_FIELDS[message_type]}
        if message_type == "train" or (message_type == "evaluate" and self.metrics != "none"):
            return {ARRAYS: (WORDS,), METRICS: (NUM_EXAMPLES,)} | head
        raise PrivacyError(f"nothing may leave in reply to {message_type!r} in this run")

    def summed(self, *, closing: bool) -> tuple[str, ...]:
        """Return the names of the counts that leave in a secure sum."""
        return self._counts(closing=closing)

    def _counts(self, *, closing: bool) -> tuple[str, ...]:
        if self.metrics == "none":
            return ()
        histograms, subgroups = closing and self.histograms, closing and self.subgroups
        if self.metrics == "private":
            more = (*(NOISED_HISTOGRAMS if histograms else ()), *((NOISED_SUBGROUP_COUNTS,) if subgroups else ()))
            return (NOISED_CONFUSION, *more) if closing else (CORRECT, WRONG)
        # A policy can allow exact counts under a mechanism, but the loss says more than counts do.
        matrix = (CONFUSION, LOSS_SUM) if self.mechanism.releases_losses else (CONFUSION,)
        return (*matrix, *(HISTOGRAMS if histograms else ()), *((SUBGROUP_COUNTS,) if subgroups else ()))

    def _extra(self, *, train: bool) -> tuple[str, ...]:
        return (PERSONAL_COUNTS if self.personal else ()) + ((TRAIN_LOSS,) if self.train_loss and train else ())
