"""A setting of the C library's allocator that suits training in a loop."""

import ctypes
import sys
from functools import cache

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
# Bytes. Larger blocks go back to the system when they are freed.
_LARGEST_KEPT_BLOCK = 32 << 20
_LARGEST_KEPT_REST = 256 << 20


@cache
def keep_freed_memory() -> bool:
    """Let this process use freed blocks of some megabytes again.

    By default glibc gives them back to the system. Each step of a small network then gets its memory anew, page by
    page, which can take a quarter of its time. The result is whether the C library could be told.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT_BLOCK) and mallopt(_M_TRIM_THRESHOLD, _LARGEST_KEPT_REST))
