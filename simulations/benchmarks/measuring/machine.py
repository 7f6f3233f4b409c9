"""A description of the machine that a benchmark ran on."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from common.system.threads import num_cores

# Instruction sets that decide how fast a matrix product is.
_FLAGS = ("avx2", "fma", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "asimd", "bf16", "sve")
# Variables that keep libraries to older instruction sets.
_LIMITS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "OPENBLAS_CORETYPE")
_PACKAGES = ("bract", "flwr", "numpy", "torch", "timm", "opacus", "ray", "onnxruntime", "openvino")


def describe_machine() -> dict[str, Any]:
    """Return processor, flags, threads, memory, load and versions."""
    facts = _cpu_facts()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {
        "cpu": facts.get("model name") or platform.processor() or platform.machine(),
        "flags": [flag for flag in _FLAGS if flag in (facts.get("flags") or facts.get("Features") or "").split()],
        "cores": num_cores(),
        "limits": {name: os.environ[name] for name in _LIMITS if name in os.environ},
        "threads": os.environ.get("OMP_NUM_THREADS", "all cores"),
        "memory_gb": _memory_gb(),
        "load_before": load,
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "versions": {name: found for name in _PACKAGES if (found := _version(name))},
    }


def in_one_line(machine: dict[str, Any]) -> str:
    """Return the description as a sentence."""
    flags = f" ({', '.join(machine['flags'])})" if machine["flags"] else ""
    limits = "".join(f", {name}={value}" for name, value in machine["limits"].items())
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    load = "" if machine["load_before"] is None else f", load {machine['load_before']:.1f} before it began"
    cores = f"{machine['cores']} core{'s' if machine['cores'] != 1 else ''}"
    return (
        f"{cores} of {machine['cpu']}{flags}, threads: {machine['threads']}, "
        f"{machine['memory_gb']:.0f} GB{limits}{load}; Python {machine['python']}, {versions}."
    )


def _cpu_facts() -> dict[str, str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _memory_gb() -> float:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    except (AttributeError, ValueError):
        return float("nan")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
