"""Execution of docs/notebook.ipynb.

`python -m tests.support.notebook` writes its outputs into the file, and with an argument into another one.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
from jupyter_client import AsyncKernelManager
from nbclient import NotebookClient

from tests.support.paths import ROOT

NOTEBOOK = ROOT / "docs" / "notebook.ipynb"


def execute(notebook: nbformat.NotebookNode, folder: Path) -> None:
    """Replace the outputs of a notebook by those of a new execution in an empty folder."""
    manager = AsyncKernelManager()
    # This interpreter, whatever kernels are installed.
    manager.kernel_spec.argv[0] = sys.executable
    client = NotebookClient(notebook, km=manager, timeout=240, record_timing=False, coalesce_streams=True)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "BRACT_HOME": str(folder / "home")}
    client.execute(cwd=str(folder), env=environment, stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    read = nbformat.read(NOTEBOOK, as_version=4)
    with tempfile.TemporaryDirectory() as place:
        execute(read, Path(place))
    nbformat.write(read, sys.argv[1] if len(sys.argv) > 1 else NOTEBOOK)
