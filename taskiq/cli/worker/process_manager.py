"""The main process of the worker command: it starts processes, watches and ends them.

What is done when is decided by :mod:`taskiq.cli.worker.supervisor`.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import Process, current_process
from multiprocessing.connection import wait
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Final, Protocol

from taskiq.cli.finding import StartError
from taskiq.cli.health.watch import HealthWatch
from taskiq.cli.worker.reports import NotStarted, Reports, report, report_to
from taskiq.cli.worker.signals import held_back, let_through
from taskiq.cli.worker.supervisor import (
    CANNOT_START,
    MOST_FAILED_STARTS,
    RELOAD_PATIENCE,
    End,
    Force,
    Start,
    Supervisor,
)
from taskiq.outage import messages
from taskiq.receiver.casualties import (
    Deaths,
    RunningCalls,
    Shared,
    share,
    together,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable
    from multiprocessing.connection import Connection
    from types import FrameType

    from watchdog.observers.api import BaseObserver

    from taskiq.cli.worker.args import WorkerArgs
    from taskiq.cli.worker.supervisor import Order

logger = logging.getLogger("taskiq.process-manager")

#: Most messages of a call that are named when its process has died.
_MOST_NAMED: Final = 10

#: Most seconds between two looks at the processes, should nothing wake the manager.
_LONGEST_WAIT: Final = 1.0

#: Seconds a process gets, beyond those for the broker, to end after a hard kill.
_HARD_KILL_GRACE: Final = 1.0


class _Receivable(Protocol):
    def put(self, obj: Any, /) -> None: ...


class ProcessActionBase:
    """Something the process manager is asked to do."""


@dataclass
class ReloadAllAction(ProcessActionBase):
    """Replace every process, one after the other."""

    def handle(self, workers_num: int, action_queue: _Receivable) -> None:
        """Ask for each process to be replaced.

        :param workers_num: number of workers.
        :param action_queue: where the requests are put.
        """
        for worker_num in range(workers_num):
            action_queue.put(ReloadOneAction(worker_num, is_reload_all=True))


@dataclass
class ReloadOneAction(ProcessActionBase):
    """Replace the process of one worker.

    :ivar worker_num: number of the worker, from 0.
    :ivar is_reload_all: whether all processes are replaced.
    """

    worker_num: int
    is_reload_all: bool

    def handle(
        self,
        workers: list[Process],
        args: WorkerArgs,
        worker_func: Callable[[WorkerArgs], None],
    ) -> None:
        """Replace the process at once: tell it to end, wait for that, start another.

        The wait is limited; a process that takes longer ends beside its successor.

        :param workers: the processes by worker; the new one is put in its place.
        :param args: passed to `worker_func`.
        :param worker_func: what the new process runs.
        """
        if not 0 <= self.worker_num < len(workers):
            _warn_of_unknown_worker(self.worker_num)
            return
        process = workers[self.worker_num]
        if process.is_alive():
            process.terminate()
            process.join(RELOAD_PATIENCE)
        workers[self.worker_num] = _start_process(self.worker_num, args, worker_func)


@dataclass
class ShutdownAction(ProcessActionBase):
    """End all processes and the manager."""


def schedule_workers_reload(action_queue: _Receivable) -> None:
    """Ask for every process to be replaced.

    :param action_queue: where the request is put.
    """
    action_queue.put(ReloadAllAction())
    logger.info("Scheduled a reload of all workers.")


def get_signal_handler(
    action_queue: _Receivable,
    action_to_send: ProcessActionBase,
) -> Callable[[int, FrameType | None], None]:
    """Make a signal handler that asks the manager for something.

    It does nothing else, not even log: it may have interrupted just that.

    :param action_queue: where the action is put. A signal can interrupt another `put`
        to it, which has to stand that.
    :param action_to_send: what to ask for.
    """

    def handler(_signum: int, _frame: FrameType | None) -> None:
        # A forked process has the handlers of its parent until it sets its own.
        if current_process().name.startswith("worker"):
            raise KeyboardInterrupt
        action_queue.put(action_to_send)

    return handler


class ActionQueue:
    """Actions for the manager; `put` may be called from signal handlers and threads.

    :ivar wakeup: readable once there is an action.
    """

    def __init__(self) -> None:
        # The only queue whose `put` may interrupt another one in the same thread.
        self._actions: SimpleQueue[ProcessActionBase] = SimpleQueue()
        self.wakeup, self._waker = socket.socketpair()
        self.wakeup.setblocking(False)
        self._waker.setblocking(False)

    def put(self, action: ProcessActionBase, /) -> None:
        """Add an action, and wake who waits for `wakeup`."""
        self._actions.put(action)
        try:
            self._waker.send(b"\0")
        except OSError:
            # Full of wake-up calls nobody has read, or closed as nobody will.
            return

    def take_all(self) -> list[ProcessActionBase]:
        """Remove all actions, in the order they were put."""
        self._fall_asleep()
        actions: list[ProcessActionBase] = []
        while not self._actions.empty():  # nobody else takes any
            actions.append(self._actions.get())
        return actions

    @contextmanager
    def woken_by_signals(self) -> Generator[None, None, None]:
        """Have signals wake the main thread even if one comes just before it waits.

        Their handlers, in which actions are put, would run only after the wait.
        """
        before = signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)

    def _fall_asleep(self) -> None:
        try:
            while self.wakeup.recv(4096):
                pass
        except BlockingIOError:
            return

    def close(self) -> None:
        """Release the sockets; what is put from now on stays where it is."""
        self.wakeup.close()
        self._waker.close()


class ProcessManager:
    """Keeps worker processes running.

    Signals of the main process are handled from here on: SIGINT and SIGTERM end the
    workers, SIGHUP replaces them.

    :param args: how many workers to run, and how; passed to each.
    :param worker_function: what a process runs, called with `args` by keyword.
    :param observer: tells about changed files if workers are to be reloaded for them.
    :raises StartError: what its health is told by cannot be used.
    :ivar workers: the process of each worker, by its number.
    """

    def __init__(
        self,
        args: WorkerArgs,
        worker_function: Callable[[WorkerArgs], None],
        observer: BaseObserver | None = None,
    ) -> None:
        self._health = HealthWatch(args)
        self.worker_function = worker_function
        self.action_queue = ActionQueue()
        self.args = args
        self.workers: list[Process] = []
        self._processes: dict[int, Process] = {}
        self._reports: dict[int, Reports] = {}
        self._running: dict[int, RunningCalls] = {}
        self._deaths: Deaths | None = None
        self._supervisor = Supervisor(
            workers=args.workers,
            max_fails=args.max_fails,
            hardkill_count=args.hardkill_count,
            kill_after=args.shutdown_timeout + _HARD_KILL_GRACE,
            # Who edits the application is to find its workers waiting.
            most_failed_starts=None if args.reload else MOST_FAILED_STARTS,
        )
        if args.reload and observer is not None:
            self._watch_files(observer)
        self._handle_signals()

    def _watch_files(self, observer: BaseObserver) -> None:
        from taskiq.cli.watcher import FileWatcher  # noqa: PLC0415 - needs an extra

        for directory in self.args.reload_dirs or ["."]:
            watcher = FileWatcher(
                callback=schedule_workers_reload,
                path=Path(directory),
                use_gitignore=not self.args.no_gitignore,
                action_queue=self.action_queue,
            )
            observer.schedule(watcher, path=directory, recursive=True)

    def _handle_signals(self) -> None:
        shut_down = get_signal_handler(self.action_queue, ShutdownAction())
        signal.signal(signal.SIGINT, shut_down)
        signal.signal(signal.SIGTERM, shut_down)
        if sys.platform != "win32":
            reload_all = get_signal_handler(self.action_queue, ReloadAllAction())
            signal.signal(signal.SIGHUP, reload_all)

    def prepare_workers(self) -> None:
        """Start the process of each worker."""
        self._carry_out(self._supervisor.decide(time.monotonic()))

    def start(self) -> int | None:
        """Run the workers until they are told to end, and have ended.

        An error in here ends the workers, too: Python waits for child processes before
        it exits, and these would run for ever with nobody to tell them to end.

        :returns: exit status; `None` for success, -1 after too many failures.
        """
        try:
            self.prepare_workers()
            self._supervise()
        except BaseException:
            for process in self._processes.values():
                process.terminate()
            raise
        finally:
            self._health.close()
            self.action_queue.close()
        logger.info("All workers have ended.")
        return self._supervisor.status

    def _supervise(self) -> None:
        with self.action_queue.woken_by_signals():
            while not self._supervisor.is_over:
                self._health.look(self._processes)
                self._wait()
                self._note_exits()
                for action in self.action_queue.take_all():
                    self._take(action)
                self._carry_out(self._supervisor.decide(time.monotonic()))

    def _wait(self) -> None:
        """Wait until a process ends, something is asked for or a deadline comes."""
        timeout = _LONGEST_WAIT
        deadline = self._supervisor.next_decision_at()
        if deadline is not None:
            timeout = min(max(deadline - time.monotonic(), 0), _LONGEST_WAIT)
        sentinels = [process.sentinel for process in self._processes.values()]
        # On Windows it cannot wait for sockets that listen.
        probes = [] if sys.platform == "win32" else self._health.waited_for
        wait([self.action_queue.wakeup, *sentinels, *probes], timeout)

    def _note_exits(self) -> None:
        # First of all: what one process cannot do another may have done.
        for pid in self._reports:
            self._read_reports(pid)
        for pid, process in list(self._processes.items()):
            if process.exitcode is None:
                continue
            self._read_reports(pid)  # it may have ended since
            del self._processes[pid]
            name, exitcode = process.name, process.exitcode
            was_ending = self._supervisor.is_ending
            is_told = self._supervisor.is_told_to_end(pid)
            level = _level(is_wanted=exitcode == 0, is_ending=was_ending)
            logger.log(level, "%s with pid %d ended: %s.", name, pid, _reason(exitcode))
            running = self._running.pop(pid, None)
            if running is not None:
                self._note_running(name, running, is_told=is_told)
            reports = self._reports.pop(pid)
            reports.close()
            failure = reports.failure
            delay = self._supervisor.exited(
                pid,
                exitcode,
                time.monotonic(),
                fatal_status=None if failure is None else failure.status,
            )
            if not was_ending:
                self._log_restart(name, delay, failure)

    def _note_running(self, name: str, running: RunningCalls, *, is_told: bool) -> None:
        """Say what a process was running, and who is suspected of its death."""
        calls = running.read()
        if self._deaths is not None and not is_told:
            self._deaths.note(calls)
        for call in together(calls or ()):
            shown = ", ".join(call.ids[:_MOST_NAMED])
            more = len(call.ids) - _MOST_NAMED
            logger.warning(
                "%s was running %s of task %s: ID %s%s.",
                name,
                messages(len(call.ids)),
                call.task_name,
                shown,
                f" and {more} more" if more > 0 else "",
                extra={"task_name": call.task_name, "task_ids": call.ids},
            )

    def _read_reports(self, pid: int) -> None:
        reports = self._reports[pid]
        had_started = reports.has_started
        reports.read()
        if reports.has_started and not had_started:
            self._supervisor.imported(pid)

    def _log_restart(
        self,
        name: str,
        delay: float | None,
        failure: NotStarted | None = None,
    ) -> None:
        if delay is not None:
            if failure is not None and failure.status is not None:
                logger.error("%s", failure.error)  # the process leaves that to this one
            logger.info("%s is started again in %.1f s.", name, delay)
        elif failure is not None and failure.status is not None:
            logger.error("%s", failure.error)
        elif self._supervisor.status == CANNOT_START:
            logger.error(
                "The application cannot be imported, %d times in a row: %s",
                MOST_FAILED_STARTS,
                "the process died" if failure is None else failure.error,
            )
        elif self._supervisor.is_ending:
            logger.warning("More than %d failures: stopping.", self.args.max_fails)

    def _take(self, action: ProcessActionBase) -> None:
        if isinstance(action, ShutdownAction):
            if self._supervisor.shut_down() is Force.SOFT:
                left = self._supervisor.soft_signals_left + 1
                meaning = (
                    f"they finish their running tasks. {left} more "
                    f"{'signal stops' if left == 1 else 'signals stop'} them at once."
                )
            else:
                meaning = "they are stopped at once, and give up their running tasks."
            logger.info("Workers are scheduled for shutdown: %s", meaning)
        elif isinstance(action, ReloadAllAction):
            action.handle(len(self.workers), self.action_queue)
        elif isinstance(action, ReloadOneAction):
            if not self._supervisor.reload(action.worker_num):
                _warn_of_unknown_worker(action.worker_num)
        else:
            logger.warning("Unknown action: %r.", action)

    def _carry_out(self, orders: Iterable[Order]) -> None:
        for order in orders:
            if isinstance(order, Start):
                self._start(order.worker)
            else:
                self._end(order)

    def _start(self, worker: int) -> None:
        try:
            reports = Reports()
            shared = self._share()
            process = _start_process(
                worker, self.args, self.worker_function, reports.writer, shared
            )
            reports.writer.close()
        except OSError:
            logger.exception("Cannot start a process.")
            delay = self._supervisor.failed_to_start(worker, time.monotonic())
            self._log_restart(_name(worker), delay)
            return
        pid = process.pid
        if pid is None:  # for type checkers: a started process has one
            raise RuntimeError(f"{process.name} has no pid.")
        self._processes[pid] = process
        self._reports[pid] = reports
        if shared is not None:
            self._running[pid] = shared.running
        self._supervisor.started(worker, pid, time.monotonic())
        self.workers[worker : worker + 1] = [process]

    def _share(self) -> Shared | None:
        """Give what a new process shares with this one.

        :returns: `None` where there is no memory for it: then nobody knows what a
            process was running when it died.
        """
        try:
            self._deaths = self._deaths or Deaths()
            return Shared(RunningCalls(), self._deaths)
        except OSError as exc:
            logger.warning("What runs in a process that dies is not known: %r", exc)
            return None

    def _end(self, order: End) -> None:
        process = self._processes[order.pid]
        try:
            _send(process, order.force, is_ending=self._supervisor.is_ending)
        except ProcessLookupError:
            logger.info("%s with pid %d has ended already.", process.name, order.pid)
        else:
            level = _level(
                is_wanted=order.force is Force.SOFT,
                is_ending=self._supervisor.is_ending,
            )
            logger.log(
                level,
                "Told %s with pid %d to end: %s.",
                process.name,
                order.pid,
                _MEANING[order.force],
            )


def _level(*, is_wanted: bool, is_ending: bool) -> int:
    """Say how loud the end of one process is told.

    Where all of them end as they were asked to, one line for all has said so.
    """
    if not is_wanted:
        return logging.WARNING
    return logging.DEBUG if is_ending else logging.INFO


_MEANING: Final = {
    Force.SOFT: "it finishes its running tasks",
    Force.HARD: "it gives up its running tasks",
    Force.KILL: "it is killed",
}


def _send(process: Process, force: Force, *, is_ending: bool) -> None:
    """Tell a process to end.

    :raises ProcessLookupError: it is gone.
    """
    if process.pid is None:
        return
    if sys.platform == "win32":
        process.kill()  # there is nothing softer to send
    elif force is Force.SOFT:
        os.kill(process.pid, signal.SIGINT if is_ending else signal.SIGTERM)
    elif force is Force.HARD:
        os.kill(process.pid, signal.SIGQUIT)
    else:
        process.kill()


def _start_process(
    worker: int,
    args: WorkerArgs,
    worker_function: Callable[[WorkerArgs], None],
    to_main: Connection | None = None,
    shared: Shared | None = None,
) -> Process:
    # Not a daemon: those may have no processes of their own, such as a pool.
    process = Process(
        target=_run,
        name=_name(worker),
        args=(worker_function, args, to_main, shared),
        daemon=False,
    )
    with held_back():
        process.start()
    logger.info("Started process %s with pid %s.", process.name, process.pid)
    return process


def _name(worker: int) -> str:
    return f"worker-{worker}"


def _run(
    worker_function: Callable[..., None],
    args: WorkerArgs,
    to_main: Connection | None = None,
    shared: Shared | None = None,
) -> None:
    """Run a worker in its process; an interruption is no error worth a traceback."""
    if to_main is not None:
        report_to(to_main)
    if shared is not None:
        share(shared)
    signal.set_wakeup_fd(-1)  # a forked process would wake its parent
    try:
        let_through()
        worker_function(args=args)
    except KeyboardInterrupt:
        return
    except StartError as exc:
        # The main process says why: once, for all its processes.
        report(NotStarted(str(exc), exc.status))
        sys.exit(exc.status)


def _reason(exitcode: int) -> str:
    if exitcode >= 0:
        return f"exit code {exitcode}"
    try:
        return f"killed by {signal.Signals(-exitcode).name}"
    except ValueError:
        return f"killed by signal {-exitcode}"


def _warn_of_unknown_worker(worker: int) -> None:
    logger.warning("Cannot reload: there is no worker %d.", worker)
