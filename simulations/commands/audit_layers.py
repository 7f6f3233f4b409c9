"""The command `bract audit layers` that runs the privacy tests of a configuration."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from common.config import loading as settings
from common.system.console import bar_factory, plain_errors
from simulations.commands import audit_options as options
from simulations.harness.scratch_folder import scratch

if TYPE_CHECKING:
    from simulations.privacy_tests.check import PrivacyTestReport

LAYERS_HELP = """Try to break the guarantee of a configuration: the real client, asked by real messages.

T1  neighbour replay: one more unit under the same noise moves a sum by at most the clipping bound, and nothing else
T2  the noise has the declared scale, in each tensor and each count
T3  no noise, batch or key is used twice: between steps, rounds, clients, processes
T4  batches are Poisson samples at the declared rate, empty ones included
T5  the ledger's epsilon against an independent accountant
T6  every field and byte that leaves, against what may leave
T8  retries, crashes, full disks, restored and edited ledgers, races: no ledger lacks a charge

The tests use a few images of the first client, plain SGD and one pass a round. The auditor chooses images, streams
and faults; all other code is what clients run. T7, the canary audit, is `bract audit empirical`.

Of secure sums with noise in shares T1 to T3 are run: what a server reads that colludes with all clients but the honest
ones that carry the noise. Masks are left out, since they cancel exactly.

Exit code: 0 all tests hold, 1 a test does not hold, 2 a setting is wrong.

Examples:

  bract audit layers

  bract audit layers --set model.backbone=resnet18 --set model.tuning=norm --set model.weights=random

  bract audit layers --set privacy.aggregation=secure --set round-retries=0 --set num-clients=5

  bract audit layers --set privacy.mechanism=client-dp --set num-clients=100 --set privacy.delta=1e-3
"""


def layers_command(
    images: Annotated[int, typer.Option(min=1, help="Training images of the first client to test with.")] = 8,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show every check, not only those that fail.")
    ] = False,
    run: options.Run = None,
    seed: options.Seed = None,
    set_: options.Sets = None,
    config: options.ConfigFile = None,
    as_json_: options.AsJson = False,
) -> None:
    """Try to break a configuration's guarantee by its privacy tests."""
    console = Console(stderr=as_json_)
    with plain_errors():
        from common.data.preprocessing import prepare
        from simulations.harness.client_harness import ClientHarness
        from simulations.privacy_tests.check import run_privacy_test
        from simulations.privacy_tests.suite import ABOUT, privacy_tests_of

        audited = settings.parse(options.audited_settings(run, set_, config, seed, noised_sums=True))
        reports = []
        with bar_factory(console) as progress, scratch() as folder:
            # Ahead of the harness, which shows no progress: it then finds images and features in the cache.
            prepare(audited, progress)
            tests = privacy_tests_of(ClientHarness.of(audited, Path(folder), num_images=images).with_settings())
            for test, checks in tests.items():
                advance = progress(1, f"{test} {ABOUT[test]}")
                reports.append(run_privacy_test(test, checks))
                advance(1)
        results = as_json(reports)
        if run is not None:
            from server.audit.attached_attacks import attach_audit

            attach_audit(run, "layers", results)
        if as_json_:
            typer.echo(json.dumps(results, indent=2))
        else:
            print_reports(reports, console, verbose=verbose)
    if not all(report.holds for report in reports):
        raise typer.Exit(1)


def as_json(reports: "list[PrivacyTestReport]") -> dict[str, Any]:
    """Return reports as plain values with a verdict and a sentence."""
    failed = [report.test for report in reports if not report.holds]
    checks = sum(len(report.checks) for report in reports)
    tests = ", ".join(report.test for report in reports)
    sentence = f"Violated: {', '.join(failed)} do not hold." if failed else f"{checks} checks of {tests} hold."
    return {
        "verdict": "violated" if failed else "consistent",
        "sentence": sentence,
        "layers": {
            report.test: {
                "holds": report.holds,
                "seconds": round(report.seconds, 2),
                "checks": [vars(check) for check in report.checks],
            }
            for report in reports
        },
    }


def print_reports(reports: "list[PrivacyTestReport]", console: Console, *, verbose: bool) -> None:
    """Print one line a privacy test and every check that failed.

    Args:
        reports: Report of each privacy test.
        console: Where to print.
        verbose: Print all checks.
    """
    from simulations.privacy_tests.suite import ABOUT

    table = Table(box=None, padding=(0, 1), pad_edge=True)
    for name in ("test", "subject", "checks", "seconds", ""):
        table.add_column(name)
    for report in reports:
        verdict, style = ("holds", "green") if report.holds else ("DOES NOT HOLD", "bold red")
        cells = (report.test, ABOUT[report.test], str(len(report.checks)), f"{report.seconds:.1f}")
        table.add_row(*cells, f"[{style}]{verdict}[/]")
    console.print(table)
    for report in reports:
        for check in report.checks if verbose else report.failed:
            style = "" if check.passed else "bold red"
            line = f"{report.test} {'ok  ' if check.passed else 'FAIL'} {check.name}: {check.seen}"
            console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)
    console.print(as_json(reports)["sentence"], highlight=False)
