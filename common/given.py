"""Settings as a user gave them to a command, ready to be laid over the defaults."""

from pathlib import Path

from common.config import Scalar, given_settings, load_file
from common.data.sources import names_a_place
from common.errors import ConfigError
from common.models.weights import RANDOM

_PLACES = ("data.path", "model.weights", "output-dir", "privacy.policy", "data.source")


def given_to_run(
    pairs: list[str], file: Path | None, out: Path | None, seed: int | None, device: str | None
) -> dict[str, Scalar]:
    """All settings the user gave, the command line over the file, paths made absolute.

    Args:
        pairs: `key=value`, each a `--set`.
        file: Of `--config`.
        out: Of `--out`.
        seed: Of `--seed`.
        device: Of `--device`.

    Raises:
        ConfigError: The file, a pair or a path cannot be read, or an option and `--set` name one setting.
    """
    given = given_settings(
        pairs,
        file,
        {
            "--seed": ("seed", seed),
            "--device": ("system.device", device),
            "--out": ("output-dir", None if out is None else str(out)),
        },
    )
    for key in _PLACES:
        value = given.get(key)
        names_a_file = names_a_place(str(value)) if key == "data.source" else (key, value) != ("model.weights", RANDOM)
        if isinstance(value, str) and value and names_a_file:
            given[key] = absolute(key, value)
    return given


def given_to_resume(folder: Path, device: str | None, *changes: object) -> dict[str, Scalar]:
    """The settings that a run was started with; only the device may be another one.

    Args:
        folder: The run's.
        device: Of `--device`.
        changes: Values of the options that a resumed run does not take.

    Raises:
        ConfigError: One of them was given, or the folder is no run's.
    """
    if any(value is not None and value != [] for value in changes):
        raise ConfigError("--resume goes on with a run's own settings: leave --set, --config, --out and --seed out")
    given = load_file(folder / "config.toml", "--resume")
    given |= {"resume": True, "output-dir": absolute("--resume", str(folder))}
    return given | ({} if device is None else {"system.device": device})


def absolute(key: str, value: str) -> str:
    """A path that means the same wherever it is read.

    Args:
        key: What the user gave it as.
        value: The path.

    Raises:
        ConfigError: It cannot be one.
    """
    try:
        return str(Path(value).expanduser().resolve())
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(f"{key}={value!r} is not a usable path ({error})") from None
