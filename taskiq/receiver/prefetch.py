"""Reading a broker: one unit of capacity before each read, until told to stop."""

from __future__ import annotations

import asyncio
import inspect
import logging
import sys
from typing import TYPE_CHECKING, Any

from taskiq.bulk import CANCELLED_AGAIN_AFTER
from taskiq.receiver.delivery import Delivery

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from taskiq.abc.broker import AsyncBroker
    from taskiq.acks import AckableMessage
    from taskiq.receiver.states import Unit

logger = logging.getLogger("taskiq.receiver.receiver")


class Prefetch:
    """Reads messages from a broker and hands them over, each with a unit of capacity.

    A message may give its unit back while it is handed over: the next one is read with
    it then, and the semaphore is not asked.

    :param slots: the semaphore of deliveries.
    :param unit: what one of its units is to the message that is read with it.
    :param hand_over: takes what was read.
    :param most: how many messages to read at most, `None` for no limit.
    :ivar is_reading: whether the broker was asked for a message and gave none yet.
    :ivar fetched: how many messages were read.
    :ivar lifecycle_error: the first error of stopping the broker's generator.
    """

    def __init__(
        self,
        broker: AsyncBroker,
        slots: asyncio.Semaphore,
        unit: Unit,
        hand_over: Callable[[Delivery], object],
        most: int | None,
    ) -> None:
        self._broker = broker
        self._slots = slots
        self._unit = unit
        # Whether the unit is acquired that the next message is read with.
        self._has_unit = False
        self._hand_over = hand_over
        self._most = most
        self._reader: asyncio.Task[Any] | None = None
        # Whether the reader waits for something a stop may interrupt.
        self._is_waiting = False
        self._interruptions = 0
        self._is_handing_over = False
        self._gives_way = False
        self.is_reading = False
        self.fetched = 0
        self.lifecycle_error: Exception | None = None

    def release(self) -> None:
        """Take a unit back."""
        if self._is_handing_over and not self._has_unit:
            self._has_unit = True
        else:
            self._slots.release()

    def give_way(self) -> None:
        """Let others have a turn before the next message is read.

        A broker that always has a message never lets anybody else run: batches would
        pile up to their limit before the first is called.
        """
        self._gives_way = True

    async def run(self, finish_event: asyncio.Event) -> None:
        """Read until `finish_event` is set, the limit is met or the broker ends.

        :raises Exception: what the broker raised instead of giving a message.
        """
        self._reader = asyncio.current_task()
        watcher = asyncio.ensure_future(self._stop_on(finish_event))
        try:
            if not finish_event.is_set():
                await self._read_all(finish_event)
        finally:
            watcher.cancel()
            if self._has_unit:
                self._slots.release()
                self._has_unit = False
            logger.debug("Stopping prefetching messages...")

    async def _stop_on(self, finish_event: asyncio.Event) -> None:
        await finish_event.wait()
        # One more turn of the loop: a message that arrived with the signal is on its
        # way to the reader, and is not to be lost.
        await asyncio.sleep(0)
        while self._is_waiting and self._reader is not None:
            self._interruptions += 1
            self._reader.cancel()
            # Some brokers lose an interruption, for example while they give a lock
            # back, and go on waiting for messages.
            await asyncio.sleep(CANCELLED_AGAIN_AFTER)

    async def _read_all(self, finish_event: asyncio.Event) -> None:
        messages = await _open(self._broker)
        # In one loop: a coroutine for each message would cost as much as reading it.
        try:
            while not finish_event.is_set():
                if self._most is not None and self.fetched >= self._most:
                    logger.info("Max number of tasks executed: %d.", self.fetched)
                    break
                self._is_waiting = True
                try:
                    if not self._has_unit:
                        await self._slots.acquire()
                        self._has_unit = True
                        if finish_event.is_set():
                            break
                    self.is_reading = True
                    message = await messages.__anext__()
                except StopAsyncIteration:
                    break
                except BaseException as exc:
                    if not self._is_answer_to_interruption(exc):
                        raise
                    break
                finally:
                    self._is_waiting = self.is_reading = False
                    if self._interruptions:
                        _forget_own_cancellations(self._interruptions)
                self._deliver(message)
                if self._gives_way:
                    self._gives_way = False
                    await asyncio.sleep(0)
        finally:
            await self._close(messages)

    def _deliver(self, message: bytes | AckableMessage) -> None:
        """Hand over what was read, with the unit that it was read with."""
        self.fetched += 1
        delivery = Delivery(self._broker, message)
        delivery.unit, delivery.source = self._unit, self
        self._has_unit, self._is_handing_over = False, True
        try:
            self._hand_over(delivery)
        finally:
            self._is_handing_over = False

    def _is_answer_to_interruption(self, error: BaseException) -> bool:
        """Whether `error` came of interrupting a read on purpose."""
        if not self._interruptions:
            return False
        if isinstance(error, Exception):
            self._record(error)
            return True
        return isinstance(error, asyncio.CancelledError)

    async def _close(self, messages: AsyncIterator[Any]) -> None:
        close = getattr(messages, "aclose", None)
        if close is None:
            return
        try:
            await close()
        except Exception as exc:  # noqa: BLE001 - recorded, and raised in the end
            self._record(exc)

    def _record(self, error: Exception) -> None:
        if self.lifecycle_error is None:
            self.lifecycle_error = error
        else:
            logger.error("An additional lifecycle error was found.", exc_info=error)


async def _open(broker: AsyncBroker) -> AsyncIterator[bytes | AckableMessage]:
    """Start listening: to a generator, or to any other async iterable."""
    listening: Any = broker.listen()
    if inspect.isawaitable(listening):
        listening = await listening
    messages: AsyncIterator[bytes | AckableMessage] = listening.__aiter__()
    return messages


def _forget_own_cancellations(count: int) -> None:
    """Tell asyncio that cancellations asked for by us have been dealt with."""
    task = asyncio.current_task()
    if sys.version_info >= (3, 11) and task is not None:
        for _ in range(count):
            task.uncancel()
