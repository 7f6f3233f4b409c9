"""The fresh process of a variant that is a function."""

import json
import sys
from importlib import import_module
from inspect import signature
from pathlib import Path


def main() -> None:
    """Call the named function with the parameters that it takes and write its result."""
    target, parameters, result = sys.argv[1:]
    module, _, name = target.partition(":")
    function = getattr(import_module(module), name)
    taken = signature(function).parameters
    figures = function(**{key: value for key, value in json.loads(parameters).items() if key in taken})
    Path(result).write_text(json.dumps(figures or {}))


if __name__ == "__main__":
    main()
