"""Refusal of results among the images that a source reads."""

from pathlib import Path

from common.config.sections import DataConfig
from common.data.sources.registry import names_a_place
from common.errors import ConfigError


def refuse_results_in_data(place: Path, data: DataConfig, option: str = "--out (output-dir)") -> None:
    """Refuse to write results into a folder of images.

    Raises:
        ConfigError: The place lies in the folder that `data.source` names.
    """
    root = Path(data.source)
    # A manifest names its images, so results beside it are never taken for some.
    if names_a_place(data.source) and root.is_dir() and place.resolve().is_relative_to(root.resolve()):
        raise ConfigError(
            f"{option} {place} lies inside data.source={data.source!r}, where its pictures would be read as images: "
            "name a folder outside of it, or start the command in another folder"
        )
