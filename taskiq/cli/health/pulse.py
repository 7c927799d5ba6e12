"""The heartbeat of a worker process: what it says each second, and who writes it.

A thread writes, so that a process whose event loop is blocked still says so.
"""

from __future__ import annotations

import asyncio
import os
import platform
import time
from logging import getLogger
from multiprocessing import current_process
from threading import Event, Thread
from typing import TYPE_CHECKING, Final

from taskiq.health import INTERVAL, Heartbeat, ListenerState

if TYPE_CHECKING:
    from collections.abc import Callable

    from taskiq.cli.health.files import HealthDirectory
    from taskiq.receiver import Receiver

logger = getLogger("taskiq.worker")

#: Seconds an event loop has to answer before it is written that it has not yet.
_ANSWER_LIMIT: Final = 0.25

#: Seconds to wait for the thread: it may be about to write.
_JOIN_LIMIT: Final = 1.0


class Reading:
    """Reads what a receiver is at, in its event loop.

    :param receiver: to be asked.
    :param state: says what its listener does.
    """

    def __init__(
        self,
        receiver: Receiver,
        state: Callable[[], ListenerState],
    ) -> None:
        self._receiver = receiver
        self._state = state
        # The listening whose messages were counted, and how many those before it had.
        self._listening: object = None
        self._before = 0
        self._fetched = 0
        self._fetched_at: float | None = None

    def take(self, beat: Heartbeat, now: float) -> Heartbeat:
        """Give a heartbeat with what the receiver is at now.

        :param beat: who it is of.
        """
        fetched = self._count()
        if fetched != self._fetched:
            self._fetched, self._fetched_at = fetched, now
        receiver = self._receiver
        runtime = receiver.runtime
        held = receiver.batch_statistics()
        return beat._replace(
            listener=self._state(),
            fetched=fetched,
            last_fetch_age=_since(self._fetched_at, now),
            running=len(runtime.tasks.of(lambda subject: subject is not None)),
            buffered=held.buffered,
            waiting=held.waiting,
            oldest_age=runtime.batcher.longest_wait(),
            batches_open=held.open_groups,
            batches_due=held.due_batches,
            flushes=tuple(runtime.flushes.tasks()),
        )

    def _count(self) -> int:
        """Count the messages that were read since the start."""
        listening = self._receiver.runtime.listening
        if listening is None:
            return 0
        if listening is not self._listening:
            self._before, self._listening = self._fetched, listening
        return self._before + listening.prefetch.fetched


def _since(moment: float | None, now: float) -> float | None:
    return None if moment is None else max(now - moment, 0.0)


class Pulse:
    """Asks an event loop each second, and writes what it answers, or that it does not.

    :param directory: where to write.
    :param broker: what the command line names as the broker.
    :param take: called in the running event loop, with the heartbeat to complete and
        the moment.
    """

    def __init__(
        self,
        directory: HealthDirectory,
        broker: str,
        take: Callable[[Heartbeat, float], Heartbeat],
    ) -> None:
        self._directory = directory
        self._take = take
        self._loop = asyncio.get_running_loop()
        self._asked_at: float | None = None
        self._lag = 0.0
        self._answered = Event()
        self._stop = Event()
        self._has_failed = False
        now = time.time()
        self._beat = Heartbeat(
            worker=current_process().name,
            host=platform.node(),
            pid=os.getpid(),
            broker=broker,
            started_at=now,
            written_at=now,
            answered_at=now,
        )
        self._thread = Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Write from now on."""
        self._answer()
        self._thread.start()

    def stop(self) -> None:
        """Write no more, and remove what was written."""
        self._stop.set()
        self._thread.join(_JOIN_LIMIT)
        self._directory.remove(os.getpid())

    def _run(self) -> None:
        while not self._stop.is_set():
            self._ask()
            self._answered.wait(_ANSWER_LIMIT)
            self._write()
            self._stop.wait(INTERVAL)

    def _ask(self) -> None:
        if self._asked_at is not None:
            return
        self._asked_at = time.time()
        self._answered.clear()
        try:
            self._loop.call_soon_threadsafe(self._answer)
        except RuntimeError:  # it is closed: the process is about to end
            self._stop.set()

    def _answer(self) -> None:
        now = time.time()
        if self._asked_at is not None:
            self._lag = max(now - self._asked_at, 0.0)
        self._asked_at = None
        # It has answered, whatever becomes of the rest.
        self._beat = self._beat._replace(answered_at=now)
        self._beat = self._take(self._beat, now)
        self._answered.set()

    def _write(self) -> None:
        now, asked_at = time.time(), self._asked_at
        lag = self._lag if asked_at is None else max(now - asked_at, self._lag)
        beat = self._beat._replace(written_at=now, loop_lag=lag)
        try:
            self._directory.write(beat)
        except OSError as exc:
            if not self._has_failed:
                logger.warning("Cannot write a heartbeat: %s", exc)
            self._has_failed = True
        else:
            self._has_failed = False
