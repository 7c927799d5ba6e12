"""What a worker process tells the main process of its start."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

#: How this process reaches the main process; `None` in one that it did not start.
_to_main: Connection | None = None


@dataclass(frozen=True)
class Started:
    """The application was imported."""


@dataclass(frozen=True)
class NotStarted:
    """The process could not start.

    :ivar error: why, in a line.
    :ivar status: exit status for the whole command if no other try would help; `None`
        if one might.
    """

    error: str
    status: int | None = None


class Reports:
    """Receives what one worker process tells.

    :ivar writer: for the process; to be closed here once that has been started.
    :ivar has_started: whether the process has imported the application.
    :ivar failure: why it could not start, if it said so.
    """

    def __init__(self) -> None:
        self._reader, self.writer = Pipe(duplex=False)
        self.has_started = False
        self.failure: NotStarted | None = None

    def read(self) -> None:
        """Take in what was told so far."""
        with suppress(EOFError, OSError):  # all was told, or the process was killed
            while self._reader.poll():
                report: Started | NotStarted = self._reader.recv()
                if isinstance(report, Started):
                    self.has_started = True
                else:
                    self.failure = report

    def close(self) -> None:
        """Read no more."""
        self._reader.close()


def report_to(main: Connection) -> None:
    """Let this process tell the main process."""
    global _to_main  # noqa: PLW0603 - one process has one main process
    _to_main = main


def report(what: Started | NotStarted) -> None:
    """Tell the main process, if there is one."""
    if _to_main is not None:
        with suppress(OSError):  # it is gone: that is noticed elsewhere
            _to_main.send(what)
