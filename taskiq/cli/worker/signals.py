"""What tells a worker process to end: signals, and the end of its main process."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Generator
    from types import FrameType


def _known(*names: str) -> tuple[signal.Signals, ...]:
    """Give the signals of these names that the platform has."""
    return tuple(member for member in signal.Signals if member.name in names)


#: Signals after which the process finishes what it has begun.
SOFT: Final = _known("SIGINT", "SIGTERM", "SIGHUP")

#: Signals after which it does not. As with other daemons SIGQUIT is the quick end.
HARD: Final = _known("SIGQUIT")


@contextmanager
def held_back() -> Generator[None, None, None]:
    """Hold signals back, and let a process that is started meanwhile begin so.

    A process is told once to end. One that has just been forked has the handlers of its
    parent, who would do nothing for it: it calls `let_through` when it knows better.
    """
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SOFT)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def let_through() -> None:
    """Take signals again that were held back; one that has come is handled now."""
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SOFT)


def exit_on_signals() -> None:
    """End the process at a signal, as long as it has not begun anything."""
    for signum in (*SOFT, *HARD):
        signal.signal(signum, _exit)


def _exit(_signum: int, _frame: FrameType | None) -> None:
    # Told by all who signal every process, and by the main process: once is enough.
    for signum in SOFT:
        signal.signal(signum, _do_nothing)
    raise SystemExit(0)


def _do_nothing(_signum: int, _frame: FrameType | None) -> None:
    """Stand in for SIG_IGN where a signal that has come still looks for a handler."""


def handle_signals(
    loop: asyncio.AbstractEventLoop,
    soft: Callable[[], None],
    hard: Callable[[], None],
    at_once: Callable[[], None],
) -> None:
    """Have signals call functions in an event loop, and wake it if it waits.

    :param loop: the loop of the main thread.
    :param at_once: called for any of them in the moment it comes, though the loop may
        be held up: it interrupts whatever runs.
    :param soft: for signals after which running tasks are finished.
    :param hard: for signals after which they are not.
    """
    for signums, function in ((SOFT, soft), (HARD, hard)):
        for signum in signums:
            if sys.platform == "win32":
                # The loops there know no signals, but are woken by them.
                signal.signal(signum, _in_loop(loop, function, at_once))
            else:
                loop.add_signal_handler(signum, function)
                # In the place of one that does nothing: the loop is told anyway.
                signal.signal(signum, _at_once(at_once))


def _at_once(function: Callable[[], None]) -> Callable[[int, FrameType | None], None]:
    def handler(_signum: int, _frame: FrameType | None) -> None:
        function()

    return handler


def _in_loop(
    loop: asyncio.AbstractEventLoop,
    function: Callable[[], None],
    at_once: Callable[[], None],
) -> Callable[[int, FrameType | None], None]:
    def handler(_signum: int, _frame: FrameType | None) -> None:
        at_once()
        loop.call_soon_threadsafe(function)

    return handler


def close_without_handlers(loop: asyncio.AbstractEventLoop) -> None:
    """Close a loop that handled signals; soft ones are ignored from now on.

    A loop that is closed sets the handlers of Python, which for a second SIGINT print
    a traceback: the process is about to end, and is not to be told again.
    """
    ignore_soft_signals(after=loop.close)


def ignore_soft_signals(after: Callable[[], None] | None = None) -> None:
    """Ignore signals until the process has ended.

    :param after: called before that, while signals are held back.
    """
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_BLOCK, SOFT)
    if after is not None:
        after()
    for signum in SOFT:
        signal.signal(signum, signal.SIG_IGN)
    let_through()


class ParentWatch:
    """Tells whether the process that started this one is gone."""

    def __init__(self) -> None:
        self._parent = multiprocessing.parent_process()
        # Not so where a fork server stands between the two.
        self._is_direct = self._parent is not None and os.getppid() == self._parent.pid

    def is_gone(self) -> bool:
        """Whether the parent process has ended."""
        if self._parent is None:
            return False
        # Forked siblings hold each other's signs of life of the parent: while they
        # live, only the system knows.
        is_adopted = self._is_direct and os.getppid() != self._parent.pid
        return is_adopted or not self._parent.is_alive()
