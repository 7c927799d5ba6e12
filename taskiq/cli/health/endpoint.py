"""A small HTTP server for probes, served by whoever waits for its sockets.

It has no thread: processes are forked beside it, and whether the one that serves is
still going round is a part of the answer.
"""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

#: Most bytes of a request, and connections at once; more than any probe needs.
_MOST_BYTES: Final = 8192
_MOST_CONNECTIONS: Final = 32

#: Seconds a client has to send its request.
_PATIENCE: Final = 5.0

#: Seconds for which a client that does not read may hold up everybody else.
_SENDING_LIMIT: Final = 0.5


class Answer(NamedTuple):
    """What a request is answered with.

    :ivar status: of HTTP.
    :ivar kind: type of the content.
    """

    status: int
    text: str
    kind: str = "text/plain; charset=utf-8"


class _Request:
    """A connection, and what came through it so far."""

    def __init__(self, now: float) -> None:
        self.began_at = now
        self.data = b""

    @property
    def is_complete(self) -> bool:
        return b"\r\n\r\n" in self.data or b"\n\n" in self.data


class Endpoint:
    """Listens at a port, on every address.

    :param port: of TCP; 0 for any that is free.
    :raises OSError: it cannot be listened at.
    :raises OverflowError: there is no such port.
    """

    def __init__(self, port: int) -> None:
        self._listener = _listen(port)
        self._listener.setblocking(False)
        self._requests: dict[socket.socket, _Request] = {}
        if hasattr(os, "register_at_fork"):
            # A forked process would keep the port when this one has ended.
            os.register_at_fork(after_in_child=self.close)

    @property
    def port(self) -> int:
        """The port it listens at."""
        port: int = self._listener.getsockname()[1]
        return port

    @property
    def sockets(self) -> list[socket.socket]:
        """What becomes readable when there is something to serve."""
        return [self._listener, *self._requests]

    def serve(self, answer: Callable[[str], Answer]) -> None:
        """Answer what has come, without waiting for anything.

        :param answer: called with the path of a request.
        """
        now = time.monotonic()
        self._accept(now)
        for connection, request in tuple(self._requests.items()):
            is_open = _receive(connection, request)
            if request.is_complete:
                _send(connection, _reply(request.data, answer))
                is_open = False
            if not is_open or now - request.began_at > _PATIENCE:
                self._drop(connection)

    def close(self) -> None:
        """Let go of every socket; more than once is no harm."""
        self._listener.close()
        for connection in tuple(self._requests):
            self._drop(connection)

    def _accept(self, now: float) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # nobody is there, or not any more
                return
            connection.setblocking(False)
            if len(self._requests) >= _MOST_CONNECTIONS:
                self._drop(next(iter(self._requests)))
            self._requests[connection] = _Request(now)

    def _drop(self, connection: socket.socket) -> None:
        self._requests.pop(connection, None)
        connection.close()


def _listen(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        # There may be no address of IPv6, though the platform knows it.
        with suppress(OSError):
            return socket.create_server(
                ("::", port), family=socket.AF_INET6, dualstack_ipv6=True
            )
    return socket.create_server(("", port))


def _receive(connection: socket.socket, request: _Request) -> bool:
    """Take in what has come; say whether more may."""
    try:
        data = connection.recv(_MOST_BYTES)
    except BlockingIOError:
        return True
    except OSError:
        return False
    request.data += data
    return bool(data) and len(request.data) <= _MOST_BYTES


def _reply(data: bytes, answer: Callable[[str], Answer]) -> bytes:
    words = data.split(b"\n", 1)[0].decode("latin-1").split()
    if len(words) < 2 or words[0] not in {"GET", "HEAD"}:  # noqa: PLR2004
        said = Answer(HTTPStatus.BAD_REQUEST, "Only GET and HEAD are answered.\n")
        words = ["GET", ""]
    else:
        said = answer(words[1].split("?", 1)[0])
    body = said.text.encode()
    head = (
        f"HTTP/1.1 {said.status} {HTTPStatus(said.status).phrase}\r\n"
        f"Content-Type: {said.kind}\r\nContent-Length: {len(body)}\r\n"
        "Cache-Control: no-store\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + (b"" if words[0] == "HEAD" else body)


def _send(connection: socket.socket, reply: bytes) -> None:
    """Send a reply. Mostly it fits in the buffers of the system at once."""
    with suppress(OSError):
        connection.settimeout(_SENDING_LIMIT)
        connection.sendall(reply)
        connection.shutdown(socket.SHUT_WR)
