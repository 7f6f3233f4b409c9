"""The program `python -m simulations.device_check`."""

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from common.commands.run_settings import refuse_closed
from common.errors import BractError
from common.system.console import plain_errors, say
from simulations.benchmarks.measuring.machine import describe_machine, in_one_line
from simulations.device_check.findings import QUICK, Finding, Sizes, failures, in_words, plain, table_of


def check(
    device: Annotated[
        Literal["auto", "cpu", "cuda", "mps"], typer.Option(help="Device to check; auto takes the GPU.")
    ] = "auto",
    quick: Annotated[bool, typer.Option("--quick", help="Small sizes, to see that the check itself works.")] = False,
    json_: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the figures as JSON.")] = None,
) -> None:
    """Hold what a GPU computes against the processor.

    Ends with 0 if all figures pass, with 1 if one does not, and with 2 if nothing could be checked.
    """
    console = Console()
    with plain_errors("Stopped."):
        from simulations.device_check.check import check_device, find_device, name_of

        if json_ is not None:
            refuse_closed("--json", json_)
        chosen, started, began = find_device(device), datetime.now(UTC), time.perf_counter()
        facts: dict[str, Any] = {"device": chosen, "hardware": name_of(chosen), "machine": describe_machine()}
        facts |= {"quick": quick, "date": started.isoformat(timespec="seconds")}
        say(console, f"{facts['hardware']} beside {in_one_line(facts['machine'])}", depth=0)
        findings: list[Finding] = []
        failed: list[str] = []
        try:
            for finding in check_device(chosen, QUICK if quick else Sizes()):
                findings.append(finding)
                facts["seconds"] = round(time.perf_counter() - began, 1)
                say(console, f"{facts['seconds']:5.1f} s  {in_words(finding)}", depth=1)
                # After each figure, so that a device which hangs loses no other.
                _write(json_, facts, findings, complete=False)
        # Of the file too: the table must not be lost with it.
        except (BractError, RuntimeError, OSError) as error:
            failed = [f"The check stopped: {error}"]
        failed += failures(findings)
        console.print(table_of(findings, facts["hardware"]))
        for line in failed or [f"All figures pass, after {time.perf_counter() - began:.0f} s."]:
            say(console, line, depth=0)
        _write(json_, {**facts, "failures": failed}, findings, complete=True)
    if failed:
        raise typer.Exit(1)


def _write(file: Path | None, facts: dict[str, Any], findings: list[Finding], *, complete: bool) -> None:
    if file is not None:
        file.write_text(json.dumps({**facts, "complete": complete, "findings": plain(findings)}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(check)
