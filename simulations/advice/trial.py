"""Trials of settings on a synthetic federation.

Plans, clipping, steps and heads are the product's own functions. Nobody's data are here, so a public stream draws the
noise, and a trial repeats. All steps of a round start from one model, as if clients exchanged models after each.
"""

import math

import numpy as np

from client.training.head_sgd import train_head
from client.training.round_settings import settings_of
from common.arrays import Arrays
from common.models.linear_head import HEAD_WEIGHT
from common.privacy.clipping import clipped_sum
from common.statistics.head import solve_head
from common.statistics.sums import from_contribution, statistics_of, to_contribution, unit_factors
from server.aggregation.summed_steps import SummedSteps
from simulations.advice.candidates import Candidate
from simulations.advice.federation import SyntheticFederation

# An average of so many clients' updates differs little from that of more.
_FEW_CLIENTS = 10
# Steps without noise, each as long as so many clip bounds. Longer training does not help on these tasks.
_STEPS, _STEP, _BOUND, _MOMENTUM = 60, 60.0, 0.1, 0.9


def error_of_trial(candidate: Candidate, federation: SyntheticFederation, rng: np.random.Generator) -> float:
    """Return the test error that a candidate's settings lead to.

    `rng` is a public stream.
    """
    if candidate.config.takes_statistics:
        head = _head_of_statistics(candidate, federation, rng)
    elif candidate.protects_clients:
        head = _head_of_updates(candidate, federation, rng)
    elif candidate.plans[0].noise_shares:
        head = _head_of_sums(candidate, federation, rng)
    else:
        head = _head_of_own_steps(candidate, federation, rng)
    return federation.error_of(head)


def error_without_noise(federation: SyntheticFederation) -> float:
    """Return the test error of the best of many steps along exact gradient sums.

    The best one, as the few drawn images overfit where all that they stand for would not.
    """
    head, errors, momentum = federation.initial_head(), [], 0.0
    for _ in range(_STEPS):
        total = np.sum(federation.gradient_sums(head, max_grad_norm=_BOUND), axis=0)
        momentum = _MOMENTUM * momentum + total / federation.total_units
        head = {HEAD_WEIGHT: (head[HEAD_WEIGHT] - _STEP / _BOUND * momentum).astype(np.float32)}
        errors.append(federation.error_of(head))
    return min(errors)


def _head_of_statistics(candidate: Candidate, federation: SyntheticFederation, rng: np.random.Generator) -> Arrays:
    kind, features = candidate.config.training.statistics, federation.features
    classes, noise = federation.num_classes, candidate.noise_of_sum(federation.num_clients)
    bound, units = candidate.plans[0].max_grad_norm, np.arange(len(features))
    factors = unit_factors(kind, features, federation.labels, units, bound=bound)
    exact = to_contribution(kind, statistics_of(kind, features, federation.labels, classes, factors))
    noised = federation.units_per_row * exact + noise * rng.standard_normal(exact.size)
    sums = from_contribution(kind, noised, classes, features.shape[1])
    return solve_head(kind, sums, num_examples=federation.total_units, noise_stddev=noise)


def _head_of_own_steps(candidate: Candidate, federation: SyntheticFederation, rng: np.random.Generator) -> Arrays:
    """Return the head after rounds in which each client makes noised steps."""
    plans, config = candidate.plans, candidate.config
    steps = max(plan.steps_per_round for plan in plans)
    # A client of fewer steps makes shorter ones here, so that its whole step and noise in a round stay the same.
    shares = [plan.steps_per_round / steps for plan in plans]
    rates = [(plan.learning_rate or 0.0) for plan in plans]
    variance = sum(
        group.num_clients * share * (rate * plan.client_noise_stddev) ** 2
        for group, plan, rate, share in zip(federation.groups, plans, rates, shares, strict=True)
    )
    # A cohort's average holds the noise of fewer clients.
    noise = math.sqrt(variance * federation.num_clients / config.cohort_size) / federation.total_units
    weight = federation.initial_head()[HEAD_WEIGHT]
    for _ in range(config.num_rounds * steps):
        sums = federation.gradient_sums({HEAD_WEIGHT: weight}, max_grad_norm=plans[0].max_grad_norm)
        step = sum(rate * share * part for rate, share, part in zip(rates, shares, sums, strict=True))
        step = step / federation.total_units + noise * rng.standard_normal(weight.shape)
        weight = (weight - step).astype(np.float32)
    return {HEAD_WEIGHT: weight}


def _head_of_sums(candidate: Candidate, federation: SyntheticFederation, rng: np.random.Generator) -> Arrays:
    """Return the head after rounds in which the server steps along a noised sum."""
    plan, units = candidate.plans[0], federation.total_units
    steps = SummedSteps(
        plan, total_units=units, num_clients=federation.num_clients, rule=candidate.config.training.step_rule
    )
    noise, head = candidate.noise_of_sum(federation.num_clients), federation.initial_head()
    for _ in range(plan.num_rounds):
        total = np.sum(federation.gradient_sums(head, max_grad_norm=plan.max_grad_norm), axis=0).ravel()
        head = steps.along(head, (total + noise * rng.standard_normal(total.size)) / units)
    return head


def _head_of_updates(candidate: Candidate, federation: SyntheticFederation, rng: np.random.Generator) -> Arrays:
    """Return the head after rounds of averaged updates, each clipped, with the server's noise."""
    config, rows = candidate.config, len(federation.labels)
    mean_size = federation.total_units / federation.num_clients
    clients = max(1, min(config.cohort_size, max(_FEW_CLIENTS, round(rows / mean_size))))
    parts, weight = np.array_split(np.arange(rows), clients), federation.initial_head()[HEAD_WEIGHT]
    plan = candidate.plans[0]
    noise = candidate.noise_of_sum(config.cohort_size) / config.cohort_size
    for number in range(1, config.num_rounds + 1):
        settings, total = settings_of(config, server_round=number), np.zeros(weight.size)
        for part in parts:
            start = {HEAD_WEIGHT: weight}
            ended = train_head(start, federation.features[part], federation.labels[part], settings, rng)
            update = (ended[HEAD_WEIGHT] - weight).reshape(1, -1)
            total += clipped_sum(update, max_grad_norm=plan.max_grad_norm)
        step = total / clients + noise * rng.standard_normal(weight.size)
        weight = (weight + step.reshape(weight.shape)).astype(np.float32)
    return {HEAD_WEIGHT: weight}
