"""The fresh process of a variant that is a function."""

import json
import sys
from importlib import import_module
from pathlib import Path


def main() -> None:
    """Call the named function with the given parameters and write what it returns."""
    target, parameters, result = sys.argv[1:]
    module, _, function = target.partition(":")
    figures = getattr(import_module(module), function)(**json.loads(parameters))
    Path(result).write_text(json.dumps(figures or {}))


if __name__ == "__main__":
    main()
