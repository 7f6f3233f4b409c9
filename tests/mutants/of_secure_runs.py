"""Faults of runs with secure sums: their vectors, ledgers and rosters."""

from functools import partial

from client.admission import admit
from client.guard import Guard
from client.secure import party, roster_file
from client.secure.exchange import MaskedReply
from client.secure.secrets_file import SecretsFile
from common.ledger import identity_key
from common.ledger.transactions import LedgerSession
from common.messages import secure_messages
from common.messages.secure_words import SecureWords
from common.secagg.protocol.client import ClientState
from tests.client import test_guard as guards
from tests.client import test_roster as rosters
from tests.client.secure import test_exchange as exchanges
from tests.client.secure import test_secrets_file as secrets_files
from tests.client.secure import test_words_that_leave as leaving
from tests.common.ledger import test_secure_markers as markers
from tests.common.messages import test_secure_words as words
from tests.mutants.faults import every_case, planted

_SUM = every_case(words.test_a_sum_is_the_average_by_declared_sizes_within_the_grid)
planted(
    _SUM,
    SecureWords.encode_update,
    {"an update that no size weighs": ("* float(self._share(name))", "* 1.0")},
)
planted(
    _SUM,
    SecureWords.average_update,
    {"an average over clients that are gone": (") / float(self._share(*survivors))", ") / 1.0")},
)
planted(
    partial(words.test_an_update_that_does_not_fit_is_refused_and_never_shortened, value=float("nan")),
    SecureWords.encode_update,
    {"an update that diverged and is summed as zero": ("if not norm <= LONGEST_UPDATE:", "if norm > LONGEST_UPDATE:")},
)
planted(
    words.test_counts_whose_sum_could_wrap_are_refused,
    SecureWords._words,
    {"counts whose sum leaves the ring": (" // self.num_clients", "")},
)
planted(
    partial(words.test_updates_and_losses_at_their_bounds_do_not_wrap, sizes={"a": 1000, "b": 1, "c": 999}),
    SecureWords._point,
    {"updates that each fill the ring": ("whole if name is None else whole.part(self._share(name))", "whole")},
)
planted(
    words.test_counts_of_another_round_are_refused,
    SecureWords.encode_counts,
    {"counts of a round that is not counted": ("if set(metrics) != {NUM_EXAMPLES, *keys}:", "if False:")},
)
for changed, right in (
    ("sizes", '"sizes": dict(sorted(self.sizes.items())),'),
    ("tensors", '"tensors": {name: list(shape) for name, shape in self.shapes.items()},'),
):
    planted(
        partial(words.test_terms_name_all_that_decides_the_encoding, changed=changed),
        SecureWords._digest,
        {f"keys that are not bound to the {changed}": (right, "")},
    )
planted(
    partial(
        words.test_masks_follow_from_all_settings_but_those_of_one_process,
        key="training.learning-rate",
        value=1e-9,
        same=False,
    ),
    secure_messages.context_of,
    {"masks that cancel under any settings": ("json.dumps(agreed, sort_keys=True).encode()", "b''")},
)
for step in (secrets_files.saved, secrets_files.erased):
    planted(
        partial(secrets_files.test_what_a_killed_process_began_to_write_goes_with_the_next_step, step=step),
        {secrets_files.saved: SecretsFile.save, secrets_files.erased: SecretsFile.erase}[step],
        {f"secrets that a killed process leaves on the disk, {step.__name__}": ("self._erase_parts()", "pass")},
    )
planted(
    exchanges.test_a_round_that_is_masked_again_has_fresh_noise,
    MaskedReply.gradient,
    {
        "the same noise under fresh masks when a round is tried again": (
            "streams.for_training().noise",
            "__import__('types').SimpleNamespace(random_bytes="
            "lambda size: __import__('hashlib').shake_256(bytes([server_round])).digest(size))",
        )
    },
)
planted(
    partial(
        exchanges.test_a_client_killed_before_its_secrets_are_rewritten_answers_nothing_else,
        stage="train",
        counted=[5, 4, 5],
        next_rounds=(2, 3),
    ),
    MaskedReply.keep,
    {"masks of a stored reply that stay on the disk": ("self._state.forget_masks(number)", "False")},
)
planted(
    partial(
        exchanges.test_a_client_refuses_exact_sums_under_strict_rows_whatever_its_classes,
        mechanism="none",
        strict=True,
        refused=1,
    ),
    admit,
    {"an exact sum in spite of strict rows": ("if config.privacy.strict_rows and config.sums_exactly:", "if False:")},
)
planted(
    leaving.test_words_are_uniform_and_no_mask_and_no_key_comes_twice,
    ClientState.mask,
    {"words without their masks": ("ring.reduced(total)", "ring.reduced(words)")},
)
planted(
    markers.test_another_question_for_the_same_round_is_refused_and_not_computed,
    LedgerSession._answered,
    {"two models under the same masks": ('if before[0].event["about"] != asked:', "if False:")},
)
planted(
    markers.test_a_closed_run_answers_nothing_and_keeps_no_reply,
    LedgerSession._answered,
    {"masked words of a run that is closed": ("kind = 'note'\", (closed,)", 'kind = \'note\'", ("",)')},
)
planted(
    markers.test_of_two_processes_that_compute_at_once_the_first_one_counts,
    LedgerSession.answer_once,
    {"masked words of two processes": ("return reply if kept is None else kept", "return reply")},
)
planted(
    markers.test_a_set_up_is_no_sum_and_masked_words_or_an_opened_sum_are_one,
    LedgerSession.has_summed,
    {"a second set-up after a sum was opened": ('event.get("about")', 'event.get("reply")')},
)
planted(
    partial(guards.test_no_sum_over_fewer_clients_than_the_policy_wants_is_opened, num_survivors=4, allowed=False),
    Guard.open_sum,
    {"a smaller sum than the policy wants": ("if num_survivors < self.policy.min_cohort:", "if False:")},
)
planted(
    guards.test_masked_closing_counts_leave_once_whatever_round_the_server_names,
    Guard._unaccounted,
    {"closing counts twice under one mask": ('if release == "train" else ""', "")},
)
planted(
    markers.test_a_marker_is_about_one_thing,
    LedgerSession.mark,
    {"a second set of survivors in a round": ('if before and before[0].event["about"] != about:', "if False:")},
)
planted(
    rosters.test_a_client_goes_by_the_roster_of_its_policy_alone,
    party.own_party,
    {
        "a roster that came from nowhere": ("if not policy.roster:", "if False:"),
        "a roster that the policy does not name": ("if roster.digest.hex() != policy.roster:", "if False:"),
        "a run for another number of clients": ("if len(roster) != constants.num_clients:", "if False:"),
        "another key under this client's name": (".get(site.name) != identity.public_key:", ".get(site.name) is None:"),
    },
)
planted(
    every_case(rosters.test_a_roster_that_cannot_be_used_is_refused),
    roster_file.check_roster,
    {"a roster without this client": ("if line not in (", "if () in (")},
)
planted(
    rosters.test_an_identity_key_that_others_can_read_is_refused,
    identity_key.own_identity,
    {"an identity key that anybody can read": ("read_or_make_key(file)", "file.read_bytes()")},
)
