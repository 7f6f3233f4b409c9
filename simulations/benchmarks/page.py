"""The page of measured figures, made from stored results by `python -m simulations.benchmarks.page`."""

import json
import re
import sys
from pathlib import Path

from simulations.benchmarks.measuring.tables import markdown
from simulations.benchmarks.registry import benchmark_named

_PART = re.compile(r"<!-- begin (\S+) -->\n.*?<!-- end \1 -->", re.DOTALL)


def updated_page(page: str, results: Path) -> str:
    """Return a page whose marked parts show stored results.

    A part without stored results keeps its text.
    """

    def part(match: "re.Match[str]") -> str:
        name = match[1]
        file = results / f"{name}.json"
        if not file.is_file():
            return match[0]
        text = markdown(benchmark_named(name), json.loads(file.read_text()))
        return f"<!-- begin {name} -->\n{text}<!-- end {name} -->"

    return _PART.sub(part, page)


if __name__ == "__main__":
    target, stored = Path(sys.argv[1]), Path(sys.argv[2])
    target.write_text(updated_page(target.read_text(), stored))
