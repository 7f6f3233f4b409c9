"""The lines in which two bundles differ, as git shows them."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from common.errors import ConfigError
from common.system.app_bundle import write_files
from common.system.console import printable

_COMMAND = ("diff", "--no-index", "--no-ext-diff", "--no-textconv", "--no-color", "--no-renames", "--no-prefix")


def git_diff(before: Mapping[str, bytes], after: Mapping[str, bytes]) -> list[str]:
    """Return git's diff of two sets of files as lines safe to print.

    Args:
        before: File name -> content.
        after: As `before`.

    Raises:
        ConfigError: Git is not installed, or it fails.
    """
    program = shutil.which("git")
    if program is None:
        raise ConfigError(
            "git is not installed, so the lines that differ cannot be shown: install git (https://git-scm.com), or "
            "use --names to see the names of the files alone"
        )
    with tempfile.TemporaryDirectory(prefix="bract-review-") as scratch:
        root = Path(scratch).resolve()
        for side, files in (("a", before), ("b", after)):
            (root / side).mkdir() if not files else write_files(files, root / side)
        done = subprocess.run(  # noqa: S603
            [program, "-c", "core.pager=", *_COMMAND, "a", "b"],
            cwd=root,
            env=_environment(root),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
    # As `diff` does, git returns 1 where files differ.
    if done.returncode not in (0, 1):
        why = printable(done.stderr.decode("utf-8", "replace").strip())
        raise ConfigError(f"git could not compare the bundles (exit code {done.returncode}): {why}")
    # A carriage return or another separator inside a line must stay visible, so only "\n" ends a line.
    lines = done.stdout.decode("utf-8", "backslashreplace").split("\n")
    return [printable(line, keep="\t") for line in lines[:-1]]


def _environment(root: Path) -> dict[str, str]:
    """Return an environment in which git follows no setting from elsewhere."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return plain | {
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_ATTR_NOSYSTEM": "1",
        # The default file of attributes lies below this folder, whatever the configuration.
        "XDG_CONFIG_HOME": str(root),
        "HOME": str(root),
        # Git obeys attributes of a repository only, such as "do not show these files", and a bundle can hold some.
        # So the scratch folder must not count as part of a repository that it happens to lie in.
        "GIT_CEILING_DIRECTORIES": str(root.parent),
        "LC_ALL": "C",
    }
