"""Runs that go on as another run, or with other clients."""

from server.state import checkpoint, client_roll, resume
from tests.mutants.faults import every_case, planted, planted_value
from tests.server.state import test_client_roll as rolls
from tests.server.state import test_resumed_clients as resumed

_RESUMED = resumed.test_a_resumed_run_is_the_same_run_with_the_same_clients
_SAME_SETTINGS = 'checkpoint.facts["settings"] not in (_digest(settings), _digest_with_place(folder, settings))'
planted(
    _RESUMED,
    resume.open_checkpoint,
    {
        "a resume with another plan": (_SAME_SETTINGS, "False"),
        "a resume by the digest's first digits": (
            _SAME_SETTINGS,
            'checkpoint.facts["settings"][:16] not in (_digest(settings)[:16],)',
        ),
        "a complete run that is resumed": ('checkpoint.facts["status"] == "complete"', "False"),
        "a run without its checkpoint that begins anew": ('(folder / "rounds.jsonl").exists()', "False"),
    },
)
planted(
    _RESUMED,
    resume._changed,
    {
        "a returning client of another size": ("now[name].declaration.num_units != units", "False"),
        "a returning client of another backbone": ('_agreed(now[name].declaration) != facts["agreed"]', "False"),
    },
)
planted(
    _RESUMED,
    resume._agreed,
    {
        "a resumed run without its classes": ('"classes": list(declaration.classes)', '"classes": []'),
    },
)
planted(
    every_case(rolls.test_a_missing_or_changed_roll_is_one_clear_error),
    client_roll.read_back,
    {
        "sizes of clients that have changed on the disk": (
            "hashlib.sha256(content).hexdigest() != digest",
            "not content",
        )
    },
)
planted(
    rolls.test_a_roll_that_was_damaged_meanwhile_is_written_anew,
    client_roll.move_out,
    {"a damaged file that no checkpoint mends": (" or file.read_bytes() != roll.content", "")},
)
planted(
    rolls.test_files_of_others_with_such_a_name_are_kept,
    client_roll.remove_others,
    {"somebody else's file that is removed": (" and _NAME.fullmatch(file.name)", "")},
)
planted(
    every_case(rolls.test_code_that_knows_no_rolls_refuses_a_checkpoint_with_one_by_its_format),
    checkpoint.save_checkpoint,
    {"a checkpoint that code of before reads in part": ("_APART if apart else _FORMAT", "_FORMAT")},
)
planted_value("a privacy setting that may differ", _RESUMED, resume, "_FREE", (*resume._FREE, "privacy.delta"))
planted_value("noise that may differ", _RESUMED, resume, "_FREE", (*resume._FREE, "privacy.noise-multiplier"))
planted(
    every_case(resumed.test_a_resumed_run_has_the_momentum_of_before),
    resume.restore,
    {"a resumed run without its momentum": ("checkpoint.steps.get(_MOMENTUM, state.momentum)", "state.momentum")},
)
