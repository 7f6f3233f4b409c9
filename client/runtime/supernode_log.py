"""What the SuperNode's log means, in words for an operator."""

import re
from collections import deque
from collections.abc import Iterable

from client.client_config import Site
from client.runtime.operator_log import Voice

_KEPT_LINES = 12
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_CONNECTED = "SuperNode ID:"
_RETRYING = "Connection attempt failed"
_AGAIN = "Connection successful"
_REFUSED = "failed to activate supernode"
# Errors of one message, after which a SuperNode goes on; after any other it stops asking, though its process lives.
_PASSING = ("Failed to receive message", "Failed to send message", "Failed to create task")
# The first that is found counts.
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
    """Follows the log of one SuperNode.

    Args:
        voice: Tells the operator.
        site: The client.

    Attributes:
        was_connected: Whether the server has let the node in.
        broken: Whether the node has met an error after which it does nothing more.
    """

    def __init__(self, voice: Voice, site: Site) -> None:
        self._voice, self._site = voice, site
        self._last: deque[str] = deque(maxlen=_KEPT_LINES)
        self._away = False
        self.was_connected = False
        self.broken = False

    @property
    def refused(self) -> bool:
        """Whether the server did not let the node in."""
        return any(_REFUSED in line.lower() for line in self._last)

    def heard(self, lines: Iterable[str]) -> None:
        """Keep new lines, and say what they mean for the connection, once each time that it changes."""
        for line in map(_bare, lines):
            self._last.append(line)
            self._voice.keep(f"supernode: {line}")
            if line.startswith("ERROR") and self.was_connected and not any(mark in line for mark in _PASSING):
                self.broken = True
            if _CONNECTED in line or (_AGAIN in line and self._away):
                self._away, self.was_connected = False, True
                self._voice.say(f"Connected to {self._site.superlink}; waiting for the server.")
            elif _RETRYING in line and not self._away:
                self._away = True
                self._voice.say(f"Nobody answers at {self._site.superlink}; trying on.")

    def ended(self, code: int) -> None:
        """Say why it may have ended, and show the end of its log."""
        text = "\n".join(self._last).lower()
        hint = next((hint for mark, hint in _HINTS.items() if mark in text), "")
        hint = hint.format(server=self._site.superlink, key=self._site.public_key_file, file=self._site.authority_file)
        ended = f"The SuperNode ended with code {code}."
        if code == 0:
            hint = "The server has sent this client away: its key was revoked, or is no longer known there."
        self._voice.warn("\n".join([ended, *([hint] if hint else []), "The end of its log:", *self._last]))


def _bare(line: str) -> str:
    return _COLOURS.sub("", line).rstrip()
