"""Exported models and READMEs that say what nobody may be told, or are not the model."""

from functools import partial

import numpy as np

from common.commands.models import export
from common.inference.export import comparison
from server.reporting.readme import model_readme
from tests.common.commands.models import test_export as commands
from tests.common.inference.export import test_export as files
from tests.mutants.faults import planted
from tests.server.reporting.readme import test_model_readme as readme

planted(
    commands.test_ranges_of_images_are_written_only_if_they_are_public,
    export._check_options,
    {"ranges of private images in a file": ("not public_data", "False")},
)
planted(
    partial(files.test_logits_that_are_not_finite_are_refused, wrong=np.nan),
    comparison.check_equal,
    {"an exported model without numbers": ("not error <= TOLERANCE", "error > TOLERANCE")},
)
planted(
    readme.test_exact_figures_of_a_private_simulation_are_not_told,
    model_readme._accuracy,
    {"exact figures of a private simulation": (' or summary["simulation_only"]', "")},
)
planted(
    readme.test_figures_of_an_earlier_model_are_not_told,
    model_readme._accuracy,
    {"figures of another model": (' or summary["evaluated_model"] != final', "")},
)
planted(
    readme.test_a_folder_of_images_is_not_named,
    model_readme._data,
    {"a README with the name of a folder": ("names_a_place(source)", "False")},
)
planted(
    readme.test_class_names_cannot_change_the_form_of_the_page,
    model_readme._classes,
    {"a class that is a link": ('.replace("`", "\\\\u0060")', "")},
)
