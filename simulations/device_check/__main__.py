"""The program `python -m simulations.device_check`."""

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from common.commands.run_settings import refuse_closed
from common.errors import BractError
from common.system.console import plain_errors, say
from simulations.benchmarks.measuring.machine import describe_machine, in_one_line
from simulations.benchmarks.measuring.tables import shown
from simulations.device_check.findings import QUICK, Finding, Sizes, failures, plain, table_of


def check(
    device: Annotated[
        Literal["auto", "cpu", "cuda", "mps"], typer.Option(help="Device to check; auto takes the GPU.")
    ] = "auto",
    quick: Annotated[bool, typer.Option("--quick", help="Small sizes, to see that the check itself works.")] = False,
    json_: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the figures as JSON.")] = None,
) -> None:
    """Check that a GPU computes what the processor computes, and time both.

    Ends with 0 if all figures pass, with 1 if one does not, and with 2 if nothing could be checked.
    """
    console = Console()
    with plain_errors("Stopped; nothing was written."):
        from simulations.device_check.check import check_device, find_device, name_of

        if json_ is not None:
            refuse_closed("--json", json_)
        chosen, started, began = find_device(device), datetime.now(UTC), time.perf_counter()
        machine, hardware = describe_machine(), name_of(chosen)
        say(console, f"{hardware} beside {in_one_line(machine)}", depth=0)
        findings: list[Finding] = []
        stopped = ""
        try:
            for finding in check_device(chosen, QUICK if quick else Sizes()):
                findings.append(finding)
                after = f"{time.perf_counter() - began:4.0f} s"
                say(console, f"{after}  {finding.part}: {finding.figure} {shown(finding.value)}", depth=1)
        except (BractError, RuntimeError) as error:
            # What was found so far says where the device stopped.
            stopped = f"{type(error).__name__}: {error}"
        failed = [*failures(findings), *([stopped] if stopped else [])]
        seconds = round(time.perf_counter() - began, 1)
        console.print(table_of(findings, hardware))
        for line in failed or [f"All figures pass, after {seconds:.0f} s."]:
            say(console, line, depth=0)
        if json_ is not None:
            facts = {"device": chosen, "hardware": hardware, "machine": machine, "quick": quick, "seconds": seconds}
            facts |= {"date": started.isoformat(timespec="seconds"), "failures": failed, "findings": plain(findings)}
            json_.write_text(json.dumps(facts, indent=1) + "\n")
    if failed:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(check)
