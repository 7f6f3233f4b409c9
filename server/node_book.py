"""Which ledger each node has shown: a node key that comes with a new one has lost what it had spent."""

import json
from pathlib import Path

from common.errors import LedgerError
from common.ledger.heads import append_lines


class NodeBook:
    """What a server remembers of its nodes: a file of lines, only ever added to.

    Flower's number of a node stays with its key for as long as the key is admitted; a node without a key gets a new
    number whenever it starts, and is nobody that could be remembered.

    Args:
        file: Believed if it is there.

    Raises:
        LedgerError: The file is damaged.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._ledger_of: dict[int, str] = {}
        try:
            lines = file.read_text(encoding="utf-8").splitlines(keepends=True) if file.is_file() else []
            for row in (json.loads(line) for line in lines if line.endswith("\n")):
                self._ledger_of[int(row["node"])] = str(row["ledger"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise LedgerError(f"{file} cannot be read as a list of nodes ({type(error).__name__})") from None

    def check(self, node: int, ledger: str) -> None:
        """Remember the ledger that a node comes with, the first time; refuse another one later.

        Args:
            node: Flower's number of it.
            ledger: Id of the ledger, whose signature has been checked.

        Raises:
            LedgerError: It came with another ledger before.
        """
        known = self._ledger_of.get(node)
        if known is None:
            self._ledger_of[node] = ledger
            append_lines(self._file, (json.dumps({"node": node, "ledger": ledger}) + "\n").encode())
        elif known != ledger:
            raise LedgerError(
                f"node {node} came with ledger {ledger[:8]}, before with {known[:8]}: what it had spent is not there"
            )
