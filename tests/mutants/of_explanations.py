"""Explanations that show another thing than the model's reason, or show it to others."""

from functools import partial

from common.commands.models import explain
from common.inference.explanation import doubtful_images, explainer, methods, overlay, sanity_check
from tests.common.commands.models import test_explain as commands
from tests.common.inference.explanation import test_doubtful_images, test_explainer, test_methods, test_sanity_check
from tests.mutants.faults import planted

_OUT_REFUSED = commands.test_a_mistake_ends_in_exit_code_2_and_writes_nothing

planted(
    test_methods.test_a_channel_that_is_zero_everywhere_leaves_the_map_finite,
    methods.LogOdds.logits,
    {"a map that is not a number": ("maps.requires_grad", "False")},
)
planted(
    test_methods.test_the_output_is_the_log_of_the_odds_whatever_is_added_to_all_logits,
    methods.LogOdds.forward,
    {"a logit in place of the odds": ("- others", "")},
)
planted(
    partial(test_methods.test_maps_light_what_the_score_depends_on_and_nothing_else, method="occlusion"),
    methods._by_cell,
    {"what speaks against a class, lit": (".relu()", ".abs()")},
)
planted(
    test_sanity_check.test_flat_maps_are_alike_and_a_flat_map_is_unlike_any_other,
    sanity_check.rank_correlation,
    {"an empty map that passes the check": ("float(not any(lengths))", "0.0")},
)
planted(
    test_doubtful_images.test_mistakes_come_by_confidence_and_others_by_doubt,
    doubtful_images.choose_doubtful,
    {"the mistakes that matter least": ("-scored.confidence[wrong]", "scored.confidence[wrong]")},
)
planted(
    test_explainer.test_the_strongest_colour_is_where_the_map_is_largest,
    overlay.draw_overlay,
    {"a map on its side": ("scaled.astype", "scaled.T.astype")},
)
planted(
    commands.test_another_class_is_explained_if_it_is_named,
    explainer.Explainer._explain,
    {"always the likely class": ("is None else given", "is None else likely[row]")},
)
planted(
    partial(_OUT_REFUSED, arguments=["{run}", "{images}", "--out", "{tmp}/other/pictures"], fragment="folder of a run"),
    explain._is_passed_on,
    {"pictures of private images in a run": ("holds_results(names) or ", "")},
)
planted(
    # In a folder of this test alone, because the fault writes there.
    partial(_OUT_REFUSED, arguments=["{run}", "{images}", "--out", "{tmp}/handed/deeper"], fragment="folder of a run"),
    explain._is_passed_on,
    {"pictures of private images in a model": (" or any(card.is_file() for card in cards)", "")},
)
