"""Options that the audit commands of this room share."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from common.commands.run_settings import given_settings
from common.config import loading as settings
from common.errors import ConfigError
from common.privacy.mechanisms.registry import MECHANISMS

Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any setting of `bract simulate`; may be repeated."),
]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="TOML file with settings; --set wins over it.")]
Seed = Annotated[int | None, typer.Option(help="Root seed of partition, halves and initial model; never of noise.")]
Run = Annotated[
    Path | None,
    typer.Option("--run", metavar="DIR", help="Audit this run's settings, and attach the results to it."),
]
Workers = Annotated[int | None, typer.Option(min=1, help="Processes of one thread each; as many as cores if left out.")]
OutFolder = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", help="Folder for scores and results; named after the settings if left out."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, nothing else.")]


def audited_settings(
    run: Path | None, pairs: list[str] | None, file: Path | None, seed: int | None, *, noised_sums: bool = False
) -> dict[str, settings.Scalar]:
    """Return the complete settings of a run or of the command line.

    Args:
        run: Folder of a run that has ended, or None.
        pairs: Values of `--set`, each `key=value`.
        file: TOML file of `--config`, or None.
        seed: Value of `--seed`, or None.
        noised_sums: Whether the audit can read secure sums with noise.

    Raises:
        ConfigError: A setting is wrong, both a run and settings were given, or the run has not ended.
    """
    chosen = given_settings(pairs or [], file, {"--seed": ("seed", seed)})
    if run is not None:
        from server.audit.attached_attacks import check_ended

        if chosen:
            raise ConfigError("--run takes the settings of that run: leave --set, --config and --seed out")
        chosen = settings.load_file(run / "config.toml", "--run")
        check_ended(run)
    found = settings.override(settings.defaults(), chosen)
    mechanism = MECHANISMS.get(str(found["privacy.mechanism"]))
    if not (noised_sums and mechanism is not None and mechanism.private):
        refuse_sums(found)
    return found


def refuse_sums(found: Mapping[str, settings.Scalar]) -> None:
    """Refuse settings under which no client's message can be audited by itself.

    Raises:
        ConfigError: Clients send to a secure sum.
    """
    if found["privacy.aggregation"] == "plain":
        return
    mechanism = MECHANISMS.get(str(found["privacy.mechanism"]))
    raise ConfigError(
        "this audit reads what one client sends, and under privacy.aggregation='secure' only sums of clients can be "
        "read: use --set privacy.aggregation=plain, or `bract audit layers` for sums with noise"
        + (
            ", where the server adds the noise; the clients' noise in sums is not covered"
            if mechanism and mechanism.clips_clients
            else ""
        )
    )
