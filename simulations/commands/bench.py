"""The command `bract bench` that compares ways to do one job."""

import json
import shlex
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from common.commands.run_settings import refuse_closed
from common.errors import BractError, ConfigError
from common.system.console import bar_factory, plain_errors
from common.system.files import make_folder

if TYPE_CHECKING:
    from simulations.benchmarks.contract import Benchmark

BENCH_HELP = """Measure Bract beside other ways to do the same job.

Most benchmarks measure seconds. `accuracy` measures what the place of the noise costs in accuracy.

Without a name it lists the benchmarks. Each way (a variant) runs in a fresh process, one after another: that is a
pair. The order turns round in every second pair. The table has the median of all pairs with the least and the greatest
value, and ratios are taken within each pair, so that a machine that is busy for a while disturbs both sides alike.
Read CPU seconds where other programs run on the machine: they move less than wall seconds.

Ctrl-C stops it and keeps what was measured until then.

The processes have a home of their own: your ledgers and caches are neither used nor changed.

Programs of other projects run in environments of their own, which you make and name. Without one its variant is
skipped and the output says what to install.

Examples:

  bract bench

  bract bench engine --quick

  bract bench engine --pairs 3 --case "100 clients" --out results

  bract bench cross-device --data FOLDER --environment pfl=FOLDER
"""


def bench_command(
    name: Annotated[str | None, typer.Argument(help="Benchmark to run; all are listed if left out.")] = None,
    pairs: Annotated[int, typer.Option(min=1, help="Times that each variant runs.")] = 5,
    quick: Annotated[bool, typer.Option("--quick", help="Small sizes, to see that everything works.")] = False,
    case: Annotated[str, typer.Option(metavar="TEXT", help="Only cases with this text in their name.")] = "",
    data: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Folder with CIFAR-10 for benchmarks that train on images.")
    ] = None,
    environment: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FOLDER", help="Virtual environment of another project; may be repeated."),
    ] = None,
    json_: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the results as JSON.")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Folder for results as JSON, Markdown and pictures.")
    ] = None,
) -> None:
    """Measure Bract beside other ways to do the same job."""
    console = Console()
    with plain_errors("Stopped; nothing was written."):
        from simulations.benchmarks.contract import Options
        from simulations.benchmarks.measuring.runner import Runner, check_environments, run_benchmark
        from simulations.benchmarks.measuring.tables import print_results
        from simulations.benchmarks.registry import benchmark_named

        if name is None:
            _list(console)
            return
        chosen, places = benchmark_named(name), _environments(environment or [])
        options = Options(quick=quick, data=_existing(data) if data else "")
        check_environments(chosen, options, places)
        # Before hours are spent on what could not be kept.
        _make_targets(json_, out)
        with (
            bar_factory(Console(stderr=True)) as progress,
            tempfile.TemporaryDirectory(prefix="bract-bench-") as folder,
        ):
            runner = Runner(Path(folder), places)
            results = run_benchmark(chosen, options, runner, pairs=pairs, wanted=case, progress=progress)
        # Folders are the user's own: a page that others read names the data and the environments only.
        results["command"] = _shown_command(sys.argv[1:])
        print_results(chosen, results, console)
        _write(chosen, results, json_, out)
        _refuse_failures(results)
        if "stopped" in results:
            kept = " and ".join(["above", *(f"in {target}" for target in (json_, out) if target is not None)])
            raise KeyboardInterrupt(f"Stopped; the figures until then are {kept}.")


def _refuse_failures(results: dict[str, Any]) -> None:
    """Raise the errors of variants that failed, once all figures are kept."""
    failures = [row["failed"] for case in results["cases"] for row in case["variants"] if "failed" in row]
    if failures:
        raise BractError("\n".join(failures))


def _list(console: Console) -> None:
    from simulations.benchmarks.registry import all_benchmarks

    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("benchmark", "what it compares", "five pairs take about"):
        table.add_column(title)
    for benchmark in all_benchmarks():
        table.add_row(benchmark.name, benchmark.about, benchmark.duration)
    console.print(table)
    console.print("Run one by `bract bench NAME`, a first look by `bract bench NAME --quick --pairs 1`.")


def _existing(data: Path) -> str:
    from simulations.benchmarks.peers.small_images import ADVICE

    if not data.is_dir():
        raise ConfigError(f"--data {data} is not a folder: {ADVICE}")
    return str(data.absolute())


def _environments(given: list[str]) -> dict[str, Path]:
    pairs = [text.partition("=") for text in given]
    for name, _, folder in pairs:
        if not name or not folder:
            raise ConfigError(f"--environment takes NAME=FOLDER, not {name!r}")
    return {name: Path(folder) for name, _, folder in pairs}


def _shown_command(arguments: list[str]) -> str:
    """Return the command without the folders of this machine."""
    shown, words = [], iter(arguments)
    for word in words:
        option, equals, value = word.partition("=")
        if option not in ("--json", "--out", "--data", "--environment"):
            shown.append(word)
            continue
        value = value if equals else next(words, "")
        if option == "--data":
            shown += [option, Path(value).name]
        elif option == "--environment":
            shown += [option, value.partition("=")[0] + "=FOLDER"]
    return shlex.join(["bract", *shown])


def _make_targets(file: Path | None, out: Path | None) -> None:
    """Make the folders that results go into.

    Raises:
        ConfigError: A file or folder cannot be written.
    """
    for option, target, folder in (("--json", file, file and file.parent), ("--out", out, out)):
        if target is None or folder is None:
            continue
        try:
            make_folder(folder)
        except OSError as error:
            raise ConfigError(f"{option} {target} cannot be written ({str(error.strerror).lower()})") from None
        if target is file and target.is_dir():
            raise ConfigError(f"{option} {target} is a folder: name a file")
        refuse_closed(option, target)


def _write(chosen: "Benchmark", results: dict[str, Any], file: Path | None, out: Path | None) -> None:
    from simulations.benchmarks.measuring.pictures import draw_bars
    from simulations.benchmarks.measuring.tables import markdown

    try:
        text = json.dumps(results, indent=1) + "\n"
        if file is not None:
            file.write_text(text)
        if out is not None:
            (out / f"{chosen.name}.json").write_text(text)
            (out / f"{chosen.name}.md").write_text(markdown(chosen, results))
            draw_bars(out / f"{chosen.name}.png", chosen, results)
            if chosen.draw is not None:
                chosen.draw(results, out)
    except OSError as error:
        place = f" to {error.filename}" if error.filename else ""
        reason = error.strerror or error
        raise BractError(f"the results could not be written{place} ({reason}): keep the table above") from None
