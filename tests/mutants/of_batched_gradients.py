"""Gradients in batches that are wrong, unasked for, or not stated."""

from functools import partial

import server.reporting.privacy_statement as statements
from client import app as client_app
from client.guard import Guard
from client.training import network_sgd
from client.training.gradients import gradient_check, opacus_gradients, shared_calls
from client.training.trainer import Trainer
from common.config.schema import RunConfig
from common.privacy.policy import Policy
from tests.client.training.gradients import test_gradient_check as checked
from tests.client.training.gradients import test_opacus_gradients as batched
from tests.client.training.gradients import test_shared_calls as together
from tests.common.config import test_schema as schema
from tests.common.privacy import test_policy as limits
from tests.mutants.faults import every_case, planted
from tests.server.reporting import test_privacy_statement as stated

planted(
    limits.test_policy_allows_gradients_in_batches_only_where_its_holder_does,
    Policy.check_run,
    {"a policy that does not look at gradients": ("config.training.gradients, self", "'auto', self")},
)
planted(
    every_case(schema.test_parse_takes_gradients_of_opacus_only_where_networks_are_clipped),
    RunConfig._check_gradients,
    {
        "gradients by Opacus that nobody clips": ("not self.mechanism.clips_units", "False"),
        "gradients by Opacus of a linear head": ("if self.needs_no_torch:", "if False:"),
    },
)
planted(
    batched.test_client_notes_gradients_in_batches_before_it_answers,
    Guard._register,
    {"gradients in batches that no ledger notes": ("gradients == OPACUS", "gradients == ''")},
)
_REFUSED = batched.test_client_refuses_before_it_agrees_where_opacus_gets_the_network_wrong
planted(
    _REFUSED,
    client_app.declare,
    {"a client that agrees before it knows its gradients": ("trainer.check_gradients()", "None")},
)
planted(
    _REFUSED,
    Trainer._network,
    {"a network that nobody checks": ("config.training.gradients == OPACUS", "False")},
)
planted(
    every_case(batched.test_check_refuses_a_network_that_opacus_gets_wrong_and_leaves_no_trace),
    opacus_gradients.check_opacus,
    {"gradients that may be any": ("if not distance <= 1:", "if False:")},
)
planted(
    batched.test_gradients_of_other_rows_or_of_none_are_refused,
    opacus_gradients._checked,
    {"a gradient of two rows that counts as one": ("found.shape != (count, *parameter.shape)", "False")},
)
_LEFT = partial(batched.test_check_accepts_a_network_and_leaves_no_trace, case="norm")
planted(
    _LEFT,
    opacus_gradients._hooks,
    {
        "hooks that stay at a network": ("hooks.remove_hooks()", "None"),
        "what Opacus writes at a network that stays there": ("vars(owner).clear()", "None"),
    },
)
planted(
    _LEFT,
    gradient_check._replaced,
    {"a check that leaves its noise in the weights": ("named[name].data.copy_(values)\n", "None\n")},
)
planted(
    batched.test_dropout_stays_off_in_the_layers_that_hooks_switch_to_training,
    opacus_gradients._hooks,
    {"dropout that hooks switch on": ("if any(parameter.requires_grad for", "if True or any(parameter for")},
)
planted(
    every_case(checked.test_check_notices_a_wrong_gradient),
    gradient_check._distance,
    {"a check that overlooks small tensors": ("_OWN * _norm(own)", "_OWN * whole")},
)
planted(
    checked.test_check_sees_layers_below_one_that_starts_with_zeros,
    gradient_check._shaken,
    {"a check of layers that start with zeros": ("return values + ", "return values + 0 * ")},
)
planted(
    every_case(stated.test_privacy_statement_says_that_rounding_in_batches_is_not_covered),
    statements.statement_sentence,
    {"a sentence that leaves rounding out": ("{exact}{rounding}", "{exact}")},
)
planted(
    every_case(stated.test_privacy_statement_says_that_rounding_in_batches_is_not_covered),
    statements.not_protected,
    {"a gap of rounding that is not stated": ("*exact, *rounding]", "*exact]")},
)
_TOUCHING = every_case(together.test_images_that_touch_or_are_computed_wrongly_share_no_calls)
planted(
    _TOUCHING,
    shared_calls.shared_calls,
    {
        "images that share calls whatever is beside them": ("alone = _stand_alone(", "alone = True or _stand_alone("),
        "images that share calls with wrong gradients": ("alone and _agree(", "alone and True or _agree("),
    },
)
planted(
    _TOUCHING,
    shared_calls._stand_alone,
    {
        "images that share calls wherever they stand": ("if known.setdefault(", "if False and known.setdefault("),
        "kernels that may read beyond their image": ("[place] != beside[place]:", "is None:"),
    },
)
planted(
    every_case(together.test_weights_of_a_message_do_not_make_touching_images_share_calls),
    shared_calls.shared_calls,
    {"a check of kernels under the weights of a message": ("with made_up_weights(network):", "if True:")},
)
planted(
    every_case(together.test_training_of_single_images_shares_calls),
    network_sgd._clipped_sums,
    {"images of a group that are clipped apart": ("() if members.grouped else ", "")},
)
planted(
    together.test_several_threads_and_parameters_of_other_names_share_no_calls,
    shared_calls.shared_calls,
    {"images that share calls between threads": ("torch.get_num_threads() > 1", "False")},
)
