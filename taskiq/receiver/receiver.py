"""The receiver: from a broker's deliveries to settled messages.

Every message takes one path, and each step of it has one home:

* :mod:`~taskiq.receiver.prefetch` reads the broker, one delivery slot per message;
* admission, here: decode, find the task, `pre_execute`, the moment of the ack;
* :mod:`~taskiq.receiver.grouping` and :mod:`~taskiq.receiver.batcher` decide which
  messages of a batch task share a call, and when it starts;
* :mod:`~taskiq.receiver.batching` runs batches;
* :mod:`~taskiq.receiver.execution` calls the task function;
* :mod:`~taskiq.receiver.settlement` runs hooks, saves the result, acknowledges.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import random
import sys
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import anyio

from taskiq.acks import (
    AckableMessage,
    AckController,
    AcknowledgeType,
    parse_acknowledge_type,
)
from taskiq.batch import FlushReason
from taskiq.context import Context
from taskiq.hooks import hooks_of
from taskiq.outcome import Failed
from taskiq.receiver.batcher import BatcherStatistics
from taskiq.receiver.batching import Batching
from taskiq.receiver.cancellation import guarded
from taskiq.receiver.capacity import log_batch_tasks
from taskiq.receiver.delivery import Delivery, Member, Refused, describe
from taskiq.receiver.execution import Call, Execution, is_process_pool
from taskiq.receiver.prefetch import Prefetch
from taskiq.receiver.prepared import PreparedTask
from taskiq.receiver.running import RunningTasks, Slots, wait_for_all
from taskiq.receiver.settlement import Settlement, as_stored, result_of
from taskiq.utils import maybe_awaitable

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

if TYPE_CHECKING:
    import inspect
    from collections.abc import Callable, Coroutine, Sequence
    from concurrent.futures import Executor

    from taskiq_dependencies import DependencyGraph

    from taskiq.abc.broker import AsyncBroker
    from taskiq.abc.middleware import TaskiqMiddleware
    from taskiq.message import TaskiqMessage
    from taskiq.receiver.batcher import Clock
    from taskiq.result import TaskiqResult

logger = logging.getLogger("taskiq.receiver.receiver")

_WHEN_RECEIVED: Final = AcknowledgeType.WHEN_RECEIVED
#: Of every message whose broker wants no acknowledgement.
_NOT_ACKABLE: Final = AckController(None)


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
        self.known_tasks: set[str] = set()
        self.task_signatures: dict[str, inspect.Signature] = {}
        self.task_hints: dict[str, dict[str, Any]] = {}
        self.dependency_graphs: dict[str, DependencyGraph] = {}
        self.sem, self.sem_prefetch = _semaphores(
            max_async_tasks,
            max_async_tasks_jitter,
            max_prefetch,
        )
        self._prepared: dict[str, PreparedTask] = {}
        self._running = RunningTasks()
        self._settlement = Settlement(broker)
        self._execution = Execution(
            broker,
            executor,
            propagate_exceptions=propagate_exceptions,
        )
        self._batching: Batching | None = None
        # What batches wait by; `None` is the event loop's time.
        self._clock: Clock | None = None
        self._prefetch: Prefetch | None = None
        # Whether `listen` has started the broker: a restart must not do it again.
        self.has_started_broker = False
        broker.batch_statistics = self.batch_statistics
        for name, task in broker.get_all_tasks().items():
            self._prepare_task(name, task.original_func)

    # -- One delivery, from start to end ------------------------------------------

    async def callback(
        self,
        message: bytes | AckableMessage,
        raise_err: bool = False,
    ) -> None:
        """Process one delivery from start to end.

        A message of a batch task returns when it is settled, with its batch.

        :param raise_err: raise what storing the result raises.
        """
        await self._handle(self._receive(message), raise_err=raise_err)

    def buffer(
        self,
        message: bytes | AckableMessage,
    ) -> Coroutine[Any, Any, None] | None:
        """Take a message of a batch task, for a broker that runs tasks in process.

        :returns: the work left to do for it; `None` when it joined its batch, which
            costs no asyncio task of its own.
        """
        if self._has_own_callback:
            return self.callback(message=message)
        delivery = self._receive(message)
        if isinstance(delivery, Member):
            return self._buffer(delivery, self.batching, None)
        return self._handle(delivery)

    async def run_in_place(self, message: bytes | AckableMessage) -> None:
        """Process one delivery from start to end, for a broker that waits for it.

        A message of a batch task is a batch of its own: it waits for no other.
        """
        if self._has_own_callback:
            await self.callback(message=message)
        else:
            await self._handle(self._receive(message), is_alone=True)

    def _receive(self, message: bytes | AckableMessage) -> Delivery | Refused:
        """Decode a delivery and find its task."""
        # What a broker gives is not checked by anybody: a formatter may want text.
        given: Any = message
        # Asking a pydantic class is ten times slower than asking a built-in one.
        if given.__class__ is AckableMessage or (
            not isinstance(given, bytes) and isinstance(given, AckableMessage)
        ):
            data, controller = given.data, AckController(given.ack)
        else:
            data, controller = given, _NOT_ACKABLE
        try:
            decoded = self.broker.formatter.loads(message=data)
            if decoded.labels_types:
                decoded.parse_labels()
        except Exception:
            logger.warning("Cannot parse message: %r. Skipping.", data, exc_info=True)
            return Refused(controller)
        name = decoded.task_name
        task = self.broker.find_task(name)
        if task is None:
            logger.warning(
                "task %r is not found. Maybe you forgot to import it? "
                "Message with ID %s is dropped.",
                name,
                decoded.task_id,
            )
            return Refused(controller)
        prepared = self._prepared.get(name)
        if (
            prepared is None
            or prepared.function is not task.original_func
            or prepared.batch is not task.batch
            or name not in self.known_tasks
        ):
            prepared = self._try_to_prepare(name, task.original_func)
        if prepared is None or prepared.plan is None:
            return Delivery(decoded, task.original_func, controller, self.ack_time)
        plan = prepared.plan
        member = Member(decoded, prepared, plan, controller, self.ack_time)
        if controller.is_ackable and isinstance(data, bytes):
            member.fingerprint = hash(data)
        return member

    def _handle(
        self,
        delivery: Delivery | Refused,
        *,
        raise_err: bool = False,
        is_alone: bool = False,
    ) -> Coroutine[Any, Any, None]:
        """Take one delivery through every step, all of them under one guard.

        :param is_alone: whether a message of a batch task is a batch of its own.
        """
        work = self._take_through(delivery, raise_err=raise_err, is_alone=is_alone)
        # A message of a batch task only waits here: its function runs elsewhere.
        return work if isinstance(delivery, Member) else guarded(work)

    async def _take_through(
        self,
        delivery: Delivery | Refused,
        *,
        raise_err: bool,
        is_alone: bool,
    ) -> None:
        """Take one delivery through every step, in order."""
        if isinstance(delivery, Refused):
            await delivery.ack()
            return
        if logger.isEnabledFor(logging.INFO):
            _log_start(delivery)
        error = None if self._is_ready(delivery) else await self._admit(delivery)
        if error is not None:
            await self._settlement.settle_failure(delivery, error)
        elif isinstance(delivery, Member):
            await self._run_in_batch(delivery, is_alone=is_alone)
        else:
            result = await self.run_task(
                target=delivery.function,
                message=delivery.message,
                ack_controller=delivery.controller,
            )
            await self._settlement.settle(
                delivery,
                result,
                hooks_of(self.broker),
                is_error_told=True,
                raise_err=raise_err,
            )

    def _is_ready(self, delivery: Delivery) -> bool:
        """Whether nothing comes before its task that `_admit` would have to do."""
        if hooks_of(self.broker).pre_execute:
            return False
        has_label = "ack_type" in delivery.message.labels
        if has_label and self._resolve_ack_type(delivery) is not None:
            return False
        return not delivery.is_acked_at(_WHEN_RECEIVED)

    async def _admit(self, delivery: Delivery) -> Exception | None:
        """Run what comes before a task: hooks, and the ack of a received message.

        :returns: the error that keeps the message from being run, if there is one.
        """
        hooks = hooks_of(self.broker).pre_execute
        error = await _pre_execute(hooks, delivery) if hooks else None
        bad_label = self._resolve_ack_type(delivery)
        if delivery.is_acked_at(_WHEN_RECEIVED):
            await delivery.ack()
        return error or bad_label

    def _resolve_ack_type(self, delivery: Delivery) -> Exception | None:
        """Find out when it is acknowledged; give the error of a label that is none."""
        try:
            delivery.ack_type = self._get_ack_time(delivery.message)
        except ValueError as exc:
            return exc
        return None

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
        task = self._prepared.get(name)
        try:
            if task is None or name not in self.known_tasks:
                task = self._prepare_task(name, target)
            if self.validate_params:
                task.casts.apply(message)
        except Exception as exc:
            logger.exception("Cannot prepare the call of %s.", describe(message))
            result = result_of(Failed(exc), 0.0, message)
        else:
            call = Call(
                task=task,
                target=target,
                args=message.args,
                kwargs=message.kwargs,
                context=Context(message, self.broker, ack_controller),
                timeout=message.labels.get("timeout"),
            )
            outcome, seconds = await guarded(self._execution.run(call))
            result = result_of(outcome, as_stored(seconds), message)
        if result.error is not None:
            await self._settlement.report_error(message, result)
        return result

    def _try_to_prepare(
        self,
        name: str,
        handler: Callable[..., Any],
    ) -> PreparedTask | None:
        """Prepare a task that was registered after this receiver was built.

        :returns: `None` when that fails: `run_task` meets the same error then, and
            makes it the message's own.
        """
        try:
            return self._prepare_task(name, handler)
        except Exception:  # noqa: BLE001 - told by `run_task`
            self.known_tasks.discard(name)
            return None

    def _prepare_task(self, name: str, handler: Callable[..., Any]) -> PreparedTask:
        """Work out what depends on a task only.

        :raises NameError: when a type hint of it cannot be resolved.
        """
        task = self.broker.find_task(name)
        prepared = PreparedTask(name, handler, None if task is None else task.batch)
        self._prepared[name] = prepared
        self.task_signatures[name] = prepared.signature
        self.task_hints[name] = prepared.hints
        self.dependency_graphs[name] = prepared.graph
        self.known_tasks.add(name)
        return prepared

    # -- A message of a batch task ------------------------------------------------

    def _buffer(
        self,
        member: Member,
        batching: Batching,
        slots: Slots | None,
    ) -> Coroutine[Any, Any, None] | None:
        """Let a message join its batch, at once where nothing has to be awaited.

        :param slots: what it was read with; it keeps them until it is admitted.
        :returns: the work left to do before it can join, or instead of it.
        """
        if logger.isEnabledFor(logging.DEBUG):
            logger.debug("Received message: %s", member.message)
        if not self._is_ready(member):
            member.slots = slots
            return self._admit_to_batch(member, batching)
        error = member.place(validate=self.validate_params)
        if error is not None:
            member.slots = slots
            return self._fail(member, error)
        if not batching.add(member):
            member.slots = slots
        return None

    async def _admit_to_batch(self, member: Member, batching: Batching) -> None:
        """Let a message join its batch after what has to be awaited first."""
        is_joined = False
        try:
            error = await self._admit(member)
            if error is None:
                error = member.place(validate=self.validate_params)
            if error is None:
                if batching.add(member):
                    member.admitted()
                is_joined = True
            else:
                await self._settlement.settle_failure(member, error)
        finally:
            if not is_joined:
                member.release()

    async def _fail(self, member: Member, error: Exception) -> None:
        """Settle a message that fits in no batch."""
        try:
            await self._settlement.settle_failure(member, error)
        finally:
            member.release()

    async def _run_in_batch(self, member: Member, *, is_alone: bool) -> None:
        """Let a message join its batch and wait until it is settled with it."""
        error = member.place(validate=self.validate_params)
        if error is not None:
            await self._settlement.settle_failure(member, error)
            return
        if is_alone:
            await self.batching.run_alone(member)
            return
        member.slots = self._running.lent_slots()
        if member.slots is not None:
            # A waiting message takes no execution slot: its batch will take one.
            member.slots.release_execution()
        await self.batching.add_and_wait(member)

    @property
    def batching(self) -> Batching:
        """What gathers and runs the batches of the running event loop."""
        batching = self._batching
        if batching is None or batching.loop is not asyncio.get_running_loop():
            batching = self._batching = Batching(
                self.broker,
                self._execution,
                self._settlement,
                self._running,
                clock=self._clock,
            )
        return batching

    def batch_statistics(self) -> BatcherStatistics:
        """Count what waits and runs in batches now."""
        batching = self._batching
        return BatcherStatistics() if batching is None else batching.statistics()

    def _is_starved(self) -> bool:
        """Whether the broker was asked for a message and gives none."""
        return self._prefetch is not None and self._prefetch.is_reading

    async def wait_batches(self, reason: FlushReason = FlushReason.MANUAL) -> None:
        """Flush every batch, also those begun meanwhile, and wait for all of them.

        :param reason: why they leave, for hooks and the log.
        """
        batching = self.batching
        batching.drain(reason)
        try:
            await batching.wait_idle()
        finally:
            batching.resume()

    async def wait_running(self) -> None:
        """Wait until every batch that has fallen due is settled; others stay open."""
        while self._running:
            await wait_for_all(self._running.tasks, None)

    def use_clock(self, clock: Clock | None) -> None:
        """Let batches wait by a clock of yours, `None` for the event loop's.

        :raises RuntimeError: when this receiver listens or holds messages already.
        """
        if self._batching is not None and not self._batching.is_replaceable:
            raise RuntimeError(
                "The clock cannot be changed while messages are held or listened for.",
            )
        self._clock = clock
        self._batching = None

    # -- Listening ----------------------------------------------------------------

    async def listen(self, finish_event: asyncio.Event) -> None:
        """Receive messages until `finish_event` is set.

        It ends as well when the broker's messages end or `max_tasks_to_execute` were
        read. What was read is then run, within `wait_tasks_timeout` seconds; what is
        not done by then is cancelled and stays unacknowledged.

        :raises BaseExceptionGroup: with the error that the broker raised.
        :raises Exception: an error raised by stopping the broker's generator.
        """
        if self.run_startup:
            await self.broker.startup()
            self.has_started_broker = True
        logger.info("Listening started.")
        is_limited = self.sem is not None
        log_batch_tasks(self.broker, self.sem_prefetch if is_limited else None)
        queue: _Queue = asyncio.Queue()
        self._prefetch = None
        self._batching = Batching(
            self.broker,
            self._execution,
            self._settlement,
            self._running,
            executions=self.sem,
            is_starved=self._is_starved,
            clock=self._clock,
        )
        stages = (
            asyncio.ensure_future(self.prefetcher(queue, finish_event)),
            asyncio.ensure_future(self.runner(queue)),
        )
        try:
            await asyncio.wait(stages, return_when=asyncio.FIRST_COMPLETED)
            _raise_failure(stages)
            await self._finish(stages)
        except BaseException as exc:
            grace = self.wait_tasks_timeout
            if grace is None and isinstance(exc, asyncio.CancelledError):
                grace = 0
            with anyio.CancelScope(shield=True):
                await self._stop(stages, queue, grace)
            self._log_lifecycle_error()
            raise
        await self._stop(stages, queue, grace=0)
        self._raise_lifecycle_error()
        if self.on_exit is not None:
            self.on_exit(self)

    async def prefetcher(self, queue: _Queue, finish_event: asyncio.Event) -> None:
        """Read the broker until `finish_event`, and hand over what it gives.

        :param queue: where messages go that wait for an execution slot.
        """
        batching = self.batching
        self._prefetch = Prefetch(
            self.broker,
            self.sem_prefetch,
            hand_over=functools.partial(
                self._hand_over,
                queue,
                batching,
                self._has_own_callback,
            ),
            most=self.max_tasks_to_execute or None,
        )
        batching.on_due = self._prefetch.give_way
        try:
            await self._prefetch.run(finish_event)
        finally:
            queue.put_nowait(None)

    def _hand_over(
        self,
        queue: _Queue,
        batching: Batching,
        is_for_callback: bool,
        message: bytes | AckableMessage,
        slots: Slots,
    ) -> bool:
        """Send a message that was read on its way: into a batch, or to the runner.

        :returns: whether it keeps the slot it was read with.
        """
        if is_for_callback:
            queue.put_nowait(_Arrival(message, None, slots))
            return True
        delivery = self._receive(message)
        if not isinstance(delivery, Member):
            queue.put_nowait(_Arrival(message, delivery, slots))
            return True
        left_to_do = self._buffer(delivery, batching, slots)
        if left_to_do is not None:
            self._running.start(batching.loop, left_to_do, Slots(), delivery)
        return delivery.slots is not None

    async def runner(self, queue: _Queue) -> None:
        """Start what the prefetcher queued, each with an execution slot, in order."""
        loop = asyncio.get_running_loop()
        while (arrival := await queue.get()) is not None:
            semaphore = self.sem
            if semaphore is not None:
                try:
                    await semaphore.acquire()
                except BaseException:
                    # Not started: it is discarded with the others in the queue.
                    queue.put_nowait(arrival)
                    raise
                arrival.slots.hold_execution(semaphore)
            self._start(arrival, loop)
            if semaphore is None:
                # Without a limit the slot bounds only what waits to be started.
                arrival.slots.release_delivery()
        logger.info("The runner is stopped.")

    def _start(self, arrival: _Arrival, loop: asyncio.AbstractEventLoop) -> None:
        """Start the callback of one message.

        :raises Exception: when it cannot be started; its slots are given back.
        """
        delivery = arrival.delivery
        try:
            if delivery is None:
                work = self.callback(message=arrival.message, raise_err=False)
                subject: object = "a message"
            else:
                work, subject = self._handle(delivery), delivery
            self._running.start(
                loop,
                work,
                arrival.slots,
                subject,
                is_lending=delivery is None,
            )
        except Exception:
            logger.warning(
                "Discarding 1 prefetched delivery during Receiver cleanup.",
            )
            arrival.slots.release()
            raise

    async def _finish(self, stages: _Stages) -> None:
        """Run what was read to its end, within `wait_tasks_timeout`."""
        _, runner = stages
        batching = self.batching
        batching.drain(FlushReason.SHUTDOWN)
        logger.info("Waiting for %d running tasks to complete.", len(self._running))
        with anyio.move_on_after(self.wait_tasks_timeout):
            await wait_for_all([runner], None)
            _raise_failure(stages)
            while self._running or not batching.is_idle:
                await wait_for_all(self._running.tasks, None)
                await batching.wait_idle()
        logger.info("Stopped waiting for running tasks.")

    async def _stop(
        self,
        stages: _Stages,
        queue: _Queue,
        grace: float | None,
    ) -> None:
        """Leave nothing behind: no stage, no queued or buffered message, no task.

        :param grace: seconds for what runs, `None` for no limit. What is not done by
            then is cancelled and stays unacknowledged.
        """
        try:
            for stage in stages:
                stage.cancel()
            try:
                # Cancelling this again cancels them again, and still waits for them.
                await asyncio.gather(*stages, return_exceptions=True)
            finally:
                self._discard(queue)
            await wait_for_all(self._running.tasks, grace)
        finally:
            await self._running.cancel()
            self._batching = None

    def _discard(self, queue: _Queue) -> None:
        """Let go of what was read and not started: the broker delivers it again."""
        discarded = 0
        while not queue.empty():
            arrival = queue.get_nowait()
            if arrival is not None:
                arrival.slots.release()
                discarded += 1
        if discarded:
            logger.warning(
                "Discarding %d prefetched deliveries during Receiver cleanup.",
                discarded,
            )
        self.batching.abandon()

    def _raise_lifecycle_error(self) -> None:
        if self._prefetch is not None and self._prefetch.lifecycle_error is not None:
            raise self._prefetch.lifecycle_error

    def _log_lifecycle_error(self) -> None:
        if self._prefetch is not None and self._prefetch.lifecycle_error is not None:
            logger.error(
                "A Receiver listener lifecycle error was recorded.",
                exc_info=self._prefetch.lifecycle_error,
            )

    @property
    def _has_own_callback(self) -> bool:
        """Whether `callback` was replaced, by a subclass or on the instance."""
        function = getattr(self.callback, "__func__", None)
        return function is not Receiver.callback


async def _pre_execute(
    middlewares: Sequence[TaskiqMiddleware],
    delivery: Delivery,
) -> Exception | None:
    """Run the hooks before a task; each may replace the message.

    :returns: the error of the hook that failed, which becomes the message's.
    """
    for middleware in middlewares:
        try:
            message: Any = await maybe_awaitable(
                middleware.pre_execute(delivery.message),
            )
        except Exception as exc:  # noqa: BLE001 - becomes the message's error
            return exc
        if message is None:
            return TypeError(
                f"pre_execute of {type(middleware).__name__} returned None; "
                "it must return the message to execute",
            )
        delivery.message = message
    return None


def _log_start(delivery: Delivery) -> None:
    logger.debug("Received message: %s", delivery.message)
    logger.info("Executing %s", delivery)


class _Arrival:
    """A message on its way from the prefetcher to the runner."""

    __slots__ = ("delivery", "message", "slots")

    def __init__(
        self,
        message: bytes | AckableMessage,
        delivery: Delivery | Refused | None,
        slots: Slots,
    ) -> None:
        self.message = message
        # `None` where the message goes to a callback of somebody's own, undecoded.
        self.delivery = delivery
        self.slots = slots


_Queue: TypeAlias = "asyncio.Queue[_Arrival | None]"
_Stages: TypeAlias = "tuple[asyncio.Task[None], asyncio.Task[None]]"


def _raise_failure(stages: _Stages) -> None:
    """Raise what a stage failed with, in a group as a task group would."""
    errors = [
        error
        for stage in stages
        if stage.done() and not stage.cancelled() and (error := stage.exception())
    ]
    if errors:
        raise BaseExceptionGroup("The receiver stopped listening", errors)


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
