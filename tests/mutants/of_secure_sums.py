"""Secure sums that open too much, take a forged message for true, or use a secret twice."""

from functools import partial

from common.secagg.primitives import keys, shamir
from common.secagg.protocol import blinding, client, messages, topology
from common.secagg.protocol.client import ClientState
from common.secagg.protocol.client_secrets import ClientSecrets
from common.secagg.protocol.dealing import Dealing
from common.secagg.protocol.messages import Advert, Announcement, UnmaskRequest
from common.secagg.protocol.roster import Roster
from common.secagg.protocol.round_sum import RoundSum
from common.secagg.protocol.round_table import RoundTable
from common.secagg.protocol.server_setup import ServerSetup
from common.secagg.protocol.terms import Terms
from common.secagg.protocol.topology import Topology
from tests.common.secagg.primitives import test_shamir as sharing
from tests.common.secagg.protocol import test_client_state as states
from tests.common.secagg.protocol import test_malicious_server as lies
from tests.common.secagg.protocol import test_roster as rosters
from tests.common.secagg.protocol import test_survivor_sets as sets
from tests.common.secagg.protocol import test_topology as graphs
from tests.common.secagg.protocol import test_whole_rounds as rounds
from tests.mutants.faults import Check, planted, planted_value


def refused(attack: lies.Attack) -> Check:
    """Return the test of one attack."""
    return partial(lies.test_the_client_refuses, attack=attack)


# How many must survive.
planted(
    refused(lies.exactly_t_with_c_of_them_colluding),
    Terms.enough,
    {"t survivors in place of t honest ones": ("num_present - self.num_colluding >=", "num_present >=")},
)
planted(
    refused(lies.one_fewer_than_needed),
    Terms.enough,
    {"one survivor fewer than needed": (">= self.num_honest", ">= self.num_honest - 1")},
)
planted(
    refused(lies.exactly_t_with_c_of_them_colluding),
    ClientState._check_survivors,
    {"unmasking below the threshold": ("if not self.terms.enough(len(request.survivors)):", "if False:")},
)
planted(
    partial(states.test_terms_that_contradict_each_other_are_refused, changes={"num_honest": 1}),
    Terms.__post_init__,
    {"a sum over one honest client": ("self.num_honest - 1,", "self.num_honest,")},
)
planted(
    partial(states.test_terms_that_contradict_each_other_are_refused, changes={"num_colluding": 0}),
    Terms.__post_init__,
    {"a secure sum of which nobody colludes": ("(self.num_colluding, ", "(1, ")},
)
planted(
    partial(graphs.test_two_groups_of_the_threshold_share_an_honest_member, size=10, colluding=2),
    topology.threshold_of,
    {
        "a threshold that does not count colluding members": (
            "(committee_size + num_colluding) // 2",
            "committee_size // 2",
        )
    },
)
planted(
    refused(lies.too_few_responders),
    ClientState._check_survivors,
    {"one responder fewer than the threshold": ("< topology.threshold", "< topology.threshold - 1")},
)
planted(
    sharing.test_fewer_shares_give_another_value,
    shamir.split,
    {"a polynomial of a lower degree": ("range(threshold - 1)", "range(threshold - 2)")},
)
planted(
    sets.test_survivors_that_show_a_part_of_the_sum_are_refused,
    ClientState._check_survivors,
    {"survivors that nobody looks at": ("if not topology.hides(set(request.survivors)):", "if False:")},
)
planted(
    graphs.test_survivors_that_could_be_split_are_refused,
    Topology.hides,
    {
        "a gap that colluding clients fill": ("<= self.num_colluding // 2", "< self.num_colluding // 2"),
        "a gap over the end of the circle": ("in range(len(alive)):", "in range(len(alive) - self.reach):"),
    },
)

# One survivor set a round.
_ONE_SET = "if answered is not None and answered != request.survivor_digest(self.terms):"
planted(
    refused(lies.second_survivor_set),
    ClientState._check_survivors,
    {"a second survivor set that is answered": (_ONE_SET, "if False:")},
)
planted(
    refused(lies.both_secrets_of_one_client),
    ClientState.unmask,
    {
        "a survivor set that is forgotten": (
            "self._answered[request.round_number] = request.survivor_digest(self.terms)",
            "pass",
        )
    },
)
planted(
    refused(lies.second_survivor_set_after_a_restart),
    ClientState.to_bytes,
    {"a survivor set that is forgotten by a restart": ("in self._answered.items()", "in ()")},
)
_MIXING = sets.test_answers_to_different_survivor_sets_cannot_be_mixed
planted(
    _MIXING,
    UnmaskRequest.digest,
    {"blinding that is not bound to the survivors": ("self.survivor_digest(terms), *", "*")},
)
planted(
    sets.test_many_questions_about_one_set_do_not_show_a_members_share,
    UnmaskRequest.digest,
    {"blinding that is not bound to the responders": (", *self.responders", "")},
)
planted_value("answers without blinding", _MIXING, client, "blinding_of", lambda request, length, keys: [0] * length)
planted(
    partial(rounds.test_few_clients_sum_without_losses, num_clients=3),
    blinding.blinding_of,
    {"blinding that does not cancel": ("if sign > 0 else", "if True else")},
)
planted(
    states.test_a_rounds_secrets_are_gone_from_the_bytes_once_it_is_over,
    ClientSecrets.keep_only,
    {"shares of the other secret that are kept": ("self.mask_shares.row(round_number)[gone] = 0", "pass")},
)
planted(
    partial(rounds.test_the_sum_is_exact_whoever_is_lost, num_clients=6, stage=rounds.words_lost, share=1),
    ClientSecrets.shares_for,
    {"the seed of a lost client": ("seeds, masks)", "seeds, seeds)")},
)
planted(
    refused(lies.survivors_out_of_order),
    client._ascending,
    {"a set in any order": ("first < second", "first != second")},
)
planted(
    refused(lies.survivor_counted_twice),
    client._ascending,
    {"a survivor that counts twice": ("first < second", "first <= second")},
)

# Every secret once.
planted(
    refused(lies.round_replayed_with_another_model),
    ClientState.mask,
    {"a second vector under the same masks": ("self._secrets.erase_own(round_number)", "pass")},
)
planted(
    refused(lies.words_after_unmasking),
    ClientState.unmask,
    {"words that are masked after their seed was opened": ("self._secrets.erase_own(request.round_number)", "pass")},
)
planted(
    refused(lies.earlier_round_opened_late),
    ClientState.mask,
    {"an aborted round that is opened later": ("self._secrets.erase_shares_before(round_number)", "pass")},
)
planted(
    states.test_each_round_has_secrets_of_its_own,
    ClientSecrets.drawn,
    {
        "a seed used again in a later round": (
            "[shamir.to_bytes(shamir.random_element()) for _ in range(num_rounds)]",
            "[shamir.to_bytes(shamir.random_element())] * num_rounds",
        )
    },
)
planted(
    states.test_no_mask_repeats_over_rounds_restarts_attempts_or_runs,
    ClientSecrets.drawn,
    {
        "secrets that are the same in each run": (
            "shamir.to_bytes(shamir.random_element()) for _ in range(num_rounds)",
            "bytes([number + 1]) * 32 for number in range(num_rounds)",
        )
    },
)
planted(
    states.test_the_memory_of_erased_rounds_is_overwritten,
    RoundTable.erase_before,
    {"erased secrets that stay in memory": ("self.rows[:] = 0", "pass")},
)
planted(
    states.test_keys_for_blinding_go_one_way,
    ClientSecrets.erase_shares_before,
    {"keys for blinding that open earlier rounds": ("self.blinds = later", "pass")},
)
planted(
    states.test_the_secrets_of_the_set_up_go_with_it,
    ClientSecrets.enter_rounds,
    {
        "mask secrets that are kept after the set-up": (
            "self.mask_secrets.erase_before(self.mask_secrets.first + rounds)",
            "pass",
        )
    },
)

# Who is who.
planted(
    refused(lies.substituted_channel_key),
    Advert.check,
    {"a roster that is not checked": ("roster.check_signature(", "(lambda *_: None)(")},
)
planted(
    refused(lies.another_roster),
    Terms.check_roster,
    {"a roster of the server's own": ("roster.digest != self.roster or", "")},
)
planted(
    rosters.test_a_roster_has_every_key_once,
    Roster.of,
    {"one holder with two seats": ("len(set(keys)) != len(keys) or", "")},
)
planted(
    refused(lies.set_up_of_another_run),
    Advert.signed_bytes,
    {"adverts of another run": ("terms.session, self.index", "b'', self.index")},
)
planted(
    refused(lies.substituted_mask_keys),
    messages.check_mask_keys,
    {
        "mask keys that nobody signed": (
            "!= advert.mask_keys_digest",
            "!= digest(Domain.MASK_KEYS, terms.session, mask_keys)",
        )
    },
)
planted(
    refused(lies.reflected_channel_key),
    ClientState._checked_present,
    {
        "a channel key that is this client's own": (
            "for advert in delivery.adverts}) != len(present)",
            "for advert in delivery.adverts}) < 2",
        )
    },
)
planted(
    refused(lies.own_advert_exchanged),
    ClientState._checked_present,
    {"an advert in this client's name": (" or self._advert not in delivery.adverts", "")},
)
planted(
    refused(lies.fewer_than_needed),
    ClientState._checked_present,
    {"a set-up of too few": ("if not self.terms.enough(len(present)):", "if False:")},
)
planted(
    refused(lies.withheld_mask_keys),
    Dealing.pair_secrets,
    {
        "a client without neighbours": (
            "if set(self.delivery.mask_keys) != set(neighbours):",
            "neighbours = tuple(self.delivery.mask_keys)\n    if False:",
        )
    },
)
planted(
    refused(lies.mask_keys_of_a_known_result),
    keys.AgreementKey.agree,
    {"a key that forces what is shared": ("raise SecureSumError(Refusal.SETUP) from None", "return bytes(32)")},
)
planted(
    refused(lies.two_views_of_who_is_present),
    messages.view_digest,
    {"two views of who is present": ("*(advert.signed_bytes(terms) for advert in adverts)", "")},
)
planted(
    refused(lies.shares_missing),
    ClientState.accept,
    {
        "shares that did not come": (
            "set(boxes) != set(self._present) - {self.index}",
            "not set(boxes) <= set(self._present)",
        )
    },
)
planted(
    rosters.test_an_identity_must_be_that_of_the_name,
    ClientState.begin,
    {"a name with another's key": ("if roster.keys[index] != identity.public_key:", "if False:")},
)
planted(
    states.test_every_constant_names_another_session,
    Terms.session,
    {
        "terms whose colluding clients are not signed": ("self.num_clients, self.num_colluding,", "self.num_clients,"),
        "terms whose attempt is not signed": ("(self.attempt, ", "("),
        "terms whose roster is not signed": ("self.run, self.roster,", "self.run,"),
        "terms whose rounds are not signed": (", *self.lengths", ""),
    },
)

# The server's side.
planted(
    rounds.test_a_wrong_answer_is_noticed,
    RoundSum._check_opened,
    {"a wrong sum that is taken for right": ("if found != expected:", "if False:")},
)
planted(
    rounds.test_the_server_takes_each_message_once_and_only_what_it_asked_for,
    RoundSum.add_words,
    {"words that come after the survivors are named": (" or self._request is not None", "")},
)
planted(
    rounds.test_one_that_announced_and_did_not_deal_needs_another_attempt,
    ServerSetup.close_dealing,
    {"a set-up without somebody's shares": ("if not self.present or self.missing:", "if not self.present:")},
)
planted(
    lies.test_a_server_refuses_an_announcement_that_is_not_its_clients,
    Announcement.check,
    {"commitments that nobody signed": ("!= self.advert.seeds_digest", "== b''")},
)
