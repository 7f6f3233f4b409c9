"""One thread a client: small steps are faster so, and repeat to the bit on any engine."""

import sys
from functools import cache


@cache
def _pin_blas() -> None:
    from threadpoolctl import threadpool_limits

    threadpool_limits(limits=1)


def pin_to_one_thread() -> None:
    """Limit BLAS, and torch once it is loaded, to one thread in this process."""
    _pin_blas()
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() != 1:
        torch.set_num_threads(1)
