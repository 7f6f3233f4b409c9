"""Tables of pictures whose rows belong to subgroups."""

from pathlib import Path

from common.config.loading import Scalar
from tests.support.clients.own_clients import CLASSES, picture

SEXES = ("f", "m", "m", "x", "")
BY_SEX: dict[str, Scalar] = {"data.subgroup-column": "sex", "data.subgroups": "f,m"}
# So much noise that its accounting takes milliseconds.
NOISY: dict[str, Scalar] = {
    "privacy.target-epsilon": "",
    "privacy.noise-multiplier": 40.0,
    "privacy.counts-noise": 40.0,
    "privacy.closing-noise": 20.0,
}


def write_divided(folder: Path, count: int, *, column: str = "sex") -> Path:
    """Write pictures and a table of them, whose column names a subgroup of each, and return the table."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [f"path,label,{column}\n"]
    for number in range(count):
        picture(number, number % 2).save(folder / f"{number:04d}.png")
        rows.append(f"{number:04d}.png,{CLASSES[number % 2]},{SEXES[number % 5]}\n")
    (folder / "scans.csv").write_text("".join(rows))
    return folder / "scans.csv"
