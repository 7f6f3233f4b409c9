"""How long work tells how far it is."""

from collections.abc import Callable

# (total, what is done) -> a function to call with each advance.
ProgressFactory = Callable[[int, str], Callable[[int], None]]


def no_progress(total: int, what: str) -> Callable[[int], None]:
    """A progress reporter that says nothing."""
    del total, what
    return lambda _: None
