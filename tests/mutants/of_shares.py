"""T1, T2, T3, T5: noise in shares that is too weak, or charged as if more clients were honest.

All of these faults are noticed by plain tests.
"""

from functools import partial

from client.training import dp_sgd, network_sgd
from client.training.gradients.outer_gradients import SplitSum
from common.config.schema import RunConfig
from common.ledger import budget
from common.messages.secure_words import SecureWords
from common.privacy import accounting, events, noise_error
from common.privacy.counts.counts_plan import CountsPlan
from common.privacy.plan import PrivacyPlan
from common.privacy.policy import Policy
from common.secagg import noise_shares
from common.secagg.noise_shares import ShareScale
from server.aggregation.summed_steps import SummedSteps
from tests.common.ledger import test_budget as budgets
from tests.common.secagg import test_noise_shares as shares
from tests.mutants.faults import every_case, planted
from tests.server.aggregation import test_summed_steps as steps
from tests.simulations import test_networks_in_shares as networks
from tests.simulations import test_noise_in_shares as runs

planted(
    runs.test_the_noise_is_that_of_the_accounted_honest_clients_alone,
    RunConfig.public_constants,
    {
        "the shares of all clients are counted on": ("self.secure.honest if", "self.secure.num_clients if"),
        "the noise of dropped clients is counted": ("self.secure.honest if", "self.secure.min_survivors if"),
    },
)
planted(
    runs.test_the_noise_is_that_of_the_accounted_honest_clients_alone,
    PrivacyPlan.event,
    {"training in shares that is charged as if each client drew all noise": ("self.noise_shares", "0")},
)
planted(
    runs.test_the_noise_is_that_of_the_accounted_honest_clients_alone,
    CountsPlan.closing_events,
    {
        "a matrix in shares that is charged as if each client drew all noise": (
            "tuple(replace(event, noise_shares=self.noise_shares) for event in events)",
            "tuple(events)",
        ),
    },
)
_SCALE = shares.test_one_share_has_the_noise_of_a_share_and_the_sum_of_all_accounted_ones_the_declared_noise
planted(
    _SCALE,
    noise_shares._share,
    {"a share for all clients": ("math.sqrt(noise_shares)", "math.sqrt(noise_shares + 1)")},
)
planted(
    _SCALE,
    noise_shares.share_words,
    {
        "a client that adds no noise": ("+ noise.astype(np.int64)", ""),
        "a client that adds half of its noise": ("noise.astype(np.int64)", "noise.astype(np.int64) // 2"),
    },
)
planted(
    shares.test_noise_differs_between_clients_and_rounds,
    noise_shares.share_words,
    {
        "one noise for all releases": (
            "stream=stream)",
            "stream=type('Zeros', (), {'random_bytes': lambda _, n: bytes(n)})())",
        )
    },
)
planted(
    shares.test_values_are_rounded_before_the_noise_and_never_after,
    noise_shares.share_words,
    {
        "words that are rounded after the noise": ("+ noise.astype(np.int64)", "+ noise.astype(np.int64) // 64 * 64"),
        "values that are not rounded before the noise": (
            "np.rint(np.asarray(values, dtype=np.float64) / scale.step)",
            "np.ceil(np.asarray(values, dtype=np.float64) / scale.step)",
        ),
    },
)
planted(
    partial(shares.test_the_ring_holds_the_largest_sum_that_there_can_be, sizes=(20, 20, 10)),
    noise_shares.share_words,
    {"a value beyond the public bound": ("-bound, bound)", "-np.inf, np.inf)")},
)
planted(
    shares.test_a_grid_on_which_rounding_breaks_the_clip_bound_is_refused,
    ShareScale.check_rounding,
    {"a sensitivity that is not checked after rounding": ("if not self.step", "if False and self.step")},
)
planted(
    shares.test_a_sum_that_fits_in_no_word_and_a_plan_without_shares_are_refused,
    noise_shares._with_ring,
    {"a sum that wraps": ("if bits > _MAX_BITS", "if False")},
)
_FIGURES = shares.test_both_figures_are_those_of_the_library_for_the_noise_of_the_sum_and_of_one_share
planted(
    _FIGURES,
    events._own_share,
    {"a share alone that is priced as all of the noise": ("math.sqrt(event.noise_shares)", "1.0")},
)
planted(
    shares.test_a_share_that_is_no_protection_is_said_to_be_none,
    accounting.spent_alone,
    {"no protection that is stated as nothing spent": ("return NO_PROTECTION", "return NOTHING")},
)
planted(
    every_case(shares.test_a_sum_of_shares_is_as_near_to_a_normal_as_it_is_charged),
    noise_error._draws,
    {"the error of one share for that of all": ("max(1, event.noise_shares)", "1")},
)
planted(
    shares.test_an_event_in_shares_without_a_bound_on_its_error_is_refused,
    noise_error._variation,
    {"shares whose error is free": (" or (shares and not each)", "")},
)
planted(
    shares.test_a_policy_believes_in_honest_clients_only_if_its_holder_does,
    Policy.official_figure,
    {"honest clients that are believed in unasked": ("spent if self.accept_honest_shares else alone", "spent")},
)
planted(
    shares.test_a_policy_believes_in_honest_clients_only_if_its_holder_does,
    Policy.check_spent,
    {"a cap on a client's own share that is not kept": ("if most is not None and", "if False and")},
)
planted(
    budgets.test_a_clients_own_share_is_priced_over_its_whole_history,
    budget.spent_with,
    {"an own share that is priced for the new run alone": ("spent_alone(events", "spent_alone(new.planned[part]")},
)
planted(
    runs.test_counts_get_their_share_of_the_noise_where_they_become_words,
    SecureWords.encode_counts,
    {"exact counts under the masks": ("self.counts_in_shares != (stream is not None)", "False")},
)
planted(
    partial(
        runs.test_an_opened_sum_does_not_say_how_many_clients_had_a_negative_value,
        parts=(4, -1, -2, -1, 0),
        bits=56,
    ),
    SecureWords._in_ring,
    {"words that are shorter than the ring": ("replace(scale, bits=self.ring.word_bits)", "scale")},
)
planted(
    runs.test_the_ring_holds_each_sum_of_a_run,
    SecureWords.ring,
    {"a ring that is too small for counts": (", *(scale.bits for scale in counts)", "")},
)
planted(
    steps.test_the_server_divides_by_declared_units_of_the_survivors_and_keeps_its_momentum,
    SummedSteps.along,
    {"a server without momentum": ("self.factor * before + gradient", "gradient")},
)
planted(
    every_case(networks.test_one_unit_more_moves_a_clients_words_by_no_more_than_the_clip_bound),
    SplitSum.add,
    {
        "a network's sum that nobody clips": (
            "factor = add_clipped(self._flat, gradient.parts, max_grad_norm=self._bound, elsewhere=elsewhere)",
            "factor = 1.0; self._flat += gradient.flat",
        )
    },
)
planted(
    networks.test_the_sum_is_of_each_images_gradient_clipped_by_itself,
    network_sgd._clipped_sums,
    {
        "a network's sum that is clipped as a whole": (
            "return total.total()",
            "whole = total.total(); return whole * min(1.0, plan.max_grad_norm / np.linalg.norm(whole))",
        )
    },
)
planted(
    every_case(networks.test_a_gradient_sum_is_refused_under_another_plan),
    dp_sgd.check_summed,
    {"a gradient sum under any plan": ("if not (plan.noise_shares", "if False and not (plan.noise_shares")},
)
