"""The settings that a user gives to a command."""

import os
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from common.config.listed_values import join_names
from common.config.loading import RIVALS, Scalar, load_file, plain_values
from common.config.sections import DataConfig
from common.data.results_place import refuse_results_in_data
from common.data.sources.base_source import OWN_IMAGES
from common.data.sources.registry import OpenSource, names_a_place, open_source
from common.errors import ConfigError
from common.models.weight_files import RANDOM
from common.system.console import printable

ClassNames = Annotated[
    list[str] | None,
    typer.Option("--class", metavar="NAME", help="One name of data.classes, in its order; repeat for each."),
]


def class_option(names: Sequence[str] | None) -> dict[str, tuple[str, Scalar | None]]:
    """Return the option `--class` as `given_settings` takes it."""
    return {"--class": ("data.classes", join_names(names) if names else None)}


def set_value(text: str) -> tuple[str, Scalar]:
    """Parse one `key=value` from the command line with TOML's types.

    >>> set_value("data.alpha=0.5")
    ('data.alpha', 0.5)
    >>> set_value("model.backbone=cnn")
    ('model.backbone', 'cnn')
    >>> set_value('data.classes=["cat", "dog"]')
    ('data.classes', 'cat,dog')

    Raises:
        ConfigError: There is no `=`, or the value is a table or a list of anything but class names.
    """
    key, equals, raw = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {text!r}: write it as key=value, such as --set data.alpha=0.5")
    try:
        value = tomllib.loads(f"v = {raw.strip()}")["v"]
    except tomllib.TOMLDecodeError:
        value = raw.strip()
    try:
        # A list is class names, as in a file of settings.
        return key.strip(), plain_values({key.strip(): value})[key.strip()]
    except ConfigError as error:
        raise ConfigError(f"--set {text!r}: {error}; a list is joined by commas") from None


def set_values(pairs: Iterable[str]) -> dict[str, Scalar]:
    """Parse the texts of all `--set` options."""
    return dict(map(set_value, pairs))


def check_picture(option: str, file: Path | None, data: DataConfig) -> None:
    """Refuse a picture that could not be written after the work is done.

    Raises:
        ConfigError: The name does not end in .png, or its folder does not exist, holds the images or is closed to this
            user.
    """
    if file is None:
        return
    if file.suffix.lower() != ".png" or not file.parent.is_dir() or file.is_dir():
        raise ConfigError(f"{option} {file}: give a file ending in .png in a folder that exists")
    refuse_closed(option, file)
    refuse_results_in_data(file, data, option)


def refuse_closed(option: str, file: Path, *, replaces: bool = False) -> None:
    """Refuse an output that this user may not write, before anything is computed.

    Under `replaces` a new file takes the place of an old one, so that the folder's rights decide.

    Raises:
        ConfigError: The file, or the folder of a new file, is closed to this user.
    """
    if not os.access(file.parent if replaces or not file.exists() else file, os.W_OK):
        raise ConfigError(f"{option} {file} cannot be written (permission denied)")


def given_settings(
    pairs: Iterable[str], file: Path | None, options: Mapping[str, tuple[str, Scalar | None]]
) -> dict[str, Scalar]:
    """Merge the settings of a file with those of the command line.

    The command line replaces the file. A noise multiplier on the command line also replaces a target epsilon in the
    file, and the other way round. `options` maps an option, such as `--seed`, to the key of its setting and its value
    or None.

    Raises:
        ConfigError: The file or a pair cannot be read, or an option and `--set` name the same setting.
    """
    settings = set_values(pairs)
    for option, (key, value) in options.items():
        if value is not None and key in settings:
            raise ConfigError(f"{option} and --set {key} name one setting twice: leave one of them out")
    settings |= {key: value for key, value in options.values() if value is not None}
    from_file = load_file(file) if file else {}
    for key, rival in (RIVALS, RIVALS[::-1]):
        if key in settings:
            from_file.pop(rival, None)
    return from_file | settings


# Settings that can hold a path.
PATHS = (
    "data.path",
    "model.weights",
    "model.initial",
    "output-dir",
    "privacy.policy",
    "data.source",
    "evaluation.folder",
)


def settings_for_run(
    pairs: list[str],
    file: Path | None,
    out: Path | None,
    seed: int | None,
    device: str | None,
    classes: Sequence[str] | None = None,
    source: str | None = None,
) -> dict[str, Scalar]:
    """Return the settings of a new run, with absolute paths.

    Raises:
        ConfigError: The file, a pair or a path cannot be read, or an option and `--set` name the same setting.
    """
    options: dict[str, tuple[str, Scalar | None]] = {
        "--seed": ("seed", seed),
        "--device": ("system.device", device),
        "--out": ("output-dir", None if out is None else str(out)),
        **class_option(classes),
        "SOURCE": ("data.source", source),
    }
    return absolute_paths(given_settings(pairs, file, options))


def absolute_paths(settings: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Return settings whose paths mean the same in every folder.

    Raises:
        ConfigError: A path is not usable.
    """
    changed = dict(settings)
    for key in PATHS:
        value = changed.get(key)
        is_path = names_a_place(str(value)) if key == "data.source" else (key, value) != ("model.weights", RANDOM)
        if isinstance(value, str) and value and is_path:
            changed[key] = absolute(key, value)
    return changed


# Settings that say where the data of a resumed run are now.
_MOVED = ("data.source", "data.path")


def settings_for_resume(
    folder: Path,
    device: str | None,
    pairs: Iterable[str],
    source: str | None,
    *changes: object,
    own_images: bool = False,
    may_move: bool = True,
) -> dict[str, Scalar]:
    """Return the settings that a run was started with.

    `source` and `pairs` say where its data are now, and the device may differ from the run's. `changes` are the values
    of options that a resumed run does not accept. Under `own_images` the data are the clients' own and do not move.
    Without `may_move` other data could not be told from the run's own.

    Raises:
        ConfigError: `changes` has a value, a pair names another setting, the folder does not hold a run, or its data
            are not where they were.
    """
    moved = set_values(pairs) | ({} if source is None else {"data.source": source})
    if any(value is not None for value in changes) or not moved.keys() <= set(() if own_images else _MOVED):
        raise ConfigError(
            "--resume keeps a run's own settings: leave --set, --class, --config, --out and --seed out"
            + ("" if own_images else "; only data that moved are named, by --set data.source=/new/place")
        )
    settings = load_file(folder / "config.toml", "--resume")
    settings |= {"resume": True, "output-dir": absolute("--resume", str(folder))}
    for key, value in moved.items():
        settings[key] = absolute(key, str(value)) if key == "data.path" or names_a_place(str(value)) else value
    source, path = (str(settings.get(key, "")) for key in _MOVED)
    if own_images and source != OWN_IMAGES:
        raise ConfigError(
            f"--resume {folder} is a simulation over data.source={source!r}: resume it with `bract simulate --resume "
            f"{folder}`"
        )
    for key, place in ((_MOVED[0], source), (_MOVED[1], path)):
        if place.startswith("/") and not Path(place).exists():
            advice = (
                f"if the data moved, add --set {key}=/new/place"
                if may_move
                else "put the data back, as the run has no record of its images by which to know them elsewhere"
            )
            raise ConfigError(f"--resume {folder}: {key}={place!r} is not there any more; {advice}")
    return settings | ({} if device is None else {"system.device": device})


def absolute(key: str, value: str) -> str:
    """Return an absolute path that means the same in every folder.

    Raises:
        ConfigError: The value is not a usable path.
    """
    try:
        return str(Path(value).expanduser().resolve())
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(f"{key}={value!r} is not a usable path ({error})") from None


def show_remarks(config: DataConfig, console: Console, opener: OpenSource = open_source) -> None:
    """Print what a source leaves out and where the class list differs from it.

    Do so also where little is printed, because such a run may train on other images than its user thinks.

    Raises:
        DataError: The source cannot be opened.
    """
    # A known source is whole: it can only differ from a class list.
    if config.source != OWN_IMAGES and (names_a_place(config.source) or config.class_names):
        for remark in opener(config).remarks():
            console.print(printable(remark), highlight=False, soft_wrap=True, markup=False)
