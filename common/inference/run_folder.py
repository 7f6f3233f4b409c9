"""Results of a run, read from its folder."""

import json
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import DataError

if TYPE_CHECKING:
    from pandas import DataFrame

    from common.inference.classifier import Classifier


class Run:
    """Folder of a run, whose files are read when they are asked for.

    Args:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @cached_property
    def summary(self) -> dict[str, Any]:
        """Content of `summary.json`.

        Raises:
            DataError: The file is missing or damaged.
        """
        return self._json("summary.json")

    @cached_property
    def privacy(self) -> dict[str, Any]:
        """Content of `privacy.json`, the run's privacy statement.

        Raises:
            DataError: The file is missing or damaged.
        """
        return self._json("privacy.json")

    @cached_property
    def rounds(self) -> "DataFrame":
        """Table with a row for each round.

        A figure inside another one, such as the accuracy under `private`, has a column `private.accuracy`.

        Raises:
            DataError: The file is damaged.
        """
        from pandas import json_normalize

        file = self.path / "rounds.jsonl"
        lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
        try:
            return json_normalize([json.loads(line) for line in lines if line])
        except ValueError:
            raise DataError(f"{file} is damaged") from None

    @cached_property
    def model(self) -> "Classifier":
        """Model of the run's last complete round.

        Raises:
            ModelError: The run has no model yet, or it does not fit its card.
        """
        from common.inference.classifier import load_model

        return load_model(self.path)

    def _json(self, name: str) -> dict[str, Any]:
        file = self.path / name
        try:
            content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise DataError(f"{file} cannot be read ({error.strerror})") from None
        except ValueError:
            raise DataError(f"{file} is damaged") from None
        return content


def open_run(place: str | Path) -> Run:
    """Open the folder of a run.

    Raises:
        DataError: The folder does not hold a run.
    """
    folder = Path(place)
    if not (folder / "config.toml").is_file():
        raise DataError(f"{folder} does not hold a run (it has no config.toml)")
    return Run(folder)
