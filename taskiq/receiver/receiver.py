"""The receiver: from a broker's deliveries to settled messages.

:class:`Receiver` is its public face: the configuration, and the steps that a subclass
may replace. What goes on inside is a :class:`~taskiq.receiver.runtime.Runtime` for each
event loop; see docs/design.md for the path of a message through it.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
from typing import TYPE_CHECKING, Any

from taskiq.acks import AcknowledgeType, parse_acknowledge_type
from taskiq.batch import BatcherStatistics
from taskiq.capabilities import better_import, resolve
from taskiq.context import Context
from taskiq.outcome import Failed
from taskiq.receiver.containment import attempt
from taskiq.receiver.diagnosis import describe, log_batch_tasks
from taskiq.receiver.endings import log_policies
from taskiq.receiver.execution import Call, Execution, is_process_pool
from taskiq.receiver.listening import Listening
from taskiq.receiver.prepared import PreparedTasks
from taskiq.receiver.runtime import Runtime
from taskiq.receiver.settlement import (
    SAVE_TIMEOUT,
    as_stored,
    report_error,
    result_of,
)
from taskiq.receiver.stop import Stop

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor

    from taskiq.abc.broker import AsyncBroker
    from taskiq.acks import AckableMessage, AckController
    from taskiq.clock import Clock
    from taskiq.message import TaskiqMessage
    from taskiq.outcome import Outcome
    from taskiq.receiver.listening import Queue
    from taskiq.receiver.prepared import PreparedTask
    from taskiq.result import TaskiqResult

logger = logging.getLogger("taskiq.receiver.receiver")


class Receiver:
    """Receives messages of one broker and runs their tasks.

    :param broker: source of messages, tasks, middlewares and the result backend.
    :param executor: runs sync tasks; `None` is the loop's default executor.
    :param validate_params: whether to cast arguments by the function's type hints.
    :param max_async_tasks: most calls at once; `None` or 0 is unlimited.
    :param max_async_tasks_jitter: a random number up to this is added to the limit.
    :param max_prefetch: most messages read beyond `max_async_tasks`.
    :param propagate_exceptions: whether generator dependencies see a task's error.
    :param run_startup: whether `listen` starts the broker first.
    :param ack_type: when messages are acknowledged, when saved by default.
    :param on_exit: called with the receiver after a clean end of `listen`.
    :param max_tasks_to_execute: stop after this many messages were read.
    :param wait_tasks_timeout: seconds that what was read has to end at a stop; `None`
        waits for it, but a cancelled `listen` waits for nothing then.
    :raises ValueError: when `max_prefetch` is negative.
    """

    #: Seconds that saving a result, or an acknowledgement, may take. What takes longer
    #: is an error of its message, which is not acknowledged then. `None` is no limit.
    save_timeout: float | None = SAVE_TIMEOUT

    def __init__(
        self,
        broker: AsyncBroker,
        executor: Executor | None = None,
        validate_params: bool = True,
        max_async_tasks: int | None = None,
        max_async_tasks_jitter: int = 0,
        max_prefetch: int = 0,
        propagate_exceptions: bool = True,
        run_startup: bool = True,
        ack_type: AcknowledgeType | None = None,
        on_exit: Callable[[Receiver], None] | None = None,
        max_tasks_to_execute: int | None = None,
        wait_tasks_timeout: float | None = None,
    ) -> None:
        if max_prefetch < 0:
            raise ValueError(f"max_prefetch cannot be negative, got {max_prefetch}")
        self.broker = broker
        self.executor = executor
        self.validate_params = validate_params
        self.propagate_exceptions = propagate_exceptions
        self.run_startup = run_startup
        self.ack_time = AcknowledgeType.WHEN_SAVED if ack_type is None else ack_type
        self.on_exit = on_exit
        self.max_tasks_to_execute = max_tasks_to_execute
        self.wait_tasks_timeout = wait_tasks_timeout
        self.is_process_pool = is_process_pool(executor)
        self.sem, self.sem_prefetch = _semaphores(
            max_async_tasks,
            max_async_tasks_jitter,
            max_prefetch,
        )
        self.execution = Execution(
            broker,
            executor,
            propagate_exceptions=propagate_exceptions,
        )
        self.prepared_tasks = PreparedTasks(broker)
        self.known_tasks = self.prepared_tasks.known
        self.task_signatures = self.prepared_tasks.signatures
        self.task_hints = self.prepared_tasks.hints
        self.dependency_graphs = self.prepared_tasks.graphs
        # Asked for by signals, and at the latest when `listen` notices.
        self.stop = Stop()
        # What batches wait by; `None` is the event loop's time.
        self._clock: Clock | None = None
        # Whether `listen` has started the broker: a restart must not do it again.
        self.has_started_broker = False
        # Replaced and never changed: other threads go through it.
        self._runtimes: dict[asyncio.AbstractEventLoop, Runtime] = {}
        self._loops_change = threading.Lock()
        # The one asked for last: mostly the one that is asked for.
        self._latest: Runtime | None = None
        broker.batch_statistics = self.batch_statistics
        for name, task in broker.get_all_tasks().items():
            self.prepared_tasks.prepare(name, task.original_func, task)

    async def callback(
        self,
        message: bytes | AckableMessage,
        raise_err: bool = False,
    ) -> None:
        """Process one delivery from start to end.

        A message of a batch task returns when it is settled, with its batch.

        :param raise_err: raise what storing the result raises.
        """
        runtime = self.runtime
        delivery = runtime.delivery(message)
        work = runtime.take(delivery, raise_err=raise_err, is_waited_for=True)
        await runtime.tasks.run_here(work)

    async def run_task(
        self,
        target: Callable[..., Any],
        message: TaskiqMessage,
        ack_controller: AckController | None = None,
    ) -> TaskiqResult[Any]:
        """Run a plain task for one message; `on_error` hooks included.

        :param target: what is called, the task's function or what wraps it.
        :returns: the result; a failing task is a result with an error.
        :raises asyncio.CancelledError: when the worker cancelled the task.
        """
        name = message.task_name
        task: Any = self.prepared_tasks.by_name(name)
        if task is None:
            task = attempt(self._prepare_task, name, target)
        if task.__class__ is Failed:
            logger.error(
                "Cannot prepare the call of %s.",
                describe(message),
                exc_info=task.error,
            )
            outcome: Outcome = task
            seconds = 0.0
        else:
            call = Call(
                task,
                target,
                message.args,
                message.kwargs,
                Context(message, self.broker, ack_controller),
                message.labels.get("timeout"),
                task.casts if self.validate_params else None,
            )
            outcome, seconds = await self.execution.run(call)
        result = result_of(outcome, as_stored(seconds), message.labels)
        if outcome.__class__ is Failed:
            await report_error(self.broker, message, result)
        return result

    def _prepare_task(self, name: str, handler: Callable[..., Any]) -> PreparedTask:
        """Give what depends on a task only, worked out once.

        :raises NameError: when a type hint of it cannot be resolved.
        """
        return self.prepared_tasks.prepare(name, handler)

    def _get_ack_time(self, message: TaskiqMessage) -> AcknowledgeType:
        """Say when a message is acknowledged: its label decides, if it has one.

        :raises ValueError: when the label is no acknowledge type.
        """
        label = message.labels.get("ack_type")
        if label is None:
            return self.ack_time
        try:
            return parse_acknowledge_type(label)
        except ValueError as exc:
            raise ValueError(
                f"Invalid ack_type label of {describe(message)}: {exc}",
            ) from exc

    async def listen(self, finish_event: asyncio.Event) -> None:
        """Receive messages until `finish_event` is set.

        It ends as well when the broker's messages end or `max_tasks_to_execute` were
        read. What was read is then run, within `wait_tasks_timeout` seconds; what is
        not done by then is cancelled and stays unacknowledged.

        :raises BaseExceptionGroup: with the error that the broker raised. What runs
            then runs on, beside what is read by whoever listens again.
        :raises Exception: an error raised by stopping the broker's generator.
        """
        if self.run_startup:
            await self.broker.startup()
            self.has_started_broker = True
        if self.broker.lifecycle.outage.listens():
            self._log_start()
        await Listening(self, self.runtime).run(finish_event)
        if self.on_exit is not None:
            self.on_exit(self)

    def _log_start(self) -> None:
        logger.info("Listening started.")
        better = better_import(self.broker)
        hint = "" if better is None else f". It can more {better}"
        logger.info("The broker, with its messages, %s%s.", resolve(self.broker), hint)
        log_policies(self.broker)
        log_batch_tasks(self.broker, None if self.sem is None else self.sem_prefetch)

    async def prefetcher(self, queue: Queue, finish_event: asyncio.Event) -> None:
        """Read the broker until `finish_event`, and hand over what it gives.

        :param queue: where messages go that wait for an execution slot.
        """
        await self.runtime.session.read_broker(queue, finish_event)

    async def runner(self, queue: Queue) -> None:
        """Start what the prefetcher queued, each with an execution slot, in order."""
        await self.runtime.session.start_in_turn(queue)

    @property
    def runtime(self) -> Runtime:
        """What goes on in the running event loop.

        :raises RuntimeError: when none runs.
        """
        loop = asyncio.get_running_loop()
        latest = self._latest
        if latest is not None and latest.loop is loop:
            return latest
        runtime = self._runtimes.get(loop)
        if runtime is None:
            runtime = Runtime(self, loop, self._clock)
            # What was pending in a loop that is closed has ended with it.
            with self._loops_change:
                self._runtimes = {
                    other: known
                    for other, known in self._runtimes.items()
                    if not other.is_closed()
                } | {loop: runtime}
        self._latest = runtime
        return runtime

    @property
    def has_own_callback(self) -> bool:
        """Whether `callback` was replaced, by a subclass or on the instance."""
        function = getattr(self.callback, "__func__", None)
        return function is not Receiver.callback

    @property
    def has_received(self) -> bool:
        """Whether the last `listen` in this event loop has read a message."""
        listening = self.runtime.listening
        return listening is not None and listening.prefetch.fetched > 0

    def batch_statistics(self) -> BatcherStatistics:
        """Count what waits and runs in batches now, in every event loop."""
        counts = [each.statistics() for each in self._runtimes.values()]
        return sum(counts, BatcherStatistics())

    def use_clock(self, clock: Clock | None) -> None:
        """Let batches wait by a clock of yours, `None` for the event loop's.

        :raises RuntimeError: when this receiver listens or holds messages already.
        """
        for loop, runtime in self._runtimes.items():
            is_in_use = runtime.is_open or not runtime.is_idle
            if is_in_use and not loop.is_closed():
                raise RuntimeError(
                    "The clock cannot be changed while messages are held or listened "
                    "for.",
                )
        self._clock = clock
        self._runtimes = {}
        self._latest = None


def _semaphores(
    max_async_tasks: int | None,
    jitter: int,
    max_prefetch: int,
) -> tuple[asyncio.Semaphore | None, asyncio.Semaphore]:
    """Make the semaphores of executions and of deliveries."""
    if max_async_tasks is None or max_async_tasks <= 0:
        logger.warning(
            "Setting unlimited number of async tasks can result in undefined behavior",
        )
        return None, asyncio.Semaphore(max_prefetch + 1)
    limit = max_async_tasks
    if jitter > 0:
        limit += random.randint(0, jitter)  # noqa: S311 - spreads load, keeps no secret
    return asyncio.Semaphore(limit), asyncio.Semaphore(limit + max_prefetch)
