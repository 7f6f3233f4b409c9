"""Network namespaces on one bridge: what a test needs for machines of their own, and nothing of it outlives the test.

The bridge lies in a namespace of its own, so no interface, route or address of this machine is touched, and beds of
several test processes may use the same addresses.
"""

import contextlib
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.network.shifted_clock import compiler

_PACKAGES = {"ip": "iproute2", "tc": "iproute2", "tcpdump": "tcpdump", "mount": "mount", "cc": "tcc"}
_PATHS = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin", "/usr/bin", "/bin"])
_NAMESPACES = Path("/run/netns")
_OWNED = re.compile(r"bract-(\d+)-(\d+)-\w+")
_APT = ("apt-get", "-q", "-y", "-o", "DPkg::Lock::Timeout=60")
_serial = itertools.count()


def needs(*programs: str) -> None:
    """Skip where a bed cannot be made; in CI fail. Missing programs are installed where that can be done.

    Args:
        programs: Of `ip`, `tc`, `tcpdump`, `mount`, and `cc`, any C compiler.
    """
    if why := _lacks(programs):
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"no bed of separate machines: {why}")


def _lacks(programs: tuple[str, ...]) -> str:
    if not sys.platform.startswith("linux"):
        return "namespaces are Linux's"
    if os.geteuid() != 0:
        return "only root makes network namespaces"
    if missing := [name for name in programs if not _found(name)]:
        _install(sorted({_PACKAGES[name] for name in missing}))
    if missing := [name for name in programs if not _found(name)]:
        return f"{', '.join(missing)} could not be installed"
    refused = subprocess.run(["unshare", "--net", "true"], capture_output=True, text=True, check=False)
    return f"this kernel or container refuses: {refused.stderr.strip()}" if refused.returncode else ""


def _found(name: str) -> bool:
    return (compiler() if name == "cc" else shutil.which(name, path=_PATHS)) is not None


def _install(packages: list[str]) -> None:
    if shutil.which("apt-get") is None:
        return
    env = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
    install = [*_APT, "--no-install-recommends", "install", *packages]
    for command in (install, [*_APT, "update"], install):
        if command[-1] == "update" and all(_found(name) for name, package in _PACKAGES.items() if package in packages):
            return
        subprocess.run(command, env=env, capture_output=True, check=False, timeout=300)


def tool(name: str) -> str:
    """Full path of a program that `needs` has asked for."""
    found = shutil.which(name, path=_PATHS)
    assert found is not None, f"{name} is not there: call needs({name!r}) first"
    return found


def ip(*arguments: str) -> str:
    """Run `ip` and give what it says; an error of it is an error of the test."""
    return _checked(tool("ip"), *arguments)


def _checked(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr.strip()}"
    return done.stdout


def owner() -> str:
    """Names this process for as long as it runs, also against a later one with its number."""
    return f"bract-{os.getpid()}-{started_at(os.getpid())}"


def started_at(pid: int) -> str | None:
    """When a process started, in ticks since boot; None if it runs no more."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


@contextlib.contextmanager
def namespace(label: str) -> Iterator[str]:
    """A namespace with loopback; what runs in it ends with it.

    Args:
        label: Letters and figures, for whoever looks at `ip netns list`.
    """
    name = f"{owner()}-{next(_serial)}_{re.sub(r'[^A-Za-z0-9]', '_', label)}"
    ip("netns", "add", name)
    try:
        # An address on loopback must not answer for another machine's on the wire; and no IPv6 chatter.
        settings = "echo 1 > net/ipv4/conf/all/arp_ignore; echo 1 > net/ipv6/conf/all/disable_ipv6 || true"
        ip("netns", "exec", name, "sh", "-c", f"cd /proc/sys; {settings} 2>/dev/null")
        ip("-n", name, "link", "set", "lo", "up")
        yield name
    finally:
        remove_namespace(name)


@contextlib.contextmanager
def bridge() -> Iterator[str]:
    """A namespace with the bridge `br0`, to which `plug` connects others."""
    with namespace("bridge") as hub:
        quiet = ["stp_state", "0", "forward_delay", "0", "mcast_snooping", "0"]
        ip("-n", hub, "link", "add", "br0", "type", "bridge", *quiet)
        ip("-n", hub, "link", "set", "br0", "up")
        yield hub


def plug(hub: str, machine: str, port: str, address: str) -> None:
    """A cable from a machine's `eth0` to a port of the bridge.

    Args:
        hub: Namespace of the bridge.
        machine: Namespace of the machine.
        port: Name of the port at the bridge, at most 15 characters.
        address: Of `eth0`, with its prefix: `10.77.0.11/24`.
    """
    ip("-n", hub, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", machine)
    ip("-n", hub, "link", "set", port, "master", "br0", "up")
    ip("-n", machine, "address", "add", address, "dev", "eth0")
    ip("-n", machine, "link", "set", "eth0", "up")


def limit(namespace_name: str, device: str, rate: str | None) -> None:
    """Let a device send at most at a rate, such as `1mbit`; None lets it go."""
    tc = [tool("tc"), "-n", namespace_name, "qdisc"]
    if rate is None:
        subprocess.run([*tc, "del", "dev", device, "root"], capture_output=True, check=False)
    else:
        _checked(*tc, "replace", "dev", device, "root", "tbf", "rate", rate, "burst", "32kbit", "latency", "400ms")


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """A disk of a few megabytes at a folder, gone for certain on leaving; start programs after it is there."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{owner()}-{next(_serial)}_disk"
    _checked(tool("mount"), "-t", "tmpfs", "-o", f"size={megabytes}m,mode=0700", name, str(folder))
    try:
        yield folder
    finally:
        _unmount(folder)


def _unmount(folder: Path) -> None:
    _checked(tool("umount"), "--lazy", str(folder))  # also where a program still has a file of it open


def remove_namespace(name: str) -> None:
    """End what runs in a namespace, then the namespace with its interfaces."""
    kill_until_gone(lambda: [int(pid) for pid in ip("netns", "pids", name).split()])
    ip("netns", "delete", name)


def kill_until_gone(members: Callable[[], list[int]], *, seconds: float = 10.0) -> None:
    """Kill processes, and those that they start meanwhile, until there are none.

    Args:
        members: Numbers of those that run.
        seconds: How long that may take.
    """
    deadline = time.monotonic() + seconds
    while running := [pid for pid in members() if started_at(pid) is not None]:
        for pid in running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert time.monotonic() < deadline, f"cannot be killed: {running}"
        time.sleep(0.01)


def left_behind() -> list[str]:
    """Namespaces and disks of test processes that run no more."""
    names = [entry.name for entry in _NAMESPACES.iterdir()] if _NAMESPACES.is_dir() else []
    return [name for name in [*names, *_disks()] if _is_orphan(name)]


def remove_left_behind() -> None:
    """Remove what killed test processes could not."""
    for name in left_behind():
        with contextlib.suppress(AssertionError):  # another process may be at it
            if name in _disks():
                _unmount(Path(_disks()[name]))
            else:
                remove_namespace(name)


def _is_orphan(name: str) -> bool:
    found = _OWNED.fullmatch(name)
    return found is not None and started_at(int(found[1])) != found[2]


def _disks() -> dict[str, str]:
    """Folder of each small disk by its name."""
    lines = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    return {line[0]: line[1].encode().decode("unicode_escape") for line in lines if _OWNED.fullmatch(line[0])}
