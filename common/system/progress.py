"""The progress reports of long work."""

from collections.abc import Callable

# (total, description) -> a function to call with the amount of each advance.
ProgressFactory = Callable[[int, str], Callable[[int], None]]


def no_progress(total: int, description: str) -> Callable[[int], None]:
    """Return a progress report that shows nothing."""
    del total, description
    return lambda _: None
