"""Translation of a SuperNode's log into lines for the operator."""

import re
from collections import deque
from collections.abc import Iterable

from client.client_config import Site
from client.runtime.operator_log import OperatorLog
from client.status.activity import Link

_KEPT_LINES = 12
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_CONNECTED = "SuperNode ID:"
_RETRYING = "Connection attempt failed"
_AGAIN = "Connection successful"
_REFUSED = "failed to activate supernode"
# Errors of a single message, after which a SuperNode continues. After any other error it asks for no more messages,
# although its process still runs.
_PASSING = ("Failed to receive message", "Failed to send message", "Failed to create task")
# Part of a log line -> hint. The first that matches counts.
_HINTS = {
    "mismatch, certificate is not valid for": "The certificate at {server} is for another name or address: ask the "
    "server's operator which one it was made for, and write that as superlink.",
    "certificate has expired": "The certificate at {server} has expired: tell the server's operator.",
    "certificate_verify_failed": "The certificate at {server} is not signed by {file}: that is another server, or its "
    "operator has a new certificate and owes you its ca.pem.",
    "wrong_version_number": "What listens at {server} does not speak TLS.",
    _REFUSED: "The server does not admit this client's key, or another SuperNode is connected "
    "with it: send {key} to the server's operator.",
    "address already in use": "Another program took the port in between: start the client again.",
}


class NodeLog:
    """The state of one SuperNode as its log tells it.

    Args:
        operator: Log for the operator.
        site: The client.

    Attributes:
        was_connected: Whether the server has accepted the node.
        broken: Whether the node has logged an error after which it asks for no more messages.
    """

    def __init__(self, operator: OperatorLog, site: Site) -> None:
        self._operator, self._site = operator, site
        self._last: deque[str] = deque(maxlen=_KEPT_LINES)
        self._away = False
        self.was_connected = False
        self.broken = False

    @property
    def refused(self) -> bool:
        """True where the server has refused the node."""
        return any(_REFUSED in line.lower() for line in self._last)

    @property
    def link(self) -> Link:
        """State of the connection while the SuperNode runs."""
        if self.broken:
            return Link.BROKEN
        if self._away:
            return Link.NO_ANSWER
        return Link.CONNECTED if self.was_connected else Link.CONNECTING

    def heard(self, lines: Iterable[str]) -> None:
        """Read new lines and tell the operator when the connection changes."""
        for line in map(_bare, lines):
            self._last.append(line)
            self._operator.keep(f"supernode: {line}")
            if line.startswith("ERROR") and self.was_connected and not any(mark in line for mark in _PASSING):
                self.broken = True
            if _CONNECTED in line or (_AGAIN in line and self._away):
                self._away, self.was_connected = False, True
                self._operator.say(f"Connected to {self._site.superlink}; waiting for the server.")
            elif _RETRYING in line and not self._away:
                self._away = True
                self._operator.say(f"No answer at {self._site.superlink}; trying again.")

    def ended(self, code: int) -> None:
        """Warn the operator that the SuperNode has ended.

        Args:
            code: Its exit code. The warning names a likely reason and shows the end of the log.
        """
        text = "\n".join(self._last).lower()
        hint = next((hint for mark, hint in _HINTS.items() if mark in text), "")
        hint = hint.format(server=self._site.superlink, key=self._site.public_key_file, file=self._site.authority_file)
        ended = f"The SuperNode ended with code {code}."
        if code == 0:
            hint = "The server has ended this client's connection: its key was revoked, or is no longer known there."
        self._operator.warn("\n".join([ended, *([hint] if hint else []), "The end of its log:", *self._last]))


def _bare(line: str) -> str:
    return _COLOURS.sub("", line).rstrip()
