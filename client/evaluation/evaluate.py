"""What a client says of an incoming model: exact, noised or nothing, as the run and its policy allow."""

from client.evaluation.private_counts import noised_matrix, noised_pair
from client.session import ClientSession
from client.training.trainer import Arrays
from common.errors import PrivacyError
from common.messages.codec import Evaluation
from common.messages.fields import Releases
from common.metrics import Counts
from common.privacy.plan import PrivacyPlan


def evaluate_incoming(
    session: ClientSession, incoming: Arrays, own: Arrays, plan: PrivacyPlan | None, *, closing: bool
) -> Evaluation | None:
    """Evaluate an incoming model on held-out images.

    Args:
        session: The client.
        incoming: The model that travels.
        own: The client's own tensors, where there are such.
        plan: The noise, where counts leave with noise.
        closing: The last evaluation of a run: a whole matrix instead of two counts.

    Returns:
        What may leave; None if nothing may.

    Raises:
        PrivacyError: Noise was asked for and there is no plan for it.
    """
    config = session.trainer.config
    if config.metrics == "none":
        return None
    if config.metrics == "exact":
        return _exact(session, incoming, own, closing=closing)
    if plan is None or plan.counts is None:
        raise PrivacyError("counts may leave with noise only, and there is no plan for it")
    evaluation_units = session.rows.evaluation_units
    model = session.common_start() | incoming
    counts = session.trainer.evaluate(
        model, session.rows.test_inputs[evaluation_units], session.rows.test_labels[evaluation_units], apart=True
    )
    stream = session.streams.for_counts()
    if closing:
        return Evaluation(noised=noised_matrix(counts, noise_stddev=plan.counts.closing_noise_stddev, stream=stream))
    return Evaluation(noised=noised_pair(counts, noise_stddev=plan.counts.noise_stddev, stream=stream))


def _exact(session: ClientSession, incoming: Arrays, own: Arrays, *, closing: bool) -> Evaluation:
    rows, judge, config = session.rows, session.trainer.evaluate, session.trainer.config
    counts = judge(session.common_start() | incoming, rows.test_inputs, rows.test_labels)
    if config.private:  # a loss is no count: it stays
        return Evaluation(Counts(counts.confusion, float("nan")))
    personal = judge(own | incoming, rows.test_inputs, rows.test_labels) if own else None
    if closing or not Releases.of(config).train_loss:
        return Evaluation(counts, personal)
    trained = judge(own | incoming, rows.train_inputs, rows.train_labels)
    return Evaluation(counts, personal, trained.loss_sum / max(1, trained.num_examples))
