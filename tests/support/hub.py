"""The other end of real worker processes: it hands out messages and is told events."""

from __future__ import annotations

import itertools
import json
import socketserver
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from typing_extensions import Self

from taskiq import TaskiqMessage

#: Seconds after which a wait is a hang.
HANG = 30.0


@dataclass(eq=False)
class Line:
    """A connection from a process, open for as long as the process wants."""

    handler: socketserver.StreamRequestHandler
    pid: int
    name: str

    def send(self, value: object) -> None:
        self.handler.wfile.write(json.dumps(value).encode() + b"\n")


@dataclass
class Hub:
    """A server on localhost. Processes report to it and open lines of three kinds.

    :ivar reports: what was reported, in order; each has `kind`, `pid` and `name`.
    :ivar alive: open as long as the process, or one forked from it, lives.
    :ivar listening: brokers that listen; what is sent to a line is a message.
    :ivar held: tasks that wait to be let go.
    """

    reports: list[dict[str, Any]] = field(default_factory=list)
    alive: list[Line] = field(default_factory=list)
    listening: list[Line] = field(default_factory=list)
    held: list[Line] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._changed = threading.Condition()
        self._ids = itertools.count()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.hub = self
        self._thread = threading.Thread(
            target=self._server.serve_forever,
            kwargs={"poll_interval": 0.01},
        )

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def refuse(self) -> None:
        """Take no more connections from now on; those that are open stay."""
        self._server.shutdown()
        self._server.server_close()

    def wait(self, condition: Callable[[], object], timeout: float = HANG) -> None:
        """Wait until something is true."""
        with self._changed:
            assert self._changed.wait_for(condition, timeout), self

    def all(self, kind: str, **fields: object) -> list[dict[str, Any]]:
        """Give the reports of a kind with these fields."""
        return [
            report
            for report in list(self.reports)
            if report.items() >= {"kind": kind, **fields}.items()
        ]

    def wait_for(self, kind: str, **fields: object) -> dict[str, Any]:
        """Wait for a report and give it."""
        self.wait(lambda: self.all(kind, **fields))
        return self.all(kind, **fields)[0]

    def wait_for_listeners(self, count: int = 1) -> None:
        self.wait(lambda: len(self.listening) == count)

    def send(self, task_name: str, *args: Any, to: int = 0, **labels: Any) -> str:
        """Hand a message to one of the brokers that listen.

        :returns: the id of the task.
        """
        task_id = f"{task_name}-{next(self._ids)}"
        message = TaskiqMessage(
            task_id=task_id,
            task_name=task_name,
            labels=labels,
            args=list(args),
            kwargs={},
        )
        self.listening[to].send({"id": task_id, "data": message.model_dump_json()})
        return task_id

    def let_go(self) -> None:
        """Let all held tasks go on."""
        for line in list(self.held):
            line.send("go")

    def serve(self, handler: socketserver.StreamRequestHandler) -> None:
        """Serve one connection; the first line says of what kind it is."""
        first = handler.rfile.readline()
        if not first:
            return
        hello = json.loads(first)
        lines = {
            "alive": self.alive,
            "listening": self.listening,
            "held": self.held,
        }.get(hello["kind"])
        line = Line(handler, hello["pid"], hello["name"])
        with self._changed:
            self.reports.append(hello)
            if lines is not None:
                lines.append(line)
            self._changed.notify_all()
        if lines is None:
            handler.wfile.write(b"noted\n")
            return
        try:
            while handler.rfile.readline():
                pass
        except ConnectionError:
            pass  # the process was killed
        with self._changed:
            lines.remove(line)
            self._changed.notify_all()


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128
    hub: Hub


class _Handler(socketserver.StreamRequestHandler):
    server: _Server

    def handle(self) -> None:
        self.server.hub.serve(self)
