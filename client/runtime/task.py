"""One task, in a process of its own: check whose code it is, run it, send the reply back.

What runs here up to `load_app` is the installed Bract. What runs after it is the bundle's.
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
from common.privacy.mechanisms import names_where
from common.privacy.policy import Policy, load_policy
from common.system.app_bundle import bundle_files, files_digest

BUNDLES = "bundles"
# Flower says nothing of a message's size before it is there, and the SuperNode holds it in memory by then.
MAX_MESSAGE_BYTES = 2 * 1024**3
_log = logging.getLogger("bract.client")


def run_task(order: Order, connection: Connection) -> None:
    """Do one task from beginning to end; the target of a process.

    Args:
        order: Which, for which client.
        connection: Where to report to the launcher.
    """
    die_with(order.launcher)
    _stand_alone()
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


def _stand_alone() -> None:
    """The launcher's signals are not this process's: what a terminal sends goes to the launcher, which ends tasks."""
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # Flower raises it where a task is over
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
    """The bundle's reply; or a code, where it is refused or fails: rule 3 of the privacy rules."""
    try:
        return _answer(folder, task, report)
    except BractError as error:
        _log.error("refused %r: %s", task.kind[:40], error)
        return failure_reply(ClientFailure.of(error), task.asked)
    except (RunEnded, KeyboardInterrupt):
        raise
    except BaseException as error:  # of code that is not ours: SystemExit too
        _log.exception("failed in %r", task.kind[:40])
        return failure_reply(
            ClientFailure.of(error) if isinstance(error, Exception) else ClientFailure.INTERNAL, task.asked
        )


def _answer(folder: Path, task: Task, report: Report) -> Message:
    site = load_site(folder)
    policy = load_policy(site.policy_file)  # as it is now
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
    # From our own settings: whoever else listens on the SuperNode's port does not say which folder is meant.
    task.context.node_config = {NODE_KEY: str(folder), BUNDLE_KEY: policy.bundle}
    app = load_app(files, keep_bundle(files, folder / BUNDLES / digest))
    return app(message=message, context=task.context)


def _round_of(message: Message) -> int:
    try:
        return server_round_of(message.content)
    except FederationError:  # a query belongs to none
        return 0


def check_pinned(policy: Policy) -> None:
    """Refuse to run whatever a server sends, where images are to be protected from it.

    Raises:
        BundleError: The policy allows dp-sgd and pins no bundle.
    """
    if set(names_where("noise_at_client")) & set(policy.mechanisms) and not policy.bundle:
        raise BundleError(
            "starting unpinned under DP is refused: without a pin, whatever code the server sends has the images, and "
            "keeps to the policy only if it wants to"
        )


def check_bundle(policy: Policy, files: dict[str, bytes]) -> str:
    """Refuse code that is not the pinned.

    Returns:
        Its digest.

    Raises:
        BundleError: Names both digests.
    """
    digest = files_digest(files)
    if policy.bundle and digest != policy.bundle:
        raise BundleError(
            f"the server sent the bundle of code {digest}, the policy pins {policy.bundle}: nothing of it was run"
        )
    return digest


def _note(site: Site, task: Task, error: BundleError) -> None:
    """Note a refusal in the holder's ledger, once for each request; the refusal stands whether that works or not."""
    try:
        with own_holder().open_session() as session:
            # The server's own name for the run is in the message, which was not opened: Flower's stands for it.
            run = f"{task.run:032x}"
            note_refusal(session, run, site.name, task.round, f"{task.kind} by other code", PolicyError(str(error)))
    except LedgerError as failed:
        _log.error("a refusal could not be written down: %s", failed)
