"""The main process: carrying out what is decided, with processes that are played."""

from __future__ import annotations

import itertools
import logging
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any, ClassVar

import pytest

from taskiq.cli.worker import process_manager
from taskiq.cli.worker.args import WorkerArgs
from taskiq.cli.worker.process_manager import (
    ActionQueue,
    ProcessActionBase,
    ProcessManager,
    ReloadAllAction,
    ReloadOneAction,
    ShutdownAction,
    get_signal_handler,
    schedule_workers_reload,
)
from taskiq.cli.worker.supervisor import Force

SIGINT, SIGTERM = signal.SIGINT, signal.SIGTERM
needs_signals = pytest.mark.skipif(
    sys.platform == "win32",
    reason="Windows has no signals to send to other processes",
)


def work(args: WorkerArgs) -> None:
    """Is not called: the processes are played."""


class PlayedProcess:
    """Looks like a process to the manager; it ends as the test wants it to.

    :cvar on_start: called with each process that is started.
    """

    pids = itertools.count(1000)
    all: ClassVar[dict[int, PlayedProcess]] = {}
    on_start: ClassVar[Callable[[PlayedProcess], None] | None] = None

    def __init__(self, target: Any, name: str, args: Any, daemon: bool) -> None:
        self.name = name
        self.function, self.args, self.to_main, self.shared = args
        self.daemon = daemon
        self.pid: int | None = None
        self.exitcode: int | None = None
        self._alive, self._socket = socket.socketpair()
        self.sentinel = self._socket.fileno()
        self.signals: list[int] = []

    def start(self) -> None:
        self.pid = next(self.pids)
        self.all[self.pid] = self
        if PlayedProcess.on_start is not None:
            PlayedProcess.on_start(self)

    def end(self, exitcode: int) -> None:
        self.exitcode = exitcode
        self._alive.close()

    def is_alive(self) -> bool:
        return self.exitcode is None

    def get(self, signum: int) -> None:
        if self.exitcode is not None:
            raise ProcessLookupError
        self.signals.append(signum)
        self.end(0)

    def terminate(self) -> None:
        self.get(SIGTERM)

    def kill(self) -> None:
        self.get(9)

    def join(self, timeout: float | None = None) -> None:
        assert timeout is not None, "a join without limit can hang"
        assert self.exitcode is not None

    def forget(self) -> None:
        self._alive.close()
        self._socket.close()


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Leave the signal handlers as they were."""
    names = [name for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {name: signal.getsignal(getattr(signal, name)) for name in names}
    yield
    for name, handler in before.items():
        signal.signal(getattr(signal, name), handler)


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[int, PlayedProcess]]:
    monkeypatch.setattr(process_manager, "Process", PlayedProcess)
    monkeypatch.setattr(os, "kill", lambda pid, sig: PlayedProcess.all[pid].get(sig))
    PlayedProcess.all.clear()
    yield PlayedProcess.all
    PlayedProcess.on_start = None
    for process in PlayedProcess.all.values():
        process.forget()


@pytest.fixture
def queue() -> Iterator[ActionQueue]:
    actions = ActionQueue()
    yield actions
    actions.close()


def manager_of(workers: int = 2, **settings: Any) -> ProcessManager:
    args = WorkerArgs("a:b", [], workers=workers, **settings)
    return ProcessManager(args, work)


# -- Actions ----------------------------------------------------------------------


def test_actions_are_taken_in_the_order_they_were_put(queue: ActionQueue) -> None:
    actions: list[ProcessActionBase] = [ReloadAllAction(), ShutdownAction()]
    for action in actions:
        queue.put(action)
    assert queue.take_all() == actions
    assert queue.take_all() == []


def test_an_action_wakes_who_waits_for_it(queue: ActionQueue) -> None:
    ready = multiprocessing.connection.wait
    assert not ready([queue.wakeup], 0)
    queue.put(ShutdownAction())
    assert ready([queue.wakeup], 0)
    queue.take_all()
    assert not ready([queue.wakeup], 0)


def test_no_number_of_actions_blocks_who_puts_them(queue: ActionQueue) -> None:
    for _ in range(100_000):
        queue.put(ReloadAllAction())
    assert len(queue.take_all()) == 100_000


def test_an_action_that_comes_too_late_is_no_error(queue: ActionQueue) -> None:
    queue.close()
    queue.put(ShutdownAction())


@needs_signals
def test_a_signal_wakes_who_waits_even_before_its_handler_has_run(
    queue: ActionQueue,
) -> None:
    signal.signal(signal.SIGTERM, lambda *_: None)
    with queue.woken_by_signals():
        signal.raise_signal(signal.SIGTERM)
        assert multiprocessing.connection.wait([queue.wakeup], 0)
    queue.take_all()
    signal.raise_signal(signal.SIGTERM)
    assert not multiprocessing.connection.wait([queue.wakeup], 0)


@needs_signals
def test_a_signal_may_interrupt_anything_the_queue_does(queue: ActionQueue) -> None:
    handler = get_signal_handler(queue, ShutdownAction())
    signals = 0

    def count(signum: int, frame: Any) -> None:
        nonlocal signals
        signals += 1
        handler(signum, frame)

    before = signal.signal(signal.SIGALRM, count)
    signal.setitimer(signal.ITIMER_REAL, 1e-3, 1e-3)
    taken: list[ProcessActionBase] = []
    puts = 0
    try:
        while signals < 100:
            queue.put(ReloadAllAction())
            puts += 1
            taken += queue.take_all()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    taken += queue.take_all()
    assert taken.count(ReloadAllAction()) == puts
    assert taken.count(ShutdownAction()) == signals


def test_a_reload_of_all_is_one_of_each() -> None:
    actions: SimpleQueue[ProcessActionBase] = SimpleQueue()
    ReloadAllAction().handle(2, actions)
    assert [actions.get(), actions.get()] == [
        ReloadOneAction(0, is_reload_all=True),
        ReloadOneAction(1, is_reload_all=True),
    ]
    assert actions.empty()


def test_a_reload_can_be_scheduled() -> None:
    actions: SimpleQueue[ProcessActionBase] = SimpleQueue()
    schedule_workers_reload(actions)
    assert actions.get() == ReloadAllAction()


def test_a_reload_replaces_a_process_by_one_like_it(
    played: dict[int, PlayedProcess],
) -> None:
    manager = manager_of()
    manager.prepare_workers()
    first, second = manager.workers
    ReloadOneAction(1, is_reload_all=False).handle(manager.workers, manager.args, work)
    assert played[second.pid or 0].signals == [SIGTERM]
    assert manager.workers[0] is first
    assert manager.workers[1] is not second
    assert manager.workers[1].name == "worker-1"
    manager.action_queue.close()


def test_a_reload_of_an_unknown_worker_is_a_warning(
    played: dict[int, PlayedProcess],
    caplog: pytest.LogCaptureFixture,
) -> None:
    ReloadOneAction(0, is_reload_all=False).handle([], WorkerArgs("a:b", []), work)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert not played


# -- Signals ----------------------------------------------------------------------


def test_a_handler_asks_the_manager_and_nothing_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    actions: SimpleQueue[ProcessActionBase] = SimpleQueue()
    action = ReloadAllAction()
    get_signal_handler(actions, action)(SIGINT, None)
    assert actions.get() is action
    assert not caplog.records


def test_a_worker_that_inherited_the_handler_is_interrupted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    actions: SimpleQueue[ProcessActionBase] = SimpleQueue()
    handler = get_signal_handler(actions, ShutdownAction())
    monkeypatch.setattr(multiprocessing.current_process(), "name", "worker-3")
    with pytest.raises(KeyboardInterrupt):
        handler(SIGTERM, None)
    assert actions.empty()


@needs_signals
def test_the_signals_of_the_main_process_become_actions() -> None:
    manager = manager_of()
    for signum in (SIGINT, SIGTERM, signal.SIGHUP):
        signal.raise_signal(signum)
    assert manager.action_queue.take_all() == [
        ShutdownAction(),
        ShutdownAction(),
        ReloadAllAction(),
    ]
    manager.action_queue.close()


def test_an_interrupted_worker_function_is_no_traceback() -> None:
    def interrupted(args: WorkerArgs) -> None:
        raise KeyboardInterrupt

    before = signal.set_wakeup_fd(-1)
    process_manager._run(interrupted, WorkerArgs("a:b", []))
    signal.set_wakeup_fd(before)


# -- The main loop ----------------------------------------------------------------


def test_every_worker_gets_a_process_that_may_have_children(
    played: dict[int, PlayedProcess],
) -> None:
    manager = manager_of(workers=3)
    manager.prepare_workers()
    assert [process.name for process in manager.workers] == [
        "worker-0",
        "worker-1",
        "worker-2",
    ]
    for process in played.values():
        assert not process.daemon
        assert process.function is work
        assert process.args is manager.args
    manager.action_queue.close()


@needs_signals
def test_a_shutdown_interrupts_all_children_and_waits_for_their_end(
    played: dict[int, PlayedProcess],
) -> None:
    manager = manager_of()
    manager.action_queue.put(ShutdownAction())
    assert manager.start() is None
    assert [process.signals for process in played.values()] == [[SIGINT], [SIGINT]]


def test_a_main_process_that_cannot_go_on_ends_its_children(
    played: dict[int, PlayedProcess],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    manager = manager_of(workers=2)

    def fail() -> None:
        raise MemoryError

    monkeypatch.setattr(manager, "_wait", fail)
    with pytest.raises(MemoryError):
        manager.start()
    assert [process.signals for process in played.values()] == [[SIGTERM], [SIGTERM]]


def test_a_main_process_that_fails_at_the_start_ends_whom_it_has_started(
    played: dict[int, PlayedProcess],
) -> None:
    manager = manager_of(workers=2)

    def fail_at_the_second(process: PlayedProcess) -> None:
        if process.name == "worker-1":
            process.end(0)
            raise MemoryError

    PlayedProcess.on_start = fail_at_the_second
    with pytest.raises(MemoryError):
        manager.start()
    first, _ = played.values()
    assert first.signals == [SIGTERM]


@needs_signals
def test_a_reload_of_all_terminates_one_child_after_the_other(
    played: dict[int, PlayedProcess],
) -> None:
    manager = manager_of()
    manager.action_queue.put(ReloadAllAction())

    def stop_in_the_end(process: PlayedProcess) -> None:
        if len(played) == 4:
            manager.action_queue.put(ShutdownAction())

    PlayedProcess.on_start = stop_in_the_end
    assert manager.start() is None
    first, second, third, fourth = played.values()
    assert first.signals == second.signals == [SIGTERM]
    assert third.signals == fourth.signals == [SIGINT]
    assert [third.name, fourth.name] == ["worker-0", "worker-1"]
    assert [worker.pid for worker in manager.workers] == [third.pid, fourth.pid]


@needs_signals
def test_failing_children_are_replaced_until_there_are_too_many(
    played: dict[int, PlayedProcess],
    caplog: pytest.LogCaptureFixture,
) -> None:
    manager = manager_of(max_fails=1)

    def fail(process: PlayedProcess) -> None:
        if process.name == "worker-1":
            process.end(-11 if len(played) == 2 else 3)

    PlayedProcess.on_start = fail
    with caplog.at_level(logging.INFO):
        assert manager.start() == -1
    first, second, third = played.values()
    assert first.signals == [SIGINT], "the remaining children are stopped"
    assert f"worker-1 with pid {second.pid} ended: killed by SIGSEGV." in caplog.text
    assert f"worker-1 with pid {third.pid} ended: exit code 3." in caplog.text
    assert caplog.text.count("More than 1 failures: stopping.") == 1


@needs_signals
def test_what_a_dead_child_was_running_is_told_and_remembered(
    played: dict[int, PlayedProcess],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Who was told to end has died of nothing that it ran."""
    manager = manager_of(max_fails=1)

    def fail(process: PlayedProcess) -> None:
        process.shared.running.begin(process.name, [str(n) for n in range(12)])
        if process.name == "worker-1":
            process.end(3)

    PlayedProcess.on_start = fail
    assert manager.start() == -1
    first, second, third = played.values()
    named = ", ".join(map(str, range(10)))
    for each in (first, second, third):
        name = each.name
        line = f"{name} was running 12 messages of task {name}: ID {named} and 2 more."
        assert line in caplog.messages
    ids = frozenset(map(str, range(12)))
    assert [each.ids for each in third.shared.deaths.recent()] == [ids, ids]


def test_without_memory_to_share_a_process_is_started_all_the_same(
    played: dict[int, PlayedProcess],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse() -> None:
        raise FileNotFoundError("No usable temporary directory")

    monkeypatch.setattr(process_manager, "RunningCalls", refuse)
    manager = manager_of(workers=1, max_fails=1)
    PlayedProcess.on_start = lambda process: process.end(3)
    assert manager.start() == -1
    assert [each.shared for each in played.values()] == [None, None]
    assert "is not known: FileNotFoundError" in caplog.text


@needs_signals
def test_a_process_that_cannot_be_started_is_tried_again(
    played: dict[int, PlayedProcess],
    caplog: pytest.LogCaptureFixture,
) -> None:
    manager = manager_of(workers=1)

    def refuse_first(process: PlayedProcess) -> None:
        if len(played) == 1:
            process.end(0)
            raise BlockingIOError("too many processes")
        manager.action_queue.put(ShutdownAction())

    PlayedProcess.on_start = refuse_first
    assert manager.start() is None
    assert len(played) == 2
    assert "Cannot start a process." in caplog.text


def test_an_unknown_worker_or_action_is_a_warning(
    played: dict[int, PlayedProcess],
    caplog: pytest.LogCaptureFixture,
) -> None:
    class OtherAction(ProcessActionBase):
        pass

    manager = manager_of(workers=0)
    manager.action_queue.put(ReloadOneAction(5, is_reload_all=False))
    manager.action_queue.put(OtherAction())
    manager.action_queue.put(ShutdownAction())
    assert manager.start() is None
    warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert len(warnings) == 2
    assert "there is no worker 5" in warnings[0]
    assert "OtherAction" in warnings[1]


@needs_signals
def test_a_child_that_is_gone_already_is_not_an_error(
    played: dict[int, PlayedProcess],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def gone(pid: int, signum: int) -> None:
        played[pid].end(0)
        raise ProcessLookupError

    monkeypatch.setattr(os, "kill", gone)
    manager = manager_of(workers=1)
    manager.action_queue.put(ShutdownAction())
    with caplog.at_level(logging.INFO):
        assert manager.start() is None
    assert "has ended already" in caplog.text


@needs_signals
def test_a_hard_kill_is_another_signal_and_the_last_one_cannot_be_ignored(
    played: dict[int, PlayedProcess],
) -> None:
    manager = manager_of(workers=1)
    manager.prepare_workers()
    [process] = manager.workers
    [child] = played.values()
    for force in (Force.HARD, Force.KILL):
        child.exitcode = None
        process_manager._send(process, force, is_ending=True)
    assert child.signals == [signal.SIGQUIT, 9]
    manager.action_queue.close()


#: A process is told to end in the moment it is forked, before it knows what it is.
_TOLD_AT_ONCE = """
import multiprocessing, os, signal, time
from taskiq.cli.worker import process_manager
from taskiq.cli.worker.args import WorkerArgs

def work(args):
    time.sleep(60)

if __name__ == "__main__":
    multiprocessing.set_start_method("fork")
    os.register_at_fork(after_in_child=lambda: os.kill(os.getpid(), signal.SIGTERM))
    manager = process_manager.ProcessManager(WorkerArgs("app:broker", []), work)
    manager.prepare_workers()
    for process in manager.workers:
        process.join(10)
        print(process.exitcode)
    print(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
"""


@needs_signals
def test_a_process_that_is_told_to_end_while_it_is_forked_does() -> None:
    """A service manager signals all of them, and its main process each once."""
    command = [sys.executable, "-c", _TOLD_AT_ONCE]
    done = subprocess.run(  # noqa: S603 - as built above
        command, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == ["0", "0", "set()"], done.stderr
