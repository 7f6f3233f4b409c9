"""T1, T2, T3, T5: `client-dp` under a secure sum with too much of a client, too little noise or no charge.

All of these faults are noticed by plain tests.
"""

from pathlib import Path

import pytest

from client.session import ClientSession
from common.messages.secure_words import SecureWords
from common.privacy.mechanisms.client_dp import ClientDp, SummedClientDp
from common.secagg import noise_shares
from server.federation import _Run
from tests.mutants.faults import every_case, planted, planted_value
from tests.simulations import test_client_dp_in_sums as sums
from tests.support.inference.stored_models import shaded_images

_MOVES = every_case(sums.test_a_client_moves_the_sum_by_the_clip_bound_at_most_and_never_its_noise)
_NOISE = sums.test_the_average_is_over_the_planned_clients_with_the_noise_of_all_shares


def _run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = shaded_images(tmp_path / "pets", per_class=10)
    sums.test_a_run_adds_the_noise_of_its_clients_and_charges_each_client(images, tmp_path, monkeypatch)


planted(
    _MOVES,
    noise_shares.clipped_words,
    {"a client that does not clip": ("clipped_sum(update[None], max_grad_norm=scale.most_of_unit)", "update")},
)
planted(
    _MOVES,
    SecureWords.encode_clipped,
    {
        "a client that clips to another bound than its plan": (
            "self.gradient_scale, stream",
            "type(self.gradient_scale)(self.gradient_scale.step, self.gradient_scale.share_stddev, "
            "2 * self.gradient_scale.most_of_unit, 64), stream",
        )
    },
)
planted(
    _NOISE,
    noise_shares.clipped_words,
    {
        "a clipped update without its share": (
            "stream=stream)",
            "stream=type('Zeros', (), {'random_bytes': lambda _, n: bytes(n)})())",
        ),
        "a share on top of another share": (
            "share_words(clipped, scale, num_units=1, stream=stream)",
            "share_words(clipped, scale, num_units=1, stream=stream) + "
            "share_words(0.0 * clipped, scale, num_units=1, stream=stream)",
        ),
    },
)
planted(
    _NOISE,
    ClientDp.plan,
    {"shares of whole clients that are scaled for all of them": ("noise_shares=shares", "noise_shares=shares and 5")},
)
planted(
    _NOISE,
    SecureWords.average_update,
    {"a noised sum over the survivors' number": ("self.plan.expected_batch_size", "len([*survivors])")},
)
planted(
    _NOISE,
    SecureWords.encode_update,
    {"an exact update under a mechanism": ("self._check_exact()", "pass")},
)
planted(
    sums.test_an_update_that_rounding_made_too_long_is_refused,
    noise_shares.clipped_words,
    {"an update whose clip is not checked after rounding": ("if not norm <=", "if False and not norm <=")},
)
planted(
    _run,
    _Run._run_rounds,
    {"noise at the clients and at the server": ("config.mechanism.noise_at_server else", "config.private else")},
)
planted(
    _run,
    ClientSession.guard,
    {"a ledger in which each image of a client is its own unit": ("if config.mechanism.clips_clients:", "if False:")},
)
planted_value("whole clients that charge no ledger", _run, SummedClientDp, "noise_at_client", False)
