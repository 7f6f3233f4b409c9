"""Registry of the name and the ledger that each node has shown.

Flower's number of a node stays with its key for as long as the key is admitted. A known key with a new ledger has lost
the budget that it had spent. A node without a key gets a new number whenever it starts, so it is not registered.
"""

import json
from pathlib import Path

from common.errors import LedgerError
from common.ledger.signed_heads import append_lines
from common.system.files import write_atomic

NODES_FILE = "nodes.jsonl"


def forget_node(file: Path, node: int) -> None:
    """Remove a node whose key was revoked to free its name.

    Raises:
        LedgerError: The file is damaged, or cannot be written.
    """
    if not file.is_file():
        return
    try:
        # A last line without its end was cut off by a crash: it was never registered.
        lines = [line for line in file.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
        kept = [line for line in lines if int(json.loads(line)["node"]) != node]
        # On the disk at once: an empty list would let every node come with a new ledger.
        write_atomic(file, "".join(kept), durable=True, mode=0o600)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unreadable(file, error) from None


def _unreadable(file: Path, error: Exception) -> LedgerError:
    return LedgerError(f"{file} cannot be read as a list of nodes ({type(error).__name__})")


class NodeRegistry:
    """Names and ledgers of nodes with admitted keys, stored in a file.

    The file holds those of earlier runs and may be missing.

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
                self._remember(int(row["node"]), str(row["name"]), str(row["ledger"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _unreadable(file, error) from None

    def owns(self, node: int, name: str) -> bool:
        """Return whether a node may use a name.

        It may if no other node has used the name in any run on this server. A client with a new key gets its name back
        when the old key was revoked, see `forget_node`.
        """
        return self._owner_of.get(name, node) == node

    def check(self, node: int, name: str, ledger: str) -> None:
        """Check a node's ledger and remember its name.

        The name may change. The signature of `ledger`, an id, has been checked. The id is empty in runs without
        ledgers.

        Raises:
            LedgerError: The node came with another ledger before.
        """
        known = self._ledger_of.get(node, "")
        if ledger and known and known != ledger:
            raise LedgerError(
                f"node {node} came with ledger {ledger[:8]}, before with {known[:8]}: its earlier spending is missing"
            )
        if self._owner_of.get(name) == node and (known or not ledger):
            return
        self._remember(node, name, ledger)
        append_lines(
            self._file, (json.dumps({"node": node, "name": name, "ledger": ledger}) + "\n").encode(), durable=True
        )

    def _remember(self, node: int, name: str, ledger: str) -> None:
        self._owner_of[name] = node
        if ledger:
            self._ledger_of[node] = ledger
