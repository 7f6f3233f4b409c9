"""Loading a library loads nothing that it holds ready for others, and all of that is there for those who ask."""

import subprocess
import sys

import pytest

LEFT_OUT = "('torch._dynamo', 'torch._dynamo.utils', 'wandb', 'sympy', 'seaborn', 'flwr_datasets.visualization')"
LOAD = "import sys, torch; from common.models.providers.registry import PROVIDERS; PROVIDERS[{!r}].load(); "
PARTITIONERS = (
    "import sys; import numpy as np; from common.config.loading import defaults, parse; "
    "from common.data.partitioning.partitioners import assign_clients; "
    "assign_clients(np.arange(400) % 2, parse(defaults()).data, num_clients=2, seed=1); "
)


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.parametrize("load", [LOAD.format("timm"), LOAD.format("torchvision"), PARTITIONERS])
def test_a_library_loads_nothing_that_it_holds_ready_for_others(load: str) -> None:
    assert run(load + f"print([name for name in {LEFT_OUT} if name in sys.modules])") == "[]"


def test_the_compiler_and_a_tracker_are_there_for_those_who_ask() -> None:
    ask = (
        "import wandb; from torchvision import ops; from torch._dynamo import utils, config\n"
        "print(callable(utils.counters.clear), callable(wandb.init), 'torch._dynamo' in sys.modules)\n"
        "print(ops.roi_align.__globals__['is_compile_supported']('cpu'))\n"
        "print(ops.roi_align(torch.ones(1, 1, 4, 4), torch.tensor([[0., 0., 0., 4., 4.]]), 1).shape)\n"
    )

    assert run(LOAD.format("timm") + ask).splitlines() == ["True True True", "True", "torch.Size([1, 1, 1, 1])"]


def test_pictures_of_partitions_are_there_for_those_who_ask() -> None:
    ask = (
        "import flwr_datasets; shown = flwr_datasets.visualization.plot_label_distributions\n"
        "import inspect, flwr_datasets.visualization as real\n"
        "print('partitioner' in inspect.signature(real.plot_label_distributions).parameters)\n"
        "try:\n    shown(None, 'label')\nexcept (AttributeError, TypeError, ValueError) as error:\n"
        "    print(type(error).__name__, 'seaborn' in sys.modules)\n"
    )

    true, asked = run(PARTITIONERS + ask).splitlines()

    assert true == "True"
    assert asked.endswith("Error True")


def test_the_compiler_loads_whole_while_it_is_left_out() -> None:
    code = (
        "import torch; from common.system.light_imports import light_imports\n"
        "with light_imports():\n    import torch._dynamo\n"
        "import torch._dynamo.utils as utils; from torch._dynamo.utils import is_compile_supported as asked\n"
        "print(type(utils).__name__, asked.__module__, torch._dynamo.utils is utils)\n"
        "print(torch.compile(lambda x: x + 1, backend='eager')(torch.ones(2)).tolist())"
    )

    assert run(code).splitlines() == ["module torch._dynamo.utils True", "[2.0, 2.0]"]


def test_a_function_that_was_marked_while_importing_is_never_compiled() -> None:
    code = (
        "import torch; from common.system.light_imports import light_imports\n"
        "with light_imports():\n"
        "    @torch.compiler.disable\n"
        "    def apart(x): return x * 2 if torch.compiler.is_compiling() else x * 3\n"
        "    assert apart.__name__ == 'apart'\n"
        "def whole(x): return apart(x + 1) * (5 if torch.compiler.is_compiling() else 7)\n"
        "print(apart(torch.ones(1)).item(), torch.compile(whole, backend='eager')(torch.ones(1)).item())"
    )

    assert run(code) == "3.0 30.0"
