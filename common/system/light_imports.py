"""Imports of libraries without what they load for others.

torchvision and timm load PyTorch's compiler, only to mark functions that it must not compile or to ask what it can do.
timm also loads wandb wherever it is installed, and Flower Datasets loads seaborn. In each process this takes longer
than all else that Bract imports from them.
"""

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from types import FunctionType, ModuleType
from typing import Any

# Modules that load once something of them is used, with the functions that others take from them while importing.
_ON_DEMAND = {
    "torch._dynamo.utils": ("is_compile_supported",),
    "flwr_datasets.visualization": ("plot_comparison_label_distribution", "plot_label_distributions"),
}
# Modules that seem not to be installed.
_HIDDEN = ("wandb",)


class _OnDemand(ModuleType):
    """Stands for a module that loads once something of it is used."""

    def __getattr__(self, name: str) -> Any:
        # The import system looks for names of its own and goes on without them.
        if name.startswith("__"):
            raise AttributeError(name)
        if name not in _ON_DEMAND[self.__name__]:
            return getattr(self._loaded(), name)

        def call(*given: Any, **named: Any) -> Any:
            return getattr(self._loaded(), name)(*given, **named)

        return call

    def _loaded(self) -> ModuleType:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return importlib.import_module(self.__name__)


@contextmanager
def light_imports() -> Iterator[None]:
    """Import one of these libraries quickly inside the context.

    What is left out loads later, if anything asks for it. A library that is loaded already is left as it is. The
    compiler is left out only where torch itself has been imported before.
    """
    # An entry of None makes an import fail as if the library were not installed.
    left_out: dict[str, ModuleType | None] = {name: _OnDemand(name) for name in _ON_DEMAND} | dict.fromkeys(_HIDDEN)
    mine = {name: module for name, module in left_out.items() if name not in sys.modules}
    compiler: Any = getattr(sys.modules.get("torch"), "compiler", None)
    disable = getattr(compiler, "disable", None)
    sys.modules.update(mine)  # type: ignore[arg-type]
    if disable is not None:
        compiler.disable = _disable_on_demand(disable)
    try:
        yield
    finally:
        if disable is not None:
            compiler.disable = disable
        for name, module in mine.items():
            if name in sys.modules and sys.modules[name] is module:
                del sys.modules[name]


def _disable_on_demand(disable: Callable[..., Any]) -> Callable[..., Any]:
    """Return `torch.compiler.disable` with the compiler loaded at a function's first call."""

    def mark(function: Any = None, *args: Any, **options: Any) -> Any:
        if not isinstance(function, FunctionType):
            return disable(function, *args, **options)
        marked: list[Any] = []

        @wraps(function)
        def call(*given: Any, **named: Any) -> Any:
            if not marked:
                marked.append(disable(function, *args, **options))
            return marked[0](*given, **named)

        return call

    return mark
