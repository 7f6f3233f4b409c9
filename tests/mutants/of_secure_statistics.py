"""T1, T2, T3: faults of sums over features under a secure sum, exact or with noise in shares."""

from functools import partial

from client.training import statistics as client_statistics
from client.training.trainer import Trainer
from common.messages import rounded_update
from common.messages.secure_words import SecureWords
from common.privacy.mechanisms.dp_statistics import DpStatistics
from common.secagg import noise_shares
from common.statistics import fixed_sums, sums
from tests.common.messages import test_rounded_update as updates
from tests.common.statistics import test_fixed_sums as fixed
from tests.mutants.faults import every_case, planted
from tests.simulations import test_secure_statistics as runs

_REPLAY = partial(runs.test_one_unit_moves_the_opened_sum_by_at_most_the_bound, kind="second-moments", unit="group")
planted(
    _REPLAY,
    client_statistics.clipped_contribution,
    {
        "sums in shares that are clipped by image": (
            "labels, units, bound=plan",
            "labels, np.arange(len(units)), bound=plan",
        ),
        "sums in shares that are not clipped": ("num_classes, factors)", "num_classes)"),
    },
)
planted(
    _REPLAY,
    sums._norm,
    {"a matrix that is clipped by its triangle": ("np.square(products)", "0.5 * np.square(products)")},
)
_SHARE = runs.test_noise_differs_between_clients_and_is_that_of_one_share
planted(
    _SHARE,
    sums._factor,
    {"values off the diagonal without the root of 2": ("weight * math.sqrt(2)", "weight")},
)
planted(
    _REPLAY,
    SecureWords.encode_sum,
    {"a client that counts twice in the sum": ("share_words(total,", "share_words(2 * total,")},
)
planted(
    _SHARE,
    noise_shares.share_words,
    {"sums over features without noise": ("+ noise.astype(np.int64)", "+ 0 * noise.astype(np.int64)")},
)
planted(
    _SHARE,
    noise_shares.gradient_scale,
    {"sums over features with the share of another number": ("plan.noise_shares)", "plan.noise_shares + 2)")},
)
planted(
    runs.test_the_noise_is_charged_in_shares_and_once,
    DpStatistics.plan,
    {
        "a share of sums over features for all clients": ("constants.noise_shares", "constants.num_clients"),
        "sums in shares that are charged as noise in one place": ("noise_shares=constants.noise_shares,", ""),
    },
)
planted(
    runs.test_exact_sums_leave_without_a_mechanism_only_and_whole,
    SecureWords.encode_statistics,
    {
        "exact sums under the masks of a private run": ("self._check_exact()", "pass"),
        "sums that are shortened to fit": ("if not fits(contribution, self.sizes[name]):", "if False:"),
    },
)
planted(
    runs.test_a_trainer_never_makes_a_reply_of_its_own_from_noise_in_shares,
    Trainer.train,
    {"sums of one client with the noise of a share": ("if plan is not None and plan.noise_shares:", "if False:")},
)
_KEYS = runs.test_keys_are_bound_to_what_is_summed_and_a_sum_that_does_not_fit_is_refused_before_them
planted(
    _KEYS,
    SecureWords._digest,
    {
        "keys that are not bound to the kind of sums": ('plan["statistics"] = self.releases.statistics', "pass"),
        "a sum that turns out not to fit after its charge": (
            "_ = self.point if self.plan is None else self.gradient_scale",
            "pass",
        ),
    },
)
planted(
    fixed.test_sums_that_do_not_fit_in_the_words_are_refused,
    fixed_sums.contribution_point,
    {"a grid that moves the head": ("largest_step=coarsest", "largest_step=1.0")},
)
planted(
    fixed.test_every_client_may_be_at_its_bound_at_once,
    fixed_sums.contribution_point,
    {"a ring for the sum of declared images alone": ("float(ROOM * total_units)", "float(total_units)")},
)
planted(
    every_case(fixed.test_a_contribution_of_far_more_images_than_declared_does_not_fit),
    fixed_sums.fits,
    {"a contribution that is not finite": ("np.linalg.norm(contribution) <=", "not np.linalg.norm(contribution) >")},
)
planted(
    updates.test_sums_over_features_have_shapes_of_their_own_unless_they_are_under_masks,
    rounded_update.leaving_shapes,
    {"masked words that are checked as sums": (" and not releases.secure", "")},
)
