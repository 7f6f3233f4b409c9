"""Stored models that are not their card's, and what is said of private images."""

from functools import partial

from common.commands.models import predict
from common.inference import card, network, weights
from tests.common.commands.models import test_predict as commands
from tests.common.inference import test_hostile_models as hostile
from tests.mutants.faults import planted, planted_value


def _refused(name: str) -> partial[None]:
    return partial(hostile.test_a_bad_model_is_refused_in_one_line, name)


planted(
    _refused("one bit of the weights"),
    weights._check_digest,
    {"weights with another digest": ("actual != card.model_sha256", "False")},
)
planted(
    _refused("other classes in the card"),
    weights._check_classes,
    {"a card with other classes": ("classes != list(card.classes)", "False")},
)
planted(
    _refused("classes in another order"),
    weights._check_classes,
    {"classes in another order": ("classes != list(card.classes)", "sorted(classes) != sorted(card.classes)")},
)
planted(
    _refused("NaN without a digest"),
    weights.read_weights,
    {"weights that are not finite": ("not np.isfinite(array).all()", "False")},
)
planted(
    _refused("truncated weights"),
    weights._check_size,
    {"weights that are cut short": ("actual != wanted", "False")},
)
planted(
    _refused("tensor of integers"),
    weights._check_tensors,
    {"weights of another type": ('part.get_dtype() != "F32" or ', "")},
)
planted_value("a header of any size", _refused("header of 100 MB"), weights, "_MAX_HEADER_BYTES", 10**12)
planted(
    _refused("weights outside of the folder"),
    card.ModelCard._is_a_plain_name,
    {"weights of the backbone from any folder": ("value != Path(value).name", "False")},
)
planted(
    _refused("a head that stayed at the clients"),
    network.build_from_card,
    {"a head that nobody has": ('card.personal == "head"', "False")},
)
planted(
    _refused("backbone of another hash"),
    network._settings,
    {"another backbone than the card's": ('"model.weights-sha256": card.backbone_sha256,', "")},
)
planted(
    _refused("a step that nobody knows"),
    network._check_preprocessing,
    {"a step of preprocessing that is left out": ("{*here, *card.preprocessing}", "here")},
)
planted(
    commands.test_tables_hold_what_the_terminal_shows_and_are_the_owners_alone,
    predict.write_output,
    {"predictions that all may read": ("mode=0o600", "mode=0o666")},
)
planted(
    partial(
        commands.test_a_mistake_ends_in_exit_code_2_and_writes_nothing,
        arguments=["{run}", "{images}", "--csv", "{run}/model/found.csv"],
        fragment="folder of the model",
    ),
    predict.check_outputs,
    {"predictions beside the model": ("passed_on & {*file.resolve().parents}", "False")},
)
