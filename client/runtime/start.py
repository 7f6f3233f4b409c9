"""Behind `bract client start`, one SuperNode and the launcher of its tasks."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from types import FrameType

from rich.console import Console

from client.client_config import SITE_FILE, Site, load_site, server_place
from client.runtime.client_lock import hold_lock
from client.runtime.launcher import Launcher
from client.runtime.operator_log import OperatorLog, operator_log
from client.runtime.reconnect import Next, Reconnecting
from client.runtime.supernode import SuperNode, supernode_of
from client.runtime.supernode_log import NodeLog
from client.runtime.task import check_pinned
from client.setup.ca_certificate import read_authority
from client.setup.node_key import read_node_key
from client.status.activity import ActivityRecord, Link
from client.status.pin_history import note_pin
from common.errors import BundleError, ConfigError
from common.privacy.policy import Policy, load_policy
from common.system.app_bundle import bundle_digest, installed_bundle

_TURN_SECONDS = 0.05
_INTERRUPTED = 130


class _EndedError(Exception):
    """A signal to end this process in order."""


def start_client(folder: Path, console: Console) -> int:
    """Run a client until it is interrupted or its SuperNode ends.

    Guarantee: no code that a server sends runs here unless the policy's pin names it. Without a pin, none runs where
    the policy allows a mechanism with noise at the client. The SuperNode and the tasks end with this process, however
    it ends.

    Args:
        folder: The client's folder, as `bract client init` made it.
        console: Console for the operator's lines.

    Returns:
        The exit code: 0 after SIGTERM, 130 after Ctrl-C, otherwise the SuperNode's.

    Raises:
        ConfigError: The client is not ready to start, or is running already.
    """
    folder = folder.expanduser().resolve()
    site = load_site(folder)
    policy = load_policy(site.policy_file)
    _check_ready(site, policy)
    with hold_lock(site), operator_log(folder, console) as operator, _signals():
        try:
            _say_whose_code(operator, policy)
            note_pin(folder, policy.bundle)
            return _run(site, operator)
        except KeyboardInterrupt:
            operator.say("Stopped.")
            return _INTERRUPTED
        except _EndedError:
            operator.say("Ended.")
            return 0


def _check_ready(site: Site, policy: Policy) -> None:
    settings = site.folder / SITE_FILE
    if not site.superlink:
        raise ConfigError(f'{settings} names no server: put superlink = "HOST:PORT" into it')
    server_place(site.superlink)
    if not site.authority:
        raise ConfigError(
            f"{settings} names no certificate of the server's authority: put the server's ca.pem into {site.folder}, "
            "and its file name as authority into client.toml"
        )
    read_authority(site.authority_file)
    read_node_key(site.key_file)
    if os.name == "posix" and site.key_file.stat().st_mode & 0o077:
        raise ConfigError(f"{site.key_file} can be read by others: chmod 600 {quote(str(site.key_file))}")
    try:
        check_pinned(policy)
    except BundleError as error:
        raise ConfigError(
            f"{error}. Pin it: `bract client review {quote(str(site.folder))}` ends with the line to put into "
            f"{site.policy_file}"
        ) from None


@contextmanager
def _signals() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into an exception while the block runs.

    Leaving the block in order ends the SuperNode and the tasks before this process.
    """

    def end(number: int, frame: FrameType | None) -> None:
        del frame
        # A second signal would interrupt the ending of the tasks.
        signal.signal(number, signal.SIG_IGN)
        raise _EndedError

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.signal(number, end) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _say_whose_code(operator: OperatorLog, policy: Policy) -> None:
    if not policy.bundle:
        operator.warn(
            "No bundle is pinned: this client runs any code that the server sends, and so trusts the server with its "
            "images."
        )
    elif bundle_digest(installed_bundle()) == policy.bundle:
        operator.say(f"Code      only the Bract installed here, {policy.bundle[:16]}")
    else:
        operator.say(f"Code      only the bundle {policy.bundle[:16]}, which is not the Bract installed here")


def _run(site: Site, operator: OperatorLog) -> int:
    # A proxy is for the way to the server, and would not reach this machine's own SuperNode.
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = ",".join(filter(None, [os.environ.get("NO_PROXY"), "127.0.0.1"]))
    tries = Reconnecting(site.folder / "flwr" / "connected")
    told, activity = False, ActivityRecord(site.folder)
    try:
        while True:
            log = NodeLog(operator, site)
            code = _run_node(site, operator, log, tries, activity, quiet=told)
            if tries.after(log, code) is Next.STOP:
                log.ended(0 if code is None else code)
                return code if code and code > 0 else 1
            operator.say(_why_again(log, tries.pause))
            activity.link(Link.REFUSED if log.refused else Link.BROKEN)
            told = True
            time.sleep(tries.pause)
    finally:
        tries.left()
        activity.link(Link.ENDED)


def _why_again(log: NodeLog, pause: float) -> str:
    if log.refused:
        return (
            f"The server does not accept this client yet: it may count the last connection, which ended abruptly, as "
            f"alive. Trying again in {pause:.0f} s."
        )
    return f"The connection broke off. Trying again in {pause:.0f} s."


def _run_node(
    site: Site, operator: OperatorLog, log: NodeLog, tries: Reconnecting, activity: ActivityRecord, *, quiet: bool
) -> int | None:
    """Run one SuperNode from its start to its end and return its exit code.

    None stands for a SuperNode that had stopped working and was ended.
    """
    with supernode_of(site) as (node, command):
        if not quiet:
            operator.say(f"Client    {site.name}, for the server at {site.superlink}")
            operator.say(f"Command   {command}")
        launcher = Launcher(site.folder, node.address, node.secret, operator, activity)
        try:
            return _loop(node, launcher, log, tries, activity)
        finally:
            launcher.close()


def _loop(
    node: SuperNode, launcher: Launcher, log: NodeLog, tries: Reconnecting, activity: ActivityRecord
) -> int | None:
    entered = False
    while (code := node.exit_code) is None:
        lines = node.new_lines()
        log.heard(lines)
        activity.link(log.link)
        if log.was_connected and not entered:
            entered = True
            tries.connected()
        if log.broken and launcher.idle:
            return None
        launcher.turn(stirred=bool(lines))
        launcher.wait(_TURN_SECONDS)
    log.heard(node.new_lines())
    return code
