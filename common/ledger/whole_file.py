"""The check that all parts of a ledger's file are of one state.

Another file's bytes may be copied over an open ledger. SQLite then goes on with the pages in its memory and in its log,
and later merges them into the copied file. Such a mixture can hold a whole chain and yet lack names of charged images.
"""

from common.errors import LedgerError
from common.ledger.database import Ledger
from common.ledger.hash_chain import check_chain
from common.ledger.image_index import PARTS, digest_of_added, digest_of_part


def check_whole(ledger: Ledger) -> None:
    """Refuse a file whose chain, indexes or images do not fit together.

    Raises:
        LedgerError: The chain is broken, an index lacks rows, or images differ from what an entry vouches for.
    """
    # A stale index hides charges and names from every query that uses it.
    if ledger.query("PRAGMA integrity_check(1)") != [("ok",)]:
        raise LedgerError(_text(ledger, "its tables and indexes differ"))
    entries = ledger.entries()
    check_chain(entries)
    registered = [entry for entry in entries if entry.kind == "register"]
    # Images whose names are missing would count as new ones, with an unspent budget.
    if any(digest_of_added(ledger, entry.seq) != entry.event["added"] for entry in registered):
        raise LedgerError(_text(ledger, "names of images that were charged are missing or changed"))
    for dataset, parts in {entry.dataset: entry.event["parts"] for entry in registered}.items():
        if any(digest_of_part(ledger, dataset, part) != parts[part] for part in PARTS):
            raise LedgerError(_text(ledger, "the images of a run are not those that were charged"))


def _text(ledger: Ledger, what: str) -> str:
    return (
        f"the ledger {ledger.path} is damaged, or another file was copied over it while it was in use ({what}): "
        "bring back the newest backup"
    )
