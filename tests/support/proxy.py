"""A way to a server that can be closed and opened again, for tests of commands."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress

from .hub import HANG


class Proxy:
    """A way to a server that can be closed and opened again, at one port."""

    def __init__(self, host: str, port: int) -> None:
        self.server = (host, port)
        self._listener: socket.socket | None = None
        self._pipes: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self.port = 0

    def open(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self.port = self._listener.getsockname()[1]
        self._begin(self._accept, self._listener)

    def close(self) -> None:
        """Close every connection; whoever still reads one is woken first."""
        if self._listener is None:
            return
        self._end(self._listener)
        self._threads.pop(0).join(HANG)  # who accepts: there is no new pipe after it
        for pipe in self._pipes:
            self._end(pipe)
        for thread in self._threads:
            thread.join(HANG)
        for each in (self._listener, *self._pipes):
            each.close()
        self._listener = None
        self._pipes.clear()
        self._threads.clear()

    def _begin(self, step: Callable[..., None], *ends: socket.socket) -> None:
        thread = threading.Thread(target=step, args=ends, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                ours = listener.accept()[0]
                theirs = socket.create_connection(self.server)
                self._pipes += [ours, theirs]
                self._begin(self._copy, ours, theirs)
                self._begin(self._copy, theirs, ours)

    def _copy(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        self._end(source)
        self._end(target)

    @staticmethod
    def _end(end: socket.socket) -> None:
        """Wake whoever waits for it, too, which closing it would not."""
        with suppress(OSError):  # the other end has gone
            end.shutdown(socket.SHUT_RDWR)
