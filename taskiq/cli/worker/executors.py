"""The pools that run functions which are not async, in a worker process."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import sys
import time
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from threading import Thread
from typing import TYPE_CHECKING, Final, Protocol

from taskiq.cli.worker.logs import configure_logging
from taskiq.cli.worker.signals import SOFT, ParentWatch

if TYPE_CHECKING:
    from types import FrameType

    from taskiq.cli.worker.args import WorkerArgs

#: Seconds between two looks of a pool process whether it should end.
_CHECK_INTERVAL: Final = 1.0

#: Seconds for a pool whose tasks need not be waited for any more.
JOIN_GRACE: Final = 0.5

#: Whether a worker process works, finishes its tasks after a signal, or has done so.
WORKING, STOPPING, DONE = range(3)


class _Phase(Protocol):
    """A number that a worker process shares with those of its pool."""

    value: int


class Pool:
    """The threads or processes that run the sync tasks of a worker process.

    :param args: which of both, and how many.
    :ivar executor: takes the calls.
    """

    def __init__(self, args: WorkerArgs) -> None:
        self.executor: Executor
        self._phase: _Phase = _OwnPhase()
        if not args.use_process_pool:
            self.executor = ThreadPoolExecutor(args.max_threadpool_threads)
            return
        self._phase = multiprocessing.RawValue("b", WORKING)
        logging = (int(args.log_level), args.log_format)
        self.executor = ProcessPoolExecutor(
            max_workers=args.max_process_pool_processes,
            initializer=_prepare_process,
            initargs=(self._phase, logging if args.configure_logging else None),
        )

    def note_stop(self) -> None:
        """Note that the worker was told to stop, and its pool processes may be too."""
        self._phase.value = STOPPING

    async def join(self, limit: float | None) -> bool:
        """Wait for the threads or processes to end.

        :param limit: seconds, `None` for no limit.
        :returns: whether they have ended; otherwise the interpreter, too, would wait.
        """
        self._phase.value = DONE
        loop = asyncio.get_running_loop()
        is_joined = asyncio.Event()

        def shut_down() -> None:
            self.executor.shutdown(wait=True, cancel_futures=True)
            if not loop.is_closed():  # after the limit nobody waits any more
                loop.call_soon_threadsafe(is_joined.set)

        Thread(target=shut_down, name="executor-shutdown", daemon=True).start()
        try:
            await asyncio.wait_for(is_joined.wait(), limit)
        except asyncio.TimeoutError:
            return False
        return True


class _OwnPhase:
    """Threads share it without further ado."""

    value = WORKING


def _prepare_process(phase: _Phase, logging: tuple[int, str] | None) -> None:
    """Make a process of a pool end with its worker process, and not before.

    :param phase: what the worker process does.
    :param logging: level and format, `None` to leave logging alone.
    """
    if logging is not None:
        configure_logging(*logging)
    # A forked process would pass signals on to the event loop of its parent.
    signal.set_wakeup_fd(-1)
    is_terminated = _leave_signals_to_the_worker()
    if sys.platform != "win32":
        signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    Thread(target=_end_in_time, args=(phase, is_terminated), daemon=True).start()


class _Flag:
    is_set = False


def _leave_signals_to_the_worker() -> _Flag:
    """Outlive signals, which terminals and service managers send to all processes.

    Not with SIG_IGN, which programs started by tasks would inherit.

    :returns: set by SIGTERM. An executor sends it too, when one of its processes died,
        and waits for the others to end.
    """
    is_terminated = _Flag()

    def outlive(signum: int, _frame: FrameType | None) -> None:
        if signum == signal.SIGTERM:
            is_terminated.is_set = True

    for each in SOFT:
        signal.signal(each, outlive)
    return is_terminated


def _end_in_time(phase: _Phase, is_terminated: _Flag) -> None:
    """End the process once it must."""
    watch = ParentWatch()
    was_terminated = False
    while not must_end(phase.value, was_terminated, is_orphan=watch.is_gone()):
        # Not judged at once: the worker, told by the same signal, may say so later.
        was_terminated = is_terminated.is_set
        time.sleep(_CHECK_INTERVAL)
    os._exit(1)


def must_end(phase: int, was_terminated: bool, is_orphan: bool) -> bool:
    """Decide whether a pool process must end.

    :param phase: what its worker process does.
    :param was_terminated: whether it got SIGTERM, some time ago. While the worker is
        stopping that was the signal all get; else the executor wants it to end.
    :param is_orphan: whether the worker process is gone.
    """
    return is_orphan or (was_terminated and phase != STOPPING)
