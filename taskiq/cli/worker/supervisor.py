"""What to do with which worker process now.

Nothing here waits, signals or starts a process: facts and the time come in as values,
orders go out as values.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from taskiq.receiver.restart import RestartDelays

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

#: Seconds a reload waits for a process to end before its successor is started beside
#: it. It goes on with its tasks; it only reads no more messages.
RELOAD_PATIENCE: Final = 10.0

#: Seconds a process that ends without an error lives at least, or its successor waits
#: for the rest: one that finds nothing to do is not to be started in a spin.
SHORTEST_LIFE: Final = 1.0

#: So many processes of a worker that die before they have imported the application,
#: one after the other, and it is given up.
MOST_FAILED_STARTS: Final = 3

#: Exit status then.
CANNOT_START: Final = 1

#: Exit status of a stop that did not wait for running tasks.
STOPPED_AT_ONCE: Final = 1

#: Most seconds until the successor of a process that failed is started.
LONGEST_DELAY: Final = 30.0

#: A process that lived for so many seconds was healthy: its failures are forgotten.
HEALTHY_AFTER: Final = 60.0

#: Exit status after more failures than are tolerated; the shell sees it as 255.
TOO_MANY_FAILURES: Final = -1


class Force(IntEnum):
    """How a process is told to end; each is stronger than the one before."""

    #: Read no more messages, run to the end what was read.
    SOFT = 1
    #: Give up the tasks that run, shut down the broker.
    HARD = 2
    #: Be gone.
    KILL = 3


class Start(NamedTuple):
    """The order to start a process for a worker."""

    worker: int


class End(NamedTuple):
    """The order to tell a process to end."""

    pid: int
    force: Force


Order: TypeAlias = Start | End


@dataclass(slots=True)
class _Process:
    worker: int
    started_at: float
    force: Force | None = None
    told_at: float = 0.0
    has_imported: bool = False


@dataclass(slots=True)
class _Worker:
    """A place for one process, which is filled again when it gets empty."""

    pid: int | None = None
    failed_starts: int = 0
    start_at: float | None = None
    delays: RestartDelays = field(default_factory=lambda: RestartDelays(LONGEST_DELAY))


class Supervisor:
    """Keeps every worker staffed with a process, reloads them, ends them.

    All times are seconds of one monotonic clock.

    :param workers: how many processes there are to be.
    :param max_fails: most failures that are tolerated; no limit below 1.
    :param hardkill_count: how many signals are soft before one is hard.
    :param kill_after: seconds a process has to end after it was told to the hard way.
    :param most_failed_starts: so many processes of one worker in a row that die before
        they have imported the application end all; `None` is no limit.
    """

    def __init__(
        self,
        workers: int,
        max_fails: int,
        hardkill_count: int,
        kill_after: float,
        most_failed_starts: int | None = None,
    ) -> None:
        self._workers = [_Worker(start_at=float("-inf")) for _ in range(workers)]
        self._processes: dict[int, _Process] = {}
        self._max_fails = max_fails
        self._hardkill_count = hardkill_count
        self._kill_after = kill_after
        self._most_failed_starts = most_failed_starts
        self._has_ever_imported = False
        self._fails = 0
        self._signals = 0
        self._force: Force | None = None
        self._reloads: deque[int] = deque()
        self._reloading: int | None = None
        #: Exit status for the end; `None` stands for success.
        self.status: int | None = None

    @property
    def is_ending(self) -> bool:
        """Whether all processes are to end and none is to be started."""
        return self._force is not None

    @property
    def is_over(self) -> bool:
        """Whether all processes were to end, and have ended."""
        return self.is_ending and not self._processes

    @property
    def soft_signals_left(self) -> int:
        """How many more signals are soft."""
        return max(self._hardkill_count - self._signals, 0)

    # -- Facts --------------------------------------------------------------------

    def started(self, worker: int, pid: int, now: float) -> None:
        """Note that the process of a worker was started."""
        self._workers[worker].pid = pid
        self._processes[pid] = _Process(worker, now)

    def failed_to_start(self, worker: int, now: float) -> float | None:
        """Note that the process of a worker could not be started.

        :returns: seconds until it is tried again, `None` if it is not.
        """
        return self._failed(self._workers[worker], ran_for=0, now=now)

    def imported(self, pid: int) -> None:
        """Note that a process has imported the application."""
        process = self._processes[pid]
        process.has_imported = self._has_ever_imported = True
        self._workers[process.worker].failed_starts = 0

    def is_told_to_end(self, pid: int) -> bool:
        """Whether a process was given an order to end."""
        return self._processes[pid].force is not None

    def exited(
        self,
        pid: int,
        exitcode: int,
        now: float,
        fatal_status: int | None = None,
    ) -> float | None:
        """Note that a process has ended.

        :param fatal_status: exit status of all if no other process could start either.
            Those that run may know an application that could be imported.
        :returns: seconds until another one is started, `None` if there will be none.
        """
        process = self._processes.pop(pid)
        worker = self._workers[process.worker]
        if worker.pid != pid:  # its successor was started before
            return None
        worker.pid = None
        if self.is_ending:
            return None
        ran_for = now - process.started_at
        if process.force is not None:
            delay = 0.0
        elif exitcode == 0:
            delay = max(SHORTEST_LIFE - ran_for, 0)
        # One that runs for so long and does not say so is another worker function.
        elif self._cannot_start(
            worker, process.has_imported or ran_for >= HEALTHY_AFTER, fatal_status
        ):
            return None
        else:
            return self._failed(worker, ran_for, now)
        worker.start_at = now + delay
        return delay

    def _cannot_start(
        self,
        worker: _Worker,
        has_imported: bool,
        fatal_status: int | None,
    ) -> bool:
        """Decide whether the failure of a process ends all of them."""
        worker.failed_starts = 0 if has_imported else worker.failed_starts + 1
        if fatal_status is not None and (has_imported or not self._has_ever_imported):
            self.status = fatal_status
        elif worker.failed_starts == self._most_failed_starts:
            self.status = CANNOT_START
        else:
            return False
        self._end_all(Force.SOFT)
        return True

    def _failed(self, worker: _Worker, ran_for: float, now: float) -> float | None:
        self._fails += 1
        if 1 <= self._max_fails < self._fails:
            self.status = TOO_MANY_FAILURES
            self._end_all(Force.SOFT)
            return None
        delay = worker.delays.after_failure(was_healthy=ran_for >= HEALTHY_AFTER)
        worker.start_at = now + delay
        return delay

    # -- Wishes -------------------------------------------------------------------

    def reload(self, worker: int) -> bool:
        """Have the process of a worker replaced, after those asked for before.

        :returns: whether there is such a worker.
        """
        if not 0 <= worker < len(self._workers):
            return False
        # One that is still being replaced gets a process that knows the latest.
        if worker != self._reloading and worker not in self._reloads:
            self._reloads.append(worker)
        return True

    def shut_down(self) -> Force:
        """Have all processes end; each call is one signal, and counted.

        :returns: how they are told.
        """
        self._signals += 1
        soft, hard = self._hardkill_count, self._hardkill_count + 1
        if self._signals <= soft:
            force = Force.SOFT
        else:
            force = Force.HARD if self._signals == hard else Force.KILL
            self.status = self.status or STOPPED_AT_ONCE
        self._end_all(force)
        return force

    def _end_all(self, force: Force) -> None:
        self._force = force
        for process in self._processes.values():
            # Said again if need be: one that has just started may have missed it.
            if process.force is not None and process.force <= force:
                process.force = None

    # -- Orders -------------------------------------------------------------------

    def decide(self, now: float) -> list[Order]:
        """Say what is to be done now; every order is given once."""
        if self._force is not None:
            return list(self._orders_to_end(self._force, now))
        return [*self._orders_to_reload(now), *self._orders_to_start(now)]

    def _orders_to_end(self, force: Force, now: float) -> Iterator[Order]:
        for pid, process in self._processes.items():
            if process.force is None or self._is_overdue(process, now):
                yield self._tell(
                    pid, force if process.force is None else Force.KILL, now
                )

    def _is_overdue(self, process: _Process, now: float) -> bool:
        return process.force is Force.HARD and process.told_at + self._kill_after <= now

    def _orders_to_reload(self, now: float) -> Iterator[Order]:
        """Replace one process after the other, so that not all are away at once."""
        while self._reloading is not None or self._reloads:
            if self._reloading is None:
                self._reloading = self._reloads.popleft()
                pid = self._workers[self._reloading].pid
                if pid is not None:
                    yield self._tell(pid, Force.SOFT, now)
            worker = self._workers[self._reloading]
            if worker.pid is not None:
                if now < self._processes[worker.pid].told_at + RELOAD_PATIENCE:
                    return
                worker.pid = None
            worker.start_at = now
            self._reloading = None

    def _orders_to_start(self, now: float) -> Iterator[Order]:
        for number, worker in enumerate(self._workers):
            if worker.start_at is not None and worker.start_at <= now:
                worker.start_at = None
                yield Start(number)

    def _tell(self, pid: int, force: Force, now: float) -> End:
        process = self._processes[pid]
        process.force = force
        process.told_at = now
        return End(pid, force)

    def next_decision_at(self) -> float | None:
        """Say when there is something to decide if nothing happens before."""
        return min(self._deadlines(), default=None)

    def _deadlines(self) -> Iterable[float]:
        if self.is_ending:
            for process in self._processes.values():
                if process.force is Force.HARD:
                    yield process.told_at + self._kill_after
            return
        for worker in self._workers:
            if worker.start_at is not None:
                yield worker.start_at
        if self._reloading is not None:
            pid = self._workers[self._reloading].pid
            if pid is not None:
                yield self._processes[pid].told_at + RELOAD_PATIENCE
