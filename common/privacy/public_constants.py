"""Public constants of a run that its privacy plans follow from."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PublicConstants:
    """Settings of a run that a privacy plan follows from.

    Client and server know all of them before round 1, so both compute the same plan.

    Attributes:
        target_epsilon: Epsilon wanted for the whole run; None where the noise is set.
        noise_multiplier: Noise that was set; None where it follows from the target.
        delta: The delta that epsilon is stated for.
        unit: Value of `privacy.unit`.
        max_grad_norm: Clip bound of one unit's gradient.
        clipping_norm: Clip bound of one client's update; None where it follows from the noise.
        metrics: How counts of held-out units leave.
        counts_noise: Noise of each counted round's pair, before it is raised for the target; None where it follows
            from the target.
        closing_noise: Like `counts_noise`, for the closing matrix.
        histogram_classes: Number of classes, where score and calibration histograms leave at the end; None where none
            leave.
        subgroups: Public list by which closing counts are divided, the last one for all other values; empty where they
            are not divided.
        counted_every: A round is counted if its number is a multiple of this.
        counted_rounds: The most counted rounds that one client takes part in.
        batch_size: Expected units a step; None for all of them.
        local_epochs: Passes over a client's units in a round.
        steps_by_rule: Whether the target decides the number of full batches in a round.
        rate_by_rule: Whether the learning rate follows from the plan.
        momentum: Momentum of the local optimizer.
        balanced: Whether class weights follow from each client's labels.
        num_clients: Clients of the run.
        cohort_size: Clients of a round.
        num_rounds: Rounds of the run.
        participations: The most rounds that one client takes part in.
        noise_shares: Least number of honest clients whose shares are the noise of a secure sum; 0 where each client, or
            the server, draws all of the noise.
    """

    target_epsilon: float | None
    noise_multiplier: float | None
    delta: float
    unit: str
    max_grad_norm: float
    clipping_norm: float | None
    metrics: str
    counts_noise: float | None
    closing_noise: float | None
    histogram_classes: int | None
    subgroups: tuple[str, ...]
    counted_every: int
    counted_rounds: int
    batch_size: int | None
    local_epochs: int
    steps_by_rule: bool
    rate_by_rule: bool
    momentum: float
    balanced: bool
    num_clients: int
    cohort_size: int
    num_rounds: int
    participations: int
    noise_shares: int = 0
