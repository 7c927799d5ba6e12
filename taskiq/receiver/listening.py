"""One `listen` of a receiver: reading, starting in turn, and the end of both."""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import TYPE_CHECKING, TypeAlias

import anyio

from taskiq.batch import FlushReason
from taskiq.bulk import cancel_all
from taskiq.receiver.prefetch import Prefetch
from taskiq.receiver.states import MessageState, Unit
from taskiq.receiver.tasks import wait_for_all

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

if TYPE_CHECKING:
    from collections.abc import Iterable

    from taskiq.receiver.delivery import Delivery
    from taskiq.receiver.receiver import Receiver
    from taskiq.receiver.runtime import Runtime

    Queue: TypeAlias = asyncio.Queue[Delivery | None]

logger = logging.getLogger("taskiq.receiver.receiver")


class Listening:
    """What goes on from the start of a `listen` to its end.

    :param receiver: whose stages run, `prefetcher` and `runner`.
    :param runtime: that of the running loop.
    :ivar prefetch: reads the broker.
    """

    def __init__(self, receiver: Receiver, runtime: Runtime) -> None:
        self._receiver = receiver
        self._runtime = runtime
        self._queue: Queue = asyncio.Queue()
        self._has_own_callback = receiver.has_own_callback
        unit = Unit.READ if receiver.sem is None else Unit.DELIVERY
        self.prefetch = Prefetch(
            receiver.broker,
            receiver.sem_prefetch,
            unit,
            self._hand_over,
            receiver.max_tasks_to_execute or None,
        )
        self._stages: tuple[asyncio.Task[None], ...] = ()

    async def run(self, finish_event: asyncio.Event) -> None:
        """Listen until told to finish, and end what was read.

        :raises BaseExceptionGroup: with the error that the broker raised.
        :raises Exception: an error raised by stopping the broker's generator.
        """
        runtime, receiver = self._runtime, self._receiver
        if not finish_event.is_set():
            receiver.stop.forget()
        runtime.open(self)
        self._stages = (
            asyncio.ensure_future(receiver.prefetcher(self._queue, finish_event)),
            asyncio.ensure_future(receiver.runner(self._queue)),
        )
        try:
            await asyncio.wait(self._stages, return_when=asyncio.FIRST_COMPLETED)
            self._raise_failure()
            await self._finish()
        except BaseException as exc:
            # Who stops this waits for what runs; after a failure it runs on meanwhile.
            is_stop = isinstance(exc, asyncio.CancelledError)
            with anyio.CancelScope(shield=True):
                await self._stop(
                    (receiver.wait_tasks_timeout or 0) if is_stop else None
                )
            self._log_lifecycle_error()
            raise
        await self._stop(0)
        if self.prefetch.lifecycle_error is not None:
            raise self.prefetch.lifecycle_error

    async def read_broker(self, queue: Queue, finish_event: asyncio.Event) -> None:
        """Read the broker, and let the runner end when that has ended."""
        try:
            await self.prefetch.run(finish_event)
        finally:
            self._runtime.pacing.when_empty(lambda: queue.put_nowait(None))

    def _hand_over(self, delivery: Delivery) -> None:
        """Send what was read on its way: to its batch, or to the runner."""
        runtime = self._runtime
        if not self._has_own_callback:
            runtime.admission.read(delivery)
            if delivery.is_batched:
                runtime.begin_batched(delivery)
                return
            if delivery.is_paced:
                runtime.hold_back(delivery, self._queue.put_nowait)
                return
        self._queue.put_nowait(delivery)

    async def start_in_turn(self, queue: Queue) -> None:
        """Start what waits in the queue, each with an execution slot, in order."""
        runtime = self._runtime
        is_own = self._has_own_callback
        begin = runtime.begin_callback if is_own else runtime.begin
        while (delivery := await queue.get()) is not None:
            semaphore = self._receiver.sem
            try:
                if semaphore is not None:
                    await semaphore.acquire()
                    delivery.hold(Unit.EXECUTION, semaphore)
            except BaseException:
                # Not started: it is discarded with the others in the queue.
                queue.put_nowait(delivery)
                raise
            if delivery.is_paced:
                if delivery.state is MessageState.PACED:
                    delivery.move(MessageState.ADMITTING)
                runtime.pacing.started(delivery)
                delivery.is_paced = False
            try:
                begin(delivery)
            except Exception:
                logger.warning(
                    "Discarding 1 prefetched delivery during Receiver cleanup.",
                )
                delivery.leave()
                raise
        logger.debug("The runner is stopped.")

    async def _finish(self) -> None:
        """Run what was read to its end, within `wait_tasks_timeout`."""
        runtime = self._runtime
        runtime.batcher.drain(FlushReason.SHUTDOWN)
        if count := len(runtime.tasks):
            tasks = "1 running task" if count == 1 else f"{count} running tasks"
            logger.info("Waiting for %s to complete.", tasks, extra={"tasks": count})
        stop = self._receiver.stop
        left = stop.left(self._receiver.wait_tasks_timeout)
        stop.ask()
        with anyio.move_on_after(left):
            await wait_for_all(self._stages[1:], None)
            self._raise_failure()
            await runtime.wait_idle(FlushReason.SHUTDOWN)
        logger.debug("Stopped waiting for running tasks.")

    async def _stop(self, grace: float | None) -> None:
        """Leave nothing behind: no stage, no queued or buffered message, no task.

        :param grace: seconds for what runs. What is not done by then is cancelled and
            stays unacknowledged. `None` lets it run on, beside who listens next.
        """
        runtime = self._runtime
        try:
            await self._stop_stages()
            if grace is not None:
                await wait_for_all(runtime.tasks.of(lambda _: True), grace)
        finally:
            if grace is not None:
                await runtime.tasks.cancel()
                await runtime.paces.close()
                runtime.leases.close()
                if runtime.aborting is not None:
                    await runtime.aborting.close()
            runtime.close()

    async def _stop_stages(self) -> None:
        running = [stage for stage in self._stages if not stage.done()]
        try:
            await cancel_all(running)
        finally:
            for error in _errors_of(running):
                logger.error("The receiver failed while it stopped.", exc_info=error)
            self._discard()

    def _discard(self) -> None:
        """Let go of what was read and not started: the broker delivers it again."""
        discarded = 0
        while not self._queue.empty():
            delivery = self._queue.get_nowait()
            if delivery is not None:
                delivery.end(MessageState.LEFT)
                discarded += 1
        for delivery in self._runtime.pacing.abandon():
            delivery.end(MessageState.LEFT)
            discarded += 1
        if discarded:
            what = "delivery" if discarded == 1 else "deliveries"
            logger.warning(
                "Discarding %d prefetched %s during Receiver cleanup.",
                discarded,
                what,
            )
        self._runtime.abandon()

    def _raise_failure(self) -> None:
        """Raise what a stage failed with, in a group as a task group would."""
        if errors := _errors_of(self._stages):
            raise BaseExceptionGroup("The receiver stopped listening", errors)

    def _log_lifecycle_error(self) -> None:
        error = self.prefetch.lifecycle_error
        if error is not None:
            logger.error(
                "A Receiver listener lifecycle error was recorded.",
                exc_info=error,
            )


def _errors_of(stages: Iterable[asyncio.Task[None]]) -> list[BaseException]:
    """List what those of the stages that have ended failed with."""
    return [
        error
        for stage in stages
        if stage.done() and not stage.cancelled() and (error := stage.exception())
    ]
