"""docs/notebook.ipynb runs as it stands, and its stored outputs are those of a run.

Drives `common.system.console`, `server.reporting.terminal_progress`.
"""

import re
import subprocess
import sys

import nbformat
import pytest
from nbformat import NotebookNode

from tests.support.notebook import NOTEBOOK
from tests.support.paths import ROOT

pytestmark = pytest.mark.slow


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def form_of(cell: NotebookNode) -> list[tuple[str, str]]:
    """Return the outputs of a cell without figures and spaces, which noise and a machine's speed change."""
    texts = [(output.output_type, output.get("text") or output["data"]["text/plain"]) for output in cell.outputs]
    waiting = re.compile(r"^.*: \d+ of \d+\n", re.M)
    return [(kind, re.sub(r"[\d.]+|\s+", "#", waiting.sub("", text))) for kind, text in texts]


@pytest.fixture(name="executed", scope="module")
def executed_fixture(tmp_path_factory: pytest.TempPathFactory) -> NotebookNode:
    # A process of its own: the client of the kernel leaves sockets open.
    out = tmp_path_factory.mktemp("notebook") / "executed.ipynb"
    command = [sys.executable, "-m", "tests.support.notebook", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return nbformat.read(out, as_version=4)


def test_the_outputs_in_the_notebook_are_those_of_a_run(executed: NotebookNode) -> None:
    stored = nbformat.read(NOTEBOOK, as_version=4)
    for before, now in zip(code_cells(stored), code_cells(executed), strict=True):
        assert form_of(before) == form_of(now), f"run `python -m tests.support.notebook`:\n{now.source}"


def test_a_notebook_shows_a_plain_line_for_each_round(executed: NotebookNode) -> None:
    cell = next(cell for cell in code_cells(executed) if "bract.simulate(" in cell.source)

    assert [(output.output_type, output.name) for output in cell.outputs] == [("stream", "stdout")]
    lines = cell.outputs[0].text.splitlines()
    assert [line[:11] for line in lines[-8:]] == [f"round   {number}/8" for number in range(1, 9)]
    assert all(lines)
    assert "\x1b" not in cell.outputs[0].text


def test_no_cell_warns(executed: NotebookNode) -> None:
    assert not [output for cell in code_cells(executed) for output in cell.outputs if output.get("name") == "stderr"]
