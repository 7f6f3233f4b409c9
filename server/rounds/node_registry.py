"""Which name and which ledger each node has shown: a node key that comes with a new ledger has lost what it had spent.

Flower's number of a node stays with its key for as long as the key is admitted. A node without a key gets a new number
whenever it starts, and is nobody that could be remembered.
"""

import json
from pathlib import Path

from common.errors import LedgerError
from common.ledger.signed_heads import append_lines
from common.system.files import write_atomic

NODES_FILE = "nodes.jsonl"


def forget_node(file: Path, node: int) -> None:
    """Let a node's name go: its key was revoked.

    Args:
        file: Of a `NodeRegistry`; need not be there.
        node: Flower's number of it.

    Raises:
        LedgerError: The file is damaged, or cannot be written.
    """
    if not file.is_file():
        return
    try:
        lines = [line for line in file.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
        kept = [line for line in lines if int(json.loads(line)["node"]) != node]
        write_atomic(file, "".join(kept), durable=False, mode=0o600)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LedgerError(f"{file} cannot be read as a list of nodes ({type(error).__name__})") from None


class NodeRegistry:
    """What a server remembers of nodes with admitted keys: a file of lines, only ever added to.

    Args:
        file: Believed if it is there.

    Raises:
        LedgerError: The file is damaged.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._ledger_of: dict[int, str] = {}
        self._owner_of: dict[str, int] = {}
        try:
            lines = file.read_text(encoding="utf-8").splitlines(keepends=True) if file.is_file() else []
            for row in (json.loads(line) for line in lines if line.endswith("\n")):
                self._take(int(row["node"]), str(row["name"]), str(row["ledger"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise LedgerError(f"{file} cannot be read as a list of nodes ({type(error).__name__})") from None

    def owns(self, node: int, name: str) -> bool:
        """Whether a node may call itself so: nobody else has, in any run on this server.

        A client that gets a new key has its name again when the old one was revoked, see `forget_node`.
        """
        return self._owner_of.get(name, node) == node

    def check(self, node: int, name: str, ledger: str) -> None:
        """Remember what a node comes with; refuse another ledger than before.

        Args:
            node: Flower's number of it.
            name: What it calls itself; it may change.
            ledger: Id of the ledger, whose signature has been checked; empty in runs without one.

        Raises:
            LedgerError: It came with another ledger before.
        """
        known = self._ledger_of.get(node, "")
        if ledger and known and known != ledger:
            raise LedgerError(
                f"node {node} came with ledger {ledger[:8]}, before with {known[:8]}: what it had spent is not there"
            )
        if self._owner_of.get(name) == node and (known or not ledger):
            return
        self._take(node, name, ledger)
        append_lines(self._file, (json.dumps({"node": node, "name": name, "ledger": ledger}) + "\n").encode())

    def _take(self, node: int, name: str, ledger: str) -> None:
        self._owner_of[name] = node
        if ledger:
            self._ledger_of[node] = ledger
