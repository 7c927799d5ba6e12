"""What every child measures with, and how it tells its parent."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from typing_extensions import Self


Measured = dict[str, float]


class Stopwatch:
    """Context manager; `cpu` and `wall` are the seconds spent inside it."""

    def __enter__(self) -> Self:
        gc.collect()  # what the preparation left behind is not the workload's cost
        self._wall_started = time.perf_counter()
        self._cpu_started = time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.cpu = time.process_time() - self._cpu_started
        self.wall = time.perf_counter() - self._wall_started

    @property
    def measured(self) -> Measured:
        """Both clocks, as they are reported."""
        return {"cpu": self.cpu, "wall": self.wall}


class DrainClock:
    """Times a worker from its first call to its last one.

    Starting up is not counted, and neither is what the first call was given: when a
    call begins, everything before it has been received. Whoever is measured says at the
    start of each call how many messages it has.

    :param expected: how many messages there are.
    """

    def __init__(self, expected: int) -> None:
        self._expected = expected
        self._first = 0
        self.total = 0
        self.calls = 0
        self.done = asyncio.Event()

    def called(self, messages: int) -> None:
        """A call begins."""
        self._stopped = time.time(), time.process_time()
        self.calls += 1
        if self.total == 0:
            self._first, self._started = messages, self._stopped
        self.total += messages
        if self.total >= self._expected:
            self.done.set()

    @property
    def measured(self) -> Measured:
        """Seconds since 1970 of both ends, and what was received between them."""
        (began, cpu_began), (ended, cpu_ended) = self._started, self._stopped
        return {
            "began": began,
            "ended": ended,
            "wall": ended - began,
            "cpu": cpu_ended - cpu_began,
            "messages": self.total - self._first,
            "calls": self.calls,
        }


def rss() -> int:
    """Resident memory of this process in bytes, now; Linux only."""
    with open("/proc/self/statm", encoding="ascii") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def report(measured: Mapping[str, Any]) -> None:
    """Print what was measured, for the parent."""
    # On a line of its own: celery says goodbye on standard output.
    sys.stdout.write(f"\n{json.dumps(measured)}\n")
    sys.stdout.flush()
