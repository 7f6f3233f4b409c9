"""The program of a client's SuperNode, with the options of Flower's own."""

import os

from client.runtime.process_lifetime import watch_for
from client.runtime.supernode_api import run_supernode

PARENT = "BRACT_PARENT"


def main() -> None:
    """Run a SuperNode that ends with the process named in `BRACT_PARENT`.

    Raises:
        FederationError: This version of Flower would tell the server how long the client computed.
    """
    parent = os.environ.get(PARENT)
    if parent is not None:
        watch_for(int(parent))
    run_supernode()


if __name__ == "__main__":
    main()
