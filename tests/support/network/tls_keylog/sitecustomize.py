"""Python loads this at its start where its folder is on the path: the secrets of TLS connections are written down.

Python itself does so for its default contexts alone, and Flower makes its own.
"""

import os
import ssl
from typing import Any

_new = ssl.SSLContext.__new__


def _new_and_logged(kind: Any, *arguments: Any, **more: Any) -> Any:
    context = _new(kind, *arguments, **more)
    context.keylog_filename = os.environ["SSLKEYLOGFILE"]
    return context


if os.environ.get("SSLKEYLOGFILE"):
    ssl.SSLContext.__new__ = _new_and_logged  # type: ignore[method-assign, assignment]
