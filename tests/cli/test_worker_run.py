"""What a worker process does, run inside the process of the tests."""

from __future__ import annotations

import asyncio
import builtins
import logging
import multiprocessing
import os
import selectors
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any, ClassVar

import pytest

from taskiq import AckableMessage, TaskiqEvents
from taskiq.acks import AcknowledgeType
from taskiq.cli.common_args import LogLevel
from taskiq.cli.finding import StartError
from taskiq.cli.worker import garbage, run
from taskiq.cli.worker.args import WorkerArgs
from taskiq.cli.worker.executors import DONE, STOPPING, WORKING, Pool, must_end
from taskiq.cli.worker.run import (
    get_receiver_type,
    run_worker,
    shutdown_broker,
    start_listen,
)
from taskiq.cli.worker.signals import (
    SOFT,
    ParentWatch,
    close_without_handlers,
    handle_signals,
)
from taskiq.receiver import Receiver
from tests.support.brokers import QueueBroker

#: Seconds after which a wait is a hang.
HANG = 30


class EndingBroker(QueueBroker):
    """Has no more messages than those that were put, and writes down what happens."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[str] = []
        self.startup_error: Exception | None = None
        self.end()

    async def startup(self) -> None:
        self.log.append("startup")
        if self.startup_error is not None:
            raise self.startup_error

    async def shutdown(self) -> None:
        self.log.append("shutdown")


broker = EndingBroker()
brokers_made: list[EndingBroker] = []


def make_broker() -> EndingBroker:
    brokers_made.append(EndingBroker())
    return brokers_made[-1]


class RecordingReceiver(Receiver):
    options: ClassVar[dict[str, Any]] = {}

    def __init__(self, extra: str = "", **options: Any) -> None:
        RecordingReceiver.options = {"extra": extra, **options}
        super().__init__(**options)


@pytest.fixture(autouse=True)
def process_settings() -> Iterator[None]:
    """Leave signal handlers, event loop and log levels as they were."""
    signums = [*SOFT, *([signal.SIGQUIT] if sys.platform != "win32" else [])]
    handlers = {signum: signal.getsignal(signum) for signum in signums}
    names = ("taskiq", "watchdog.observers.inotify_buffer")
    levels = {name: logging.getLogger(name).level for name in names}
    method = multiprocessing.get_start_method(allow_none=True)
    yield
    multiprocessing.set_start_method(method, force=True)
    for signum, handler in handlers.items():
        signal.signal(signum, handler)
    asyncio.set_event_loop(None)
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def args_for(app: Any = None, **settings: Any) -> WorkerArgs:
    return WorkerArgs(
        broker=EndingBroker() if app is None else app,  # type: ignore[arg-type]  # an object works too
        modules=[],
        configure_logging=False,
        **settings,
    )


# -- A worker process from start to end -------------------------------------------


def test_a_worker_starts_its_broker_and_shuts_it_down_after_the_last_task() -> None:
    app = EndingBroker()
    app.queue.get_nowait()

    @app.task("note")
    async def note() -> None:
        app.log.append("task")

    async def send_and_end() -> None:
        await note.kiq()
        app.end()

    asyncio.run(send_and_end())
    start_listen(args_for(app))
    assert app.log == ["startup", "task", "shutdown"]
    assert app.is_worker_process
    assert len(app.acked) == 1


def test_the_broker_may_be_named_or_made_by_a_function() -> None:
    start_listen(args_for(f"{__name__}:broker"))
    assert broker.log == ["startup", "shutdown"]
    start_listen(args_for(f"{__name__}:make_broker"))
    assert brokers_made[0].log == ["startup", "shutdown"]


def test_every_option_of_the_receiver_is_passed_by_keyword() -> None:
    app = EndingBroker()
    start_listen(
        args_for(
            app,
            receiver=f"{__name__}:RecordingReceiver",
            receiver_arg=[("extra", "first"), ("extra", "last")],
            no_parse=True,
            max_async_tasks=3,
            max_async_tasks_jitter=4,
            max_prefetch=5,
            no_propagate_errors=True,
            ack_type=AcknowledgeType.MANUAL,
            max_tasks_per_child=6,
            wait_tasks_timeout=7.5,
            max_threadpool_threads=8,
        ),
    )
    executor = RecordingReceiver.options.pop("executor")
    assert isinstance(executor, ThreadPoolExecutor)
    assert executor._max_workers == 8
    assert RecordingReceiver.options == {
        "extra": "last",
        "broker": app,
        "validate_params": False,
        "max_async_tasks": 3,
        "max_async_tasks_jitter": 4,
        "max_prefetch": 5,
        "propagate_exceptions": False,
        "ack_type": AcknowledgeType.MANUAL,
        "max_tasks_to_execute": 6,
        "wait_tasks_timeout": 7.5,
    }


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"app": "no_such_module:broker"}, "there is no module 'no_such_module'"),
        ({"app": f"{__name__}:HANG"}, "is neither of type AsyncBroker nor a function"),
        ({"receiver": "decimal:Decimal"}, "is no subclass of taskiq.receiver.Receiver"),
    ],
)
def test_what_is_named_wrongly_is_no_reason_to_try_again(
    settings: dict[str, Any],
    reason: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(StartError, match=reason) as caught:
        start_listen(args_for(**settings))
    assert caught.value.status == 2
    assert not [r for r in caplog.records if r.levelname == "ERROR"]


def make_broker_and_be_stopped() -> QueueBroker:
    os.kill(os.getpid(), signal.SIGTERM)
    raise AssertionError("the signal ends it")


@pytest.mark.skipif(sys.platform == "win32", reason="the signal ends the process there")
def test_a_signal_while_the_application_is_imported_leaves_no_loop_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = asyncio.new_event_loop()
    monkeypatch.setattr(run, "_new_event_loop", lambda: loop)
    with pytest.raises(SystemExit):
        start_listen(args_for(f"{__name__}:make_broker_and_be_stopped"))
    assert loop.is_closed()


def test_a_worker_that_cannot_start_says_why_and_ends_with_status_1(
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = asyncio.new_event_loop()
    monkeypatch.setattr(run, "_new_event_loop", lambda: loop)
    with pytest.raises(SystemExit) as caught:
        start_listen(args_for(max_threadpool_threads=0))
    assert loop.is_closed()
    assert caught.value.code == 1
    [record] = [r for r in caplog.records if r.levelname == "ERROR"]
    assert record.name == "taskiq.worker"
    assert record.getMessage() == "This worker cannot start."
    assert "max_workers must be greater than 0" in caplog.text


def test_an_argument_of_the_receiver_that_is_given_already_is_an_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = EndingBroker()
    with pytest.raises(SystemExit) as caught:
        start_listen(args_for(app, receiver_arg=[("max_prefetch", "5")]))
    assert caught.value.code == 1
    assert "multiple values for keyword argument 'max_prefetch'" in caplog.text
    assert app.log == ["shutdown"]


def test_a_broker_that_cannot_start_is_shut_down_if_the_worker_is_to_fail_fast() -> (
    None
):
    app = EndingBroker()
    app.startup_error = ConnectionError("nobody there")
    with pytest.raises(StartError) as caught:
        start_listen(args_for(app, fail_fast=True))
    assert str(caught.value) == (
        "Cannot start the broker: ConnectionError: nobody there"
    )
    assert caught.value.status == 1
    assert app.log == ["startup", "shutdown"]


def test_a_broker_that_cannot_start_is_tried_again_in_the_process() -> None:
    class LateBroker(EndingBroker):
        async def startup(self) -> None:
            await super().startup()
            if self.log.count("startup") < 3:
                raise ConnectionError("nobody there")

    app = LateBroker()
    start_listen(args_for(app))
    again = ["shutdown", "startup"]
    assert app.log == ["startup", *again, *again, "shutdown"]


def test_a_startup_handler_that_fails_is_left_to_the_main_process() -> None:
    class QuietBroker(QueueBroker):
        is_shut_down = False

        async def shutdown(self) -> None:
            self.is_shut_down = True

    app = QuietBroker()

    @app.on_event(TaskiqEvents.WORKER_STARTUP)
    def fail(_: object) -> None:
        raise LookupError("no settings")

    with pytest.raises(SystemExit) as caught:
        start_listen(args_for(app))
    assert caught.value.code == 1
    assert app.is_shut_down


def test_a_listener_that_fails_is_started_again_and_its_broker_reconnected() -> None:
    class FailingBroker(EndingBroker):
        async def listen(self) -> AsyncGenerator[bytes | AckableMessage, None]:
            self.log.append("listen")
            if self.log.count("listen") == 1:
                raise ConnectionError("hung up")
            async for message in super().listen():
                yield message

    app = FailingBroker()
    start_listen(args_for(app))
    reconnected = ["shutdown", "startup"]
    assert app.log == ["startup", "listen", *reconnected, "listen", "shutdown"]


def test_what_the_application_leaves_running_is_cancelled() -> None:
    class BusyBroker(EndingBroker):
        async def startup(self) -> None:
            self.background = asyncio.create_task(asyncio.Event().wait())

    app = BusyBroker()
    start_listen(args_for(app))
    assert app.background.cancelled()


# -- Loops, signals, processes ----------------------------------------------------


class SignallingSelector(selectors.DefaultSelector):
    """Sends the process a signal once the event loop has nothing to do but wait."""

    is_sent = False
    is_woken = False

    def select(
        self,
        timeout: float | None = None,
    ) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout and not self.is_sent:
            self.is_sent = True
            signal.raise_signal(signal.SIGTERM)
            ready = super().select(timeout)
            self.is_woken = bool(ready)
            return ready
        return super().select(timeout)


@pytest.mark.skipif(sys.platform == "win32", reason="its loops are woken otherwise")
def test_a_signal_wakes_a_loop_that_waits_for_nothing_else() -> None:
    selector = SignallingSelector()
    loop = asyncio.SelectorEventLoop(selector)
    finish = asyncio.Event()

    async def wait() -> None:
        handle_signals(loop, soft=finish.set, hard=finish.set, at_once=lambda: None)
        hang_guard = loop.call_later(5, finish.set)
        await finish.wait()
        hang_guard.cancel()

    loop.run_until_complete(wait())
    close_without_handlers(loop)
    assert selector.is_woken


@pytest.mark.skipif(sys.platform == "win32", reason="sends signals to itself")
def test_a_signal_is_ignored_once_the_loop_is_closed() -> None:
    loop = asyncio.new_event_loop()
    handle_signals(loop, soft=loop.stop, hard=loop.stop, at_once=lambda: None)
    close_without_handlers(loop)
    for signum in SOFT:
        signal.raise_signal(signum)
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & set(SOFT)


def test_without_uvloop_the_loop_of_the_standard_library_is_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)
    loop = run._new_event_loop()
    assert isinstance(loop, asyncio.BaseEventLoop)
    loop.close()


def test_the_main_process_has_no_parent_to_watch() -> None:
    assert not ParentWatch().is_gone()


class _Parent:
    """A main process as its children see it."""

    def __init__(self, pid: int, is_alive: bool) -> None:
        self.pid = pid
        self._is_alive = is_alive

    def is_alive(self) -> bool:
        return self._is_alive


@pytest.mark.parametrize(
    ("is_direct", "is_alive", "is_adopted", "is_gone"),
    [
        (True, True, False, False),
        (True, True, True, True),  # a forked sibling holds its sign of life
        (True, False, True, True),
        (False, True, False, False),  # a fork server stands between the two
        (False, False, False, True),
    ],
)
def test_a_parent_is_gone_when_its_sign_of_life_is_or_another_took_its_place(
    monkeypatch: pytest.MonkeyPatch,
    is_direct: bool,
    is_alive: bool,
    is_adopted: bool,
    is_gone: bool,
) -> None:
    pid = os.getppid() if is_direct else -1
    parent = _Parent(pid, is_alive)
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: parent)
    watch = ParentWatch()
    if is_adopted:
        monkeypatch.setattr(os, "getppid", lambda: pid + 1)
    assert watch.is_gone() is is_gone


def test_the_pool_is_one_of_threads_or_of_processes() -> None:
    threads = Pool(args_for(max_threadpool_threads=3)).executor
    assert isinstance(threads, ThreadPoolExecutor)
    assert threads._max_workers == 3
    settings = {"use_process_pool": True, "max_process_pool_processes": 2}
    processes = Pool(args_for(**settings)).executor
    assert isinstance(processes, ProcessPoolExecutor)
    assert processes._max_workers == 2  # type: ignore[attr-defined]  # not in typeshed


async def test_a_pool_whose_thread_is_busy_is_not_waited_for_beyond_the_limit() -> None:
    release = threading.Event()
    pool = Pool(args_for(max_threadpool_threads=1))
    pool.executor.submit(release.wait)
    assert not await pool.join(limit=0)
    release.set()
    assert await pool.join(limit=None)
    for thread in threading.enumerate():
        if thread.name == "executor-shutdown":
            await asyncio.to_thread(thread.join)


@pytest.mark.parametrize("phase", [WORKING, STOPPING, DONE])
def test_a_pool_process_ends_without_its_worker(phase: int) -> None:
    assert must_end(phase, was_terminated=False, is_orphan=True)
    assert not must_end(phase, was_terminated=False, is_orphan=False)


@pytest.mark.parametrize(
    ("phase", "ends"),
    [(WORKING, True), (STOPPING, False), (DONE, True)],
)
def test_a_pool_process_outlives_sigterm_while_its_worker_is_stopping(
    phase: int,
    ends: bool,
) -> None:
    assert must_end(phase, was_terminated=True, is_orphan=False) is ends


# -- The receiver, the end of the broker ------------------------------------------


def test_the_receiver_is_a_subclass_of_receiver() -> None:
    assert get_receiver_type(args_for()) is Receiver
    args = args_for(receiver=f"{__name__}:RecordingReceiver")
    assert get_receiver_type(args) is RecordingReceiver
    for other in ("decimal:Decimal", "json:dumps"):
        with pytest.raises(ValueError, match=other):
            get_receiver_type(args_for(receiver=other))


class Stubborn(QueueBroker):
    """Shuts down as the test wants it to."""

    returns: object = None
    error: BaseException | None = None
    hangs = False

    async def shutdown(self) -> Any:
        if self.error is not None:
            raise self.error
        if self.hangs:
            try:
                await asyncio.Event().wait()
            finally:
                # Does not let itself be cancelled the first time.
                await asyncio.Event().wait()
        return self.returns


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, []),
        ({"returns": 5}, ["INFO"]),
        ({"error": OSError("broken")}, ["WARNING"]),
        ({"error": asyncio.CancelledError()}, ["WARNING"]),
        ({"hangs": True}, ["WARNING"]),
    ],
)
async def test_whatever_the_broker_does_at_its_shutdown_is_logged_not_raised(
    settings: dict[str, Any],
    expected: list[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = Stubborn()
    for name, value in settings.items():
        setattr(app, name, value)
    with caplog.at_level(logging.INFO, "taskiq.worker"):
        await shutdown_broker(app, timeout=0.01)
    records = [r for r in caplog.records if r.name == "taskiq.worker"]
    assert [record.levelname for record in records] == expected
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        await asyncio.wait({task}, timeout=0)
        task.cancel()


# -- The main process -------------------------------------------------------------


class _Manager:
    """Takes the place of the process manager."""

    made: ClassVar[list[dict[str, Any]]] = []

    def __init__(self, **given: Any) -> None:
        self.made.append(given)

    def start(self) -> int:
        return 5


@pytest.fixture
def managers(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    monkeypatch.setattr(run, "ProcessManager", _Manager)
    _Manager.made = []
    return _Manager.made


def test_the_status_of_the_manager_is_returned(managers: list[dict[str, Any]]) -> None:
    args = args_for("not:imported", log_level=LogLevel.ERROR)
    assert run_worker(args) == 5
    assert managers == [
        {"args": args, "observer": None, "worker_function": start_listen},
    ]
    assert logging.getLogger("taskiq").level == logging.ERROR


@pytest.mark.parametrize(
    ("default", "chosen", "used"),
    [
        ("fork", None, None),
        ("forkserver", None, "spawn"),
        ("forkserver", "forkserver", "forkserver"),
    ],
)
@pytest.mark.usefixtures("managers")
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork server")
def test_no_fork_server_is_used_unless_somebody_has_chosen_it(
    monkeypatch: pytest.MonkeyPatch,
    default: str,
    chosen: str | None,
    used: str | None,
) -> None:
    methods = [default, "spawn"]
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: methods)
    multiprocessing.set_start_method(chosen, force=True)
    run_worker(args_for("not:imported"))
    assert multiprocessing.get_start_method(allow_none=True) == used


def test_what_children_run_is_looked_up_when_they_are_started(
    managers: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def instrumented(args: WorkerArgs) -> None:
        """What an instrumentation puts in its place."""

    monkeypatch.setattr(run, "start_listen", instrumented)
    run_worker(args_for("not:imported"))
    assert managers[0]["worker_function"] is instrumented


def test_reload_runs_one_worker_and_says_so(
    managers: list[dict[str, Any]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    args = args_for("not:imported", reload=True, workers=4)
    run_worker(args)
    observer = managers[0]["observer"]
    observer.join(HANG)
    assert not observer.is_alive(), "it is stopped with the manager"
    assert args.workers == 1
    warnings = [record for record in caplog.records if record.levelname == "WARNING"]
    assert [record.name for record in warnings] == ["root"]


@pytest.mark.parametrize("package", ["watchdog", "gitignore_parser"])
def test_reload_without_its_packages_says_what_to_install(
    managers: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    package: str,
) -> None:
    real_import = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == package:
            raise ImportError(f"No module named {name!r}")
        return real_import(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "taskiq.cli.watcher", raising=False)
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ValueError, match=r"pip install 'taskiq\[reload\]'"):
        run_worker(args_for("not:imported", reload=True))
    assert not managers


def test_logging_is_configured_unless_the_application_does(
    managers: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    configured: list[dict[str, Any]] = []
    monkeypatch.setattr(
        logging, "basicConfig", lambda **given: configured.append(given)
    )
    run_worker(WorkerArgs("not:imported", [], configure_logging=False))
    assert configured == []
    run_worker(WorkerArgs("not:imported", [], log_format="%(message)s"))
    assert configured == [{"level": LogLevel.INFO, "format": "%(message)s"}]


@pytest.mark.parametrize(
    ("own", "youngest"),
    [
        ("", garbage.YOUNG),
        ("gc.set_threshold(50_000, 5, 5)", 50_000),
        ("gc.set_threshold(100)", 100),
        ("gc.set_threshold(0)", 0),
    ],
)
def test_a_worker_looks_for_garbage_less_often_unless_told_how_often(
    own: str, youngest: int
) -> None:
    script = f"""
import gc
from taskiq.cli.worker import garbage
{own}
garbage.spare_collections()
print(gc.get_threshold()[0], gc.isenabled(), gc.get_freeze_count() > 1000)
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603 - as built above
    assert done.stdout.split() == [str(youngest), "True", "True"]
