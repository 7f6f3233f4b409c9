"""Runs that go on as another run, or with other clients."""

from server.state import client_roll, resume
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
planted_value("a privacy setting that may differ", _RESUMED, resume, "_FREE", (*resume._FREE, "privacy.delta"))
planted_value("noise that may differ", _RESUMED, resume, "_FREE", (*resume._FREE, "privacy.noise-multiplier"))
planted(
    every_case(resumed.test_a_resumed_run_has_the_momentum_of_before),
    resume.restore,
    {"a resumed run without its momentum": ("checkpoint.steps.get(_MOMENTUM, state.momentum)", "state.momentum")},
)
