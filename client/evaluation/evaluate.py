"""What a client says of an incoming model: exact, noised or nothing, as the run and its policy allow."""

from client.evaluation.private_counts import noised_matrix, noised_pair
from client.session import Local
from client.training.trainer import Arrays
from common.errors import PrivacyError
from common.messages.codec import Findings
from common.messages.fields import Releases
from common.metrics import Counts
from common.privacy.noise import SecureStream
from common.privacy.plan import PrivacyPlan


def findings_of(
    local: Local, incoming: Arrays, own: Arrays, plan: PrivacyPlan | None, *, closing: bool
) -> Findings | None:
    """Evaluate an incoming model on held-out images.

    Args:
        local: The client.
        incoming: The model that travels.
        own: The client's own tensors, where there are such.
        plan: The noise, where counts leave with noise.
        closing: The last evaluation of a run: a whole matrix instead of two counts.

    Returns:
        What may leave; None if nothing may.

    Raises:
        PrivacyError: Noise was asked for and there is no plan for it.
    """
    config = local.learner.config
    if config.metrics == "none":
        return None
    if config.metrics == "exact":
        return _exact(local, incoming, own, closing=closing)
    if plan is None or plan.counts is None:
        raise PrivacyError("counts may leave with noise only, and there is no plan for it")
    voters = local.rows.voters
    model = local.common_start() | incoming
    counts = local.learner.evaluate(model, local.rows.test_inputs[voters], local.rows.test_labels[voters], apart=True)
    stream = SecureStream()
    if closing:
        return Findings(noised=noised_matrix(counts, noise_stddev=plan.counts.closing_noise_stddev, stream=stream))
    return Findings(noised=noised_pair(counts, noise_stddev=plan.counts.noise_stddev, stream=stream))


def _exact(local: Local, incoming: Arrays, own: Arrays, *, closing: bool) -> Findings:
    rows, judge, config = local.rows, local.learner.evaluate, local.learner.config
    counts = judge(local.common_start() | incoming, rows.test_inputs, rows.test_labels)
    if config.private:  # a loss is no count: it stays
        return Findings(Counts(counts.confusion, float("nan")))
    personal = judge(own | incoming, rows.test_inputs, rows.test_labels) if own else None
    if closing or not Releases.of(config).train_loss:
        return Findings(counts, personal)
    trained = judge(own | incoming, rows.train_inputs, rows.train_labels)
    return Findings(counts, personal, trained.loss_sum / max(1, trained.num_examples))
