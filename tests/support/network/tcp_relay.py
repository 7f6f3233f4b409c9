"""A relay of TCP connections that can be slow, stall and cut; what goes through is not looked at, TLS stays TLS.

A program of its own: runs in the namespace whose network it sends on, listens in another one, and is told what to do
by lines of JSON on its standard input, each answered by a line. It ends when its standard input does.

    python tcp_relay.py LISTEN_NAMESPACE_FILE HOST:PORT TARGET_HOST:PORT

    {"latency": 0.2}    seconds that each piece waits, either way
    {"stall": 30}       pass nothing on for so many seconds
    {"cut": true}       break all connections; new ones are accepted
"""

import asyncio
import contextlib
import ctypes
import json
import os
import socket
import sys
from typing import Any

_PIECE = 65_536
_PIECES = 64  # waiting in one direction; then the sender is slowed down
_CLONE_NEWNET = 0x40000000


class Relay:
    """Forwards what arrives at a listening socket to one target."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._latency = 0.0
        self._stalled_until = 0.0
        self._writers: set[asyncio.StreamWriter] = set()
        self._passed = 0

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection to its end."""
        try:
            onward_reader, onward = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, onward}
        try:
            await asyncio.gather(self._forward(reader, onward), self._forward(onward_reader, writer))
        except OSError:  # one side is broken: break the other
            writer.transport.abort()
            onward.transport.abort()
        finally:
            self._writers -= {writer, onward}
            writer.close()
            onward.close()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_PIECES)
        receiving = asyncio.create_task(self._receive(reader, waiting))
        clock = asyncio.get_running_loop().time
        try:
            while True:
                due, piece = await waiting.get()
                while (left := max(due, self._stalled_until) - clock()) > 0:
                    await asyncio.sleep(left)
                if not piece:
                    with contextlib.suppress(OSError):
                        writer.write_eof()
                    break
                writer.write(piece)
                await writer.drain()
                self._passed += len(piece)
            await receiving
        finally:
            receiving.cancel()

    async def _receive(self, reader: asyncio.StreamReader, waiting: "asyncio.Queue[tuple[float, bytes]]") -> None:
        clock = asyncio.get_running_loop().time
        piece = b"first"
        while piece:
            try:
                piece = await reader.read(_PIECE)
            except OSError:
                piece = b""
            await waiting.put((clock() + self._latency, piece))

    def obey(self, wish: dict[str, Any]) -> dict[str, Any]:
        """Do what a line says; tells how many connections there are, and how many bytes have passed."""
        self._latency = float(wish.get("latency", self._latency))
        if "stall" in wish:
            self._stalled_until = asyncio.get_running_loop().time() + float(wish["stall"])
        if wish.get("cut"):
            for writer in self._writers:
                writer.transport.abort()
        return {"connections": len(self._writers) // 2, "passed": self._passed}


def _listener(namespace_file: str, address: tuple[str, int]) -> socket.socket:
    """A socket belongs to the namespace that it was made in, wherever its process goes later."""
    with open("/proc/self/ns/net") as own, open(namespace_file) as other:
        _enter(other.fileno())
        try:
            return socket.create_server(address)
        finally:
            _enter(own.fileno())


def _enter(namespace: int) -> None:
    library = ctypes.CDLL(None, use_errno=True)  # os.setns came with Python 3.12
    if library.setns(namespace, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def _parsed(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)


async def main(namespace_file: str, listen: str, target: str) -> None:
    """Relay until standard input ends."""
    relay = Relay(_parsed(target))
    server = await asyncio.start_server(relay.connected, sock=_listener(namespace_file, _parsed(listen)))
    wishes = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(wishes), sys.stdin)
    _say({"listening": listen})
    async with server:
        while line := await wishes.readline():
            _say(relay.obey(json.loads(line)))
    os._exit(0)  # connections do not outlive whoever made the relay


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
