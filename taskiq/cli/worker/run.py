"""Running workers: the main process, and what each worker process does."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import sys
from contextlib import AsyncExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Final, cast

from taskiq.brokers.inmemory_broker import InMemoryBroker
from taskiq.brokers.shared_broker import AsyncSharedBroker
from taskiq.cli.finding import (
    RegistrationError,
    StartError,
    check_modules,
    find_broker,
    find_object,
    registration_told,
)
from taskiq.cli.health.files import HealthDirectory
from taskiq.cli.health.pulse import Pulse, Reading
from taskiq.cli.installation import check_installation
from taskiq.cli.utils import import_tasks
from taskiq.cli.worker.executors import JOIN_GRACE, Pool
from taskiq.cli.worker.garbage import spare_collections
from taskiq.cli.worker.logs import configure_logging, quiet_clients, set_levels
from taskiq.cli.worker.process_manager import ProcessManager
from taskiq.cli.worker.reports import NotStarted, Started, report
from taskiq.cli.worker.signals import (
    ParentWatch,
    close_without_handlers,
    exit_on_signals,
    handle_signals,
    ignore_soft_signals,
)
from taskiq.health import ListenerState
from taskiq.lifecycle import ended_within
from taskiq.outage import brief
from taskiq.receiver import Receiver
from taskiq.receiver.restart import ListenLoop
from taskiq.receiver.source import is_disconnected

if TYPE_CHECKING:
    from collections.abc import Generator

    from watchdog.observers.api import BaseObserver

    from taskiq.abc.broker import AsyncBroker
    from taskiq.cli.worker.args import WorkerArgs

logger = logging.getLogger("taskiq.worker")

#: Seconds between two looks whether the main process is still there.
_ORPHAN_CHECK_INTERVAL: Final = 1.0

#: Seconds asyncio tasks have to clean up when the process ends anyway.
_CLEANUP_GRACE: Final = 1.0


def run_worker(args: WorkerArgs) -> int | None:
    """Run worker processes until they are told to end; this is the main process.

    :returns: exit status, `None` for success.
    :raises ValueError: files are to be watched, and the packages for that are missing.
    """
    _choose_start_method()
    _set_up_logging(args)
    try:
        check_installation()
    except StartError as exc:
        logger.error("%s", exc)  # noqa: TRY400 - the line says it all
        return exc.status
    processes = (
        "1 worker process" if args.workers == 1 else f"{args.workers} worker processes"
    )
    logger.info("Starting %s. Pid of the main process: %d.", processes, os.getpid())
    observer = _start_observer(args) if args.reload else None
    try:
        return ProcessManager(
            args=args,
            observer=observer,
            worker_function=start_listen,
        ).start()
    except StartError as exc:
        logger.error("%s", exc)  # noqa: TRY400 - the command line is wrong, not the code
        return exc.status
    finally:
        if observer is not None:
            observer.stop()


def _choose_start_method() -> None:
    """Spawn processes where Python would have them forked by a fork server.

    It does from version 3.14 on. A SIGTERM to all processes, as from service managers,
    ends that server: whom it has forked is then taken for ended, and a pool for broken,
    while they finish their tasks. A method that somebody has chosen stays.
    """
    chosen = multiprocessing.get_start_method(allow_none=True)
    if not chosen and multiprocessing.get_all_start_methods()[0] == "forkserver":
        multiprocessing.set_start_method("spawn")


def _set_up_logging(args: WorkerArgs) -> None:
    if args.configure_logging:
        configure_logging(args.log_level, args.log_format)
    set_levels(args.log_level)


def _start_observer(args: WorkerArgs) -> BaseObserver:
    try:
        from watchdog.observers import Observer  # noqa: PLC0415 - of an extra

        import taskiq.cli.watcher as _  # noqa: F401, PLC0415 - needs all of the extra
    except ImportError as exc:
        raise ValueError(
            "--reload needs packages that are not installed. "
            "Install them with `pip install 'taskiq[reload]'`.",
        ) from exc
    observer = Observer()
    observer.start()
    args.workers = 1
    logging.warning("Reload on file changes: the number of workers is set to 1.")
    return observer


def start_listen(args: WorkerArgs) -> None:
    """Receive and run tasks until a signal tells to stop; this is a worker process.

    :raises StartError: the worker cannot start, and need not be tried again.
    :raises SystemExit: the worker could not start, failed, or was stopped the hard way.
    """
    exit_on_signals()
    try:
        _serve(args)
    finally:
        # The interpreter, while it ends, would set handlers that kill the process.
        ignore_soft_signals()


def _serve(args: WorkerArgs) -> None:
    _set_up_logging(args)
    loop = _new_event_loop()
    try:
        with _closed_unless_started(loop):
            asyncio.set_event_loop(loop)
            service = _Service(args, _import_application(args), get_receiver_type(args))
    except StartError as exc:
        if not (args.reload and isinstance(exc, RegistrationError)):
            raise
        # Who edits the application is to find the worker waiting.
        logger.error("%s", exc)  # noqa: TRY400 - the line says it all
        report(NotStarted(str(exc)))
        sys.exit(1)
    except Exception as exc:
        logger.exception("This worker cannot start.")
        report(NotStarted(brief(exc)))
        sys.exit(1)
    report(Started())
    spare_collections()
    status = loop.run_until_complete(service.run())
    if not service.is_executor_joined:
        _exit_at_once(status)
    loop.run_until_complete(_clean_up())
    close_without_handlers(loop)
    if service.start_error is not None:
        raise service.start_error
    if status:
        sys.exit(status)


@contextmanager
def _closed_unless_started(
    loop: asyncio.AbstractEventLoop,
) -> Generator[None, None, None]:
    """Close a loop that nothing will run in: one of uvloop complains if left open."""
    try:
        yield
    except BaseException:  # a signal to stop, too
        loop.close()
        raise


def _import_application(args: WorkerArgs) -> AsyncBroker:
    with registration_told():
        broker = find_broker(args.broker, args.app_dir)
        broker.is_worker_process = True
        check_modules(args.modules, args.app_dir)
        import_tasks(args.modules, args.tasks_pattern, args.fs_discover)
    _check_that_it_listens(args.broker, broker)
    return broker


def _check_that_it_listens(spec: object, broker: AsyncBroker) -> None:
    """Refuse a broker that is not made to be listened to by another process.

    :raises StartError: it is such a one.
    """
    refusing = (InMemoryBroker.listen, AsyncSharedBroker.listen)
    if type(broker).listen in refusing:
        raise StartError(
            f"A worker cannot listen to {spec!r}, as it is of type "
            f"{type(broker).__name__}: there is no server in between, so its tasks run "
            "where they are sent. Name a broker with a server, as of RabbitMQ, Redis, "
            "NATS or PostgreSQL.",
        )


def _new_event_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop  # noqa: PLC0415 - optional
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def get_receiver_type(args: WorkerArgs) -> type[Receiver]:
    """Import the class of the receiver.

    :raises StartError: what `args` names is no subclass of `Receiver`.
    """
    receiver_type = find_object(args.receiver, args.app_dir, type, "receiver")
    if not (isinstance(receiver_type, type) and issubclass(receiver_type, Receiver)):
        raise StartError(
            f"{args.receiver!r} is no subclass of taskiq.receiver.Receiver, "
            f"but {receiver_type!r}.",
        )
    return receiver_type


class _Service:
    """A receiver at work, from its creation until the broker is shut down.

    :ivar is_executor_joined: whether no thread or process is left that runs a task.
    :ivar start_error: why no process of this worker can start, if that is so.
    """

    def __init__(
        self,
        args: WorkerArgs,
        broker: AsyncBroker,
        receiver_type: type[Receiver],
    ) -> None:
        self._args = args
        self._broker = broker
        self._receiver_type = receiver_type
        self._receiver: Receiver | None = None
        self._pool = Pool(args)
        self._finish = asyncio.Event()
        self._is_stopped_hard = False
        self._task: asyncio.Task[Any] | None = None
        self._is_orphan = False
        self.is_executor_joined = False
        self.start_error: StartError | None = None

    async def run(self) -> int:
        """Receive until told to stop, then release everything.

        :returns: exit status: 0, or 1 after a failure, a hard stop, or the end of the
            main process.
        """
        self._task = asyncio.current_task()
        loop = asyncio.get_running_loop()
        handle_signals(
            loop,
            soft=self._stop,
            hard=self._stop_hard,
            at_once=self._note_stop,
        )
        parent_check = loop.create_task(self._finish_with_parent())
        try:
            async with AsyncExitStack() as stack:
                timeout = self._args.shutdown_timeout
                stack.push_async_callback(shutdown_broker, self._broker, timeout)
                stack.push_async_callback(self._join_executor)
                self._receiver = self._make_receiver()
                await self._listen(self._receiver)
        except asyncio.CancelledError:
            if not self._is_stopped_hard:
                raise
            return 1
        except StartError as exc:
            self.start_error = exc
            return exc.status
        except Exception:
            logger.exception("The worker failed.")
            return 1
        finally:
            parent_check.cancel()
        return int(self._is_orphan)

    def _note_stop(self) -> None:
        if self._receiver is not None:
            self._receiver.stop.ask()

    def _stop(self) -> None:
        self._finish.set()
        self._pool.note_stop()

    def _stop_hard(self) -> None:
        if self._is_stopped_hard or self._task is None:
            return
        logger.warning("Hard stop: running tasks are given up.")
        self._is_stopped_hard = True
        self._stop()
        if self._receiver is not None:
            self._receiver.wait_tasks_timeout = 0
        self._task.cancel()

    async def _finish_with_parent(self) -> None:
        parent = ParentWatch()
        while not parent.is_gone():  # noqa: ASYNC110 - nobody would set an event
            await asyncio.sleep(_ORPHAN_CHECK_INTERVAL)
        logger.warning("The main process is gone: stopping.")
        self._is_orphan = True
        self._finish.set()

    def _make_receiver(self) -> Receiver:
        args = self._args
        return self._receiver_type(
            broker=self._broker,
            executor=self._pool.executor,
            validate_params=not args.no_parse,
            max_async_tasks=args.max_async_tasks,
            max_async_tasks_jitter=args.max_async_tasks_jitter,
            max_prefetch=args.max_prefetch,
            propagate_exceptions=not args.no_propagate_errors,
            ack_type=args.ack_type,
            max_tasks_to_execute=args.max_tasks_per_child,
            wait_tasks_timeout=args.wait_tasks_timeout,
            **cast("dict[str, Any]", dict(args.receiver_arg)),
        )

    async def _listen(self, receiver: Receiver) -> None:
        """Listen, again and again if the listener fails or there is no broker yet.

        After an error of the application's own hooks a new process is the better try.
        """

        def prepared(run_startup: bool) -> Receiver:
            if not run_startup:
                receiver.run_startup = False
            return receiver

        listening = ListenLoop(
            self._broker,
            prepared,
            run_startup=receiver.run_startup,
            gives_up=self._gives_up,
        )
        args = self._args
        is_quiet = args.configure_logging and args.log_level > logging.DEBUG
        quiet = quiet_clients(lambda: listening.is_up) if is_quiet else nullcontext()
        with self._telling_health(receiver, listening), quiet:
            await listening.run(self._finish)

    @contextmanager
    def _telling_health(
        self,
        receiver: Receiver,
        listening: ListenLoop,
    ) -> Generator[None, None, None]:
        """Write heartbeats meanwhile, if that is asked for."""
        directory = self._args.health_file
        if directory is None:
            yield
            return

        def state() -> ListenerState:
            if self._finish.is_set():
                return ListenerState.STOPPING
            state = listening.state
            is_away = state is ListenerState.LISTENING and is_disconnected(self._broker)
            return ListenerState.AWAY if is_away else state

        take = Reading(receiver, state).take
        pulse = Pulse(HealthDirectory(directory), self._args.broker, take)
        pulse.start()
        try:
            yield
        finally:
            pulse.stop()

    def _gives_up(self, error: Exception) -> bool:
        """Whether the broker is not tried to be started again after this error.

        :raises StartError: it is not, and by no other process either.
        """
        if self._args.fail_fast:
            text = f"Cannot start the broker: {brief(error)}"
            raise StartError(text, status=1) from error
        return error is self._broker.lifecycle.hook_error

    async def _join_executor(self) -> None:
        is_waited_for = (
            self._args.wait_tasks_timeout is None and not self._is_stopped_hard
        )
        limit = None if is_waited_for else JOIN_GRACE
        self.is_executor_joined = await self._pool.join(limit)


async def shutdown_broker(broker: AsyncBroker, timeout: float) -> None:
    """Shut down a broker; what goes wrong is logged, not raised.

    :param timeout: seconds the broker has for it.
    """
    logger.debug("Shutting down the broker.")
    shutdown = await ended_within(timeout, broker.shutdown())
    if shutdown is None:
        logger.warning("The broker did not shut down within %g s.", timeout)
        return
    try:
        returned: Any = shutdown.result()
    except (Exception, asyncio.CancelledError):
        logger.warning("The broker failed to shut down.", exc_info=True)
        return
    if returned is not None:
        logger.info("The broker returned a value on shutdown: %r", returned)


async def _clean_up() -> None:
    """Cancel what the application has left running, as `asyncio.run` does."""
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    if left:
        await asyncio.wait(left, timeout=_CLEANUP_GRACE)
    await asyncio.get_running_loop().shutdown_asyncgens()


def _exit_at_once(status: int) -> None:
    """End the process though it has threads that the interpreter would wait for."""
    logger.warning("Not waiting for tasks that still run in threads or processes.")
    logging.shutdown()
    sys.stdout.flush()
    os._exit(status)
