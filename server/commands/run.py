"""Command that runs a federation of real clients."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from common.commands.run_settings import ClassNames
from common.system.console import plain_errors
from server.commands.track_option import Track

RUN_HELP = """Run a federation over the clients that are admitted to the server of this machine.

The server must be started (bract server start), and so must the clients (bract client start). The run happens on the
server, and this command follows it. Ctrl-C stops the run after its last complete round; --resume continues it.

Examples:

  bract run federation --set data.classes=normal,tumour

  bract run federation --config study.toml --set min-clients=3 --set round-deadline=900

  bract run federation --resume federation/runs/NAME
"""


def run_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The server's folder.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change one setting; may be repeated. --dry-run lists all."),
    ] = None,
    class_: ClassNames = None,
    config: Annotated[Path | None, typer.Option(help="TOML file with settings; --set wins over it.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the results; a new one in DIR/runs if left out.")] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Resume a run that was stopped or killed, in its own folder.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Root seed of batches, cohorts and initial model.")] = None,
    track: Track = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the settings; submit nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON, nothing else.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only the final table.")] = False,
) -> None:
    """Run a federation over real clients."""
    from common.commands.run_settings import settings_for_resume, settings_for_run
    from common.config.loading import resolved
    from common.system.console import set_log_levels
    from server.deployment.server_folder import load_home
    from server.deployment.submit_run import run_config_of, run_on_server
    from server.reporting.summary_view import print_summary

    console = Console(stderr=as_json, quiet=quiet)
    set_log_levels(verbose=False)
    with plain_errors("Stopped before the run was submitted."):
        home = load_home(folder)
        if resume is None:
            settings = settings_for_run(set_ or [], config, out, seed, None, class_)
        else:
            changes = (config, out, seed, class_)
            settings = settings_for_resume(resume, None, set_ or [], None, *changes, own_images=True)
        run_config = run_config_of(home, settings)
        if dry_run:
            typer.echo(json.dumps(resolved(run_config), indent=2))
            return
        if run_config.secure is not None:
            least = run_config.secure.min_survivors
            console.print(
                f"Sums      of at least {least} of {run_config.num_clients} clients, unseen one by one; no round is "
                "tried again",
                soft_wrap=True,
            )
        summary, run_folder = run_on_server(home, run_config, console, track or ())
    if as_json:
        typer.echo(json.dumps(summary, indent=2))
    else:
        print_summary(summary, run_folder, Console(), resume=f"bract run {folder} --resume")
    if summary["status"] != "complete":
        raise typer.Exit(130)
