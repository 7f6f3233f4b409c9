"""Rendering of a page as one HTML file."""

import base64
import hashlib
from functools import cache

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup, escape

from common.page.blocks import Page
from common.page.chart_geometry import plot_of
from common.page.live_script import LIVE_SCRIPT
from common.page.script import SCRIPT
from common.page.style import STYLE
from common.page.templates import BLOCKS, PAGE


def render(page: Page, *, version: int = 0, now: str = "") -> str:
    """Return a page as one HTML file that loads nothing.

    Guarantee: every text of the page is escaped, and the browser runs no script but ours.

    Args:
        page: Content of the page.
        version: Number of a live page's version, which asks its own address for newer ones; 0 for a file.
        now: Time of a live page's version, ISO 8601, UTC.
    """
    return _environment().get_template("page").render(page=page, version=version, now=now)


def _hash_of(script: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def _with_code(words: str) -> Markup:
    """Return escaped text in which words between backticks are code."""
    parts = [escape(part) for part in words.split("`")]
    # An odd number of backticks is not ours.
    if len(parts) % 2 == 0:
        return escape(words)
    marked = (Markup("<code>{}</code>").format(part) if at % 2 else part for at, part in enumerate(parts))
    return Markup("").join(marked)


@cache
def _environment() -> Environment:
    made = Environment(
        autoescape=True,
        loader=DictLoader({"page": PAGE, "blocks": BLOCKS}),
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    made.filters["code"] = _with_code
    live = SCRIPT + LIVE_SCRIPT
    # Names of classes, clients and files come from others. Even if one were not escaped, the policy that names this
    # digest would keep the browser from running it.
    made.globals |= {
        "style": Markup(STYLE),  # noqa: S704 - a constant of ours
        "script": Markup(SCRIPT),  # noqa: S704 - a constant of ours
        "script_hash": _hash_of(SCRIPT),
        "live_script": Markup(live),  # noqa: S704 - a constant of ours
        "live_hash": _hash_of(live),
        "plot_of": plot_of,
        "pct": lambda share: round(100 * min(max(share, 0.0), 1.0), 2),
    }
    return made
