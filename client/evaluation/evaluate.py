"""A client's evaluation of an incoming model, as far as it may leave."""

import numpy as np

from client.evaluation.private_counts import noised_histograms, noised_matrix, noised_pair, noised_subgroups
from client.session import ClientSession
from common.arrays import Arrays
from common.errors import PrivacyError
from common.messages.codec import Evaluation
from common.messages.fields import Releases
from common.metrics import Counts, NoisedCounts, count
from common.privacy.plan import PrivacyPlan
from common.score_histograms import score_histograms
from common.subgroup_counts import subgroup_counts


def evaluate_incoming(
    session: ClientSession, incoming: Arrays, own: Arrays, plan: PrivacyPlan | None, *, closing: bool
) -> Evaluation | None:
    """Evaluate an incoming model on held-out images.

    Return the counts as `privacy.metrics` lets them leave, or None for `none`. `incoming` are the tensors that travel,
    `own` the client's personal ones. The last evaluation, `closing`, returns a whole confusion matrix instead of two
    counts, with histograms of the scores and counts by subgroup if the run releases them.

    Raises:
        PrivacyError: Counts must be noised and the plan has no noise for them.
    """
    config = session.trainer.config
    if config.metrics == "none":
        return None
    if config.metrics == "exact":
        return _exact(session, incoming, own, closing=closing)
    # Without this check a missing plan would release exact counts.
    if plan is None or plan.counts is None:
        raise PrivacyError("counts may leave with noise only, and there is no plan for it")
    # One image of each unit, so that a unit changes one count by 1 and no more.
    evaluation_units = session.rows.evaluation_units
    # Without personal tensors. They depend on training images, which the noise of a count does not cover.
    model = session.common_start() | incoming
    labels = session.rows.test_labels[evaluation_units]
    logits = session.trainer.logits(model, session.rows.test_inputs[evaluation_units], apart=True)
    counts, fresh = count(logits, labels), session.streams.for_counts
    if not closing:
        if plan.counts.noise_shares:
            right = int(np.trace(counts.confusion))
            return Evaluation(noised=NoisedCounts(np.array([right, counts.num_examples - right])))
        return Evaluation(noised=noised_pair(counts, noise_stddev=plan.counts.noise_stddev, stream=fresh()))
    histograms = score_histograms(logits, labels) if config.releases_histograms else None
    subgroups = None
    if names := config.data.subgroup_names:
        # The subgroup of the image that votes, whatever the unit's other images are of.
        of_units = session.rows.test_subgroups[evaluation_units]
        subgroups = subgroup_counts(logits, labels, of_units, len(names))
    # Exact, for a secure sum: the client's share of the noise is added where they become words, and nothing else of
    # them may leave.
    if plan.counts.noise_shares:
        return Evaluation(noised=NoisedCounts(counts.confusion), histograms=histograms, subgroups=subgroups)
    matrix = noised_matrix(counts, noise_stddev=plan.counts.closing_noise_stddev, stream=fresh())
    # The plan decides, too: without its noise nothing may leave.
    if histograms is not None:
        histograms = noised_histograms(histograms, plan.counts, of_scores=fresh(), of_confidence=fresh())
    if subgroups is not None:
        subgroups = noised_subgroups(subgroups, plan.counts, stream=fresh())
    return Evaluation(noised=matrix, histograms=histograms, subgroups=subgroups)


def _exact(session: ClientSession, incoming: Arrays, own: Arrays, *, closing: bool) -> Evaluation:
    rows, evaluate, config = session.rows, session.trainer.evaluate, session.trainer.config
    logits = session.trainer.logits(session.common_start() | incoming, rows.test_inputs)
    counts = count(logits, rows.test_labels)
    histograms = score_histograms(logits, rows.test_labels) if closing and config.releases_histograms else None
    subgroups = None
    if closing and (names := config.data.subgroup_names):
        subgroups = subgroup_counts(logits, rows.test_labels, rows.test_subgroups, len(names))
    # The policy lets exact counts leave, and a loss is not a count.
    if config.private:
        return Evaluation(Counts(counts.confusion, float("nan")), histograms=histograms, subgroups=subgroups)
    personal = evaluate(own | incoming, rows.test_inputs, rows.test_labels) if own else None
    if closing or not Releases.of(config).train_loss:
        return Evaluation(counts, personal, histograms=histograms, subgroups=subgroups)
    trained = evaluate(own | incoming, rows.train_inputs, rows.train_labels)
    return Evaluation(counts, personal, trained.loss_sum / max(1, trained.num_examples))
