"""The process of one task, from the check of its bundle to the reply.

The installed Bract runs up to `load_app`, and the bundle's code after it.
"""

import logging
import os
import signal
from multiprocessing.connection import Connection
from pathlib import Path

from flwr.app import Message

from client.client_config import BUNDLE_KEY, NODE_KEY, Site, load_site
from client.guard import note_refusal
from client.runtime.bundle_import import keep_bundle, load_app
from client.runtime.process_lifetime import die_with
from client.runtime.supernode_api import RunEnded, Task, as_bytes, from_bytes, task_of
from client.runtime.task_protocol import Order, Report
from common.errors import BractError, BundleError, ClientFailure, FederationError, LedgerError, PolicyError
from common.ledger.data_holder import own_holder
from common.messages.codec import failure_reply, server_round_of
from common.privacy.mechanisms.registry import names_where
from common.privacy.policy import Policy, load_policy
from common.system.app_bundle import bundle_files, files_digest

BUNDLES = "bundles"
# Flower tells a message's size only when the SuperNode has it in memory.
MAX_MESSAGE_BYTES = 2 * 1024**3
_log = logging.getLogger("bract.client")


def run_task(order: Order, connection: Connection) -> None:
    """Run one task from beginning to end, as the target of a process.

    Args:
        order: The task and its client.
        connection: Pipe to the launcher.
    """
    die_with(order.launcher)
    _separate_signals()
    report = Report(connection)
    _log_to(report)
    try:
        with task_of(order.address, order.token, from_bytes(order.unanswered)) as task:
            report.asked(task.kind, as_bytes(task.asked))
            report.round(task.round)
            reply = _crashed(task) if order.unanswered else _reply(Path(order.folder), task, report)
            task.push(reply, completed=not reply.has_error())
            report.done(str(reply.error.reason) if reply.has_error() else "")
    except (RunEnded, KeyboardInterrupt):
        report.done("the run has ended, nothing was sent")


def _separate_signals() -> None:
    """Drop the launcher's signal handlers and leave its process group.

    A terminal's signals then reach the launcher alone, which ends its tasks.
    """
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_DFL)
    # Flower raises SIGINT in this process where a run is over.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)


def _log_to(report: Report) -> None:
    ours = logging.getLogger("bract")
    ours.handlers[:] = [report.handler()]
    ours.setLevel(logging.INFO)
    ours.propagate = False
    logging.getLogger("flwr").setLevel(logging.ERROR)


def _crashed(task: Task) -> Message:
    return failure_reply(ClientFailure.INTERNAL, task.asked)


def _reply(folder: Path, task: Task, report: Report) -> Message:
    """Return the bundle's reply or a bare failure code."""
    try:
        return _answer(folder, task, report)
    except BractError as error:
        _log.error("refused %r: %s", task.kind[:40], error)
        return failure_reply(ClientFailure.of(error), task.asked)
    except (RunEnded, KeyboardInterrupt):
        raise
    # The bundle's code may raise anything, SystemExit too, and no text of it may reach the server.
    except BaseException as error:
        _log.exception("failed in %r", task.kind[:40])
        return failure_reply(
            ClientFailure.of(error) if isinstance(error, Exception) else ClientFailure.INTERNAL, task.asked
        )


def _answer(folder: Path, task: Task, report: Report) -> Message:
    site = load_site(folder)
    # Read again for each task: its holder may have tightened it.
    policy = load_policy(site.policy_file)
    try:
        check_pinned(policy)
        files = bundle_files(task.bundle)
        digest = check_bundle(policy, files)
    except BundleError as error:
        _note(site, task, error)
        task.ignore(max_bytes=MAX_MESSAGE_BYTES)
        raise
    message = task.message(max_bytes=MAX_MESSAGE_BYTES)
    report.round(_round_of(message) or task.round)
    # Set here, and not taken from the SuperNode: another process on its port could name another folder.
    task.context.node_config = {NODE_KEY: str(folder), BUNDLE_KEY: policy.bundle}
    app = load_app(files, keep_bundle(files, folder / BUNDLES / digest))
    return app(message=message, context=task.context)


def _round_of(message: Message) -> int:
    try:
        return server_round_of(message.content)
    # Queries have no round.
    except FederationError:
        return 0


def check_pinned(policy: Policy) -> None:
    """Refuse to start without a pin where images must be protected from the server.

    Raises:
        BundleError: The policy allows a mechanism that protects images from the server, and pins no bundle.
    """
    local = [name for name in names_where("noise_at_client") if name in policy.mechanisms]
    if local and not policy.bundle:
        raise BundleError(
            f'policy.toml allows {" and ".join(local)} but pins no code (bundle = ""): unpinned code from the server '
            "could ignore the policy"
        )


def check_bundle(policy: Policy, files: dict[str, bytes]) -> str:
    """Return a bundle's digest and refuse any but the pinned one.

    Args:
        policy: The data holder's policy.
        files: The bundle's files, name -> content.

    Raises:
        BundleError: The digests differ; names both.
    """
    digest = files_digest(files)
    if policy.bundle and digest != policy.bundle:
        raise BundleError(
            f"the server sent the bundle of code {digest}, the policy pins {policy.bundle}: nothing of it was run"
        )
    return digest


def _note(site: Site, task: Task, error: BundleError) -> None:
    """Note a refusal in the holder's ledger.

    The request stays refused even if the note cannot be written.
    """
    try:
        with own_holder().open_session() as session:
            # The server's name of the run is inside the message, which was not opened. Flower's id stands for it.
            run = f"{task.run:032x}"
            note_refusal(session, run, site.name, task.round, f"{task.kind} by other code", PolicyError(str(error)))
    except LedgerError as failed:
        _log.error("a refusal could not be written down: %s", failed)
