"""Clients with images and homes of their own that know each other by a roster."""

import os
from dataclasses import dataclass
from pathlib import Path

from client.client_config import load_site
from client.secure.roster_file import policy_lines, read_roster, roster_line, take_roster
from common.config.loading import Scalar, defaults, override, parse
from common.config.schema import RunConfig
from common.ledger.identity_key import own_identity
from tests.support.clients.own_clients import SMALL, OwnClient, write_images

POLICY = (
    'max-epsilon = 5.0\ndelta = 1e-5\ntunings = ["full"]\nmetrics = ["none", "private", "exact"]\n'
    'mechanisms = ["none", "dp-sgd"]\n'
)


@dataclass(frozen=True)
class Wards:
    """Five clients that know each other by a roster: their folders, and the homes of their holders."""

    folders: list[Path]
    homes: list[Path]


def homes_of(root: Path, count: int) -> list[Path]:
    return [root / f"home-{number}" for number in range(count)]


def secure_clients(root: Path, homes: list[Path], policy: str = POLICY) -> list[Path]:
    """One client a home, each with the roster of all in its policy."""
    folders, lines = [], []
    for number, home in enumerate(homes):
        os.environ["BRACT_HOME"] = str(home)
        images = write_images(root / f"images-{number}", range(60 * number, 60 * number + 20 + 8 * number))
        folders.append(OwnClient(root, images, policy=policy, name=f"ward-{number}").folder)
        lines.append(roster_line(f"ward-{number}", own_identity().public_key))
    file = root / "roster.txt"
    file.write_text("# all wards\n" + "\n".join(reversed(lines)) + "\n")
    for home, folder in zip(homes, folders, strict=True):
        os.environ["BRACT_HOME"] = str(home)
        take_roster(load_site(folder), file)
        (folder / "policy.toml").write_text(policy + "\n".join(policy_lines(read_roster(file))) + "\n")
    return folders


def secure_config(output: Path, **more: Scalar) -> RunConfig:
    """Five clients, three rounds, a network that is waited for a tenth of a second."""
    own: dict[str, Scalar] = {"num-clients": 5, "num-rounds": 3, "output-dir": str(output), "round-retries": 0}
    own |= {"round-deadline": 0.1, "join-deadline": 0.1, "min-clients": 3, "training.learning-rate": 0.05}
    own |= {"privacy.mechanism": "none", "privacy.aggregation": "secure"}
    given = {name.replace("__", ".").replace("_", "-"): value for name, value in more.items()}
    return parse(override(defaults(), SMALL | own | given))
