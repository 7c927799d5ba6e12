"""Acknowledging takes its time: side by side, and not for ever."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from taskiq import AckableMessage, BrokerMessage
from taskiq.receiver import Receiver
from taskiq.receiver.batching import SETTLED_AT_ONCE
from taskiq.receiver.cancellation import start_task, uninterrupted, within
from taskiq.receiver.delivery import ACK_PATIENCE
from tests.support.brokers import QueueBroker
from tests.support.recorders import RecordingBackend
from tests.support.virtual_time import run_virtual

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from taskiq import AsyncTaskiqDecoratedTask


class AwayBroker(QueueBroker):
    """Acknowledges once its server answers.

    :ivar answers: set while it does.
    :ivar asked: ids whose acknowledgement was begun.
    """

    def __init__(self) -> None:
        super().__init__()
        self.answers = asyncio.Event()
        self.asked: list[str] = []
        self.with_result_backend(RecordingBackend())

    def _ackable(self, message: BrokerMessage) -> AckableMessage:
        async def ack() -> None:
            self.asked.append(message.task_id)
            await self.answers.wait()
            self.acked.append(message.task_id)

        return AckableMessage(data=message.message, ack=ack)

    async def send(self, task: AsyncTaskiqDecoratedTask[..., Any], count: int) -> None:
        for item in range(count):
            await task.kicker().with_task_id(f"id {item}").kiq(item)

    def listen_to_all(self, **options: Any) -> asyncio.Task[None]:
        self.end()
        receiver = Receiver(self, run_startup=False, **options)
        return asyncio.ensure_future(receiver.listen(asyncio.Event()))


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(1000):  # turns of the event loop
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never came")


def test_the_messages_of_a_batch_are_acknowledged_side_by_side() -> None:
    async def main() -> None:
        broker = AwayBroker()

        size = SETTLED_AT_ONCE

        @broker.task("add", batch=True, batch_size=size)
        async def add(numbers: list[int]) -> int:
            return sum(numbers)

        await broker.send(add, size)
        listening = broker.listen_to_all(max_async_tasks=size)
        await until(lambda: len(broker.asked) == size)
        assert broker.acked == []
        broker.answers.set()
        await listening
        assert sorted(broker.acked) == sorted(f"id {item}" for item in range(size))

    run_virtual(main())


def test_acknowledgements_that_hang_are_given_up_and_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        broker = AwayBroker()

        @broker.task("add", batch=True, batch_size=2, batch_max_buffered=2)
        async def add(numbers: list[int]) -> int:
            return sum(numbers)

        await broker.send(add, 6)
        began = asyncio.get_running_loop().time()
        await broker.listen_to_all(max_async_tasks=1)
        took = asyncio.get_running_loop().time() - began
        # There is room for one batch at a time, and its acknowledgements wait together.
        assert took == pytest.approx(3 * ACK_PATIENCE)

    run_virtual(main())
    complaints = [record.getMessage() for record in caplog.records if record.exc_info]
    assert complaints == [
        f"Cannot acknowledge task add with ID id {item}." for item in range(6)
    ]


def test_a_plain_task_gives_its_slot_back_though_its_acknowledgement_hangs() -> None:
    async def main() -> None:
        broker = AwayBroker()
        calls: list[int] = []

        @broker.task("note")
        async def note(number: int) -> None:
            calls.append(number)

        await broker.send(note, 3)
        await broker.listen_to_all(max_async_tasks=1)
        assert calls == [0, 1, 2]

    run_virtual(main())


def test_an_acknowledgement_in_time_is_left_alone() -> None:
    async def main() -> None:
        broker = AwayBroker()

        @broker.task("note")
        async def note(number: int) -> None: ...

        await broker.send(note, 1)
        listening = broker.listen_to_all(max_async_tasks=1)
        await asyncio.sleep(ACK_PATIENCE - 1)
        broker.answers.set()
        await listening
        assert broker.acked == ["id 0"]

    run_virtual(main())


# -- The limit itself ---------------------------------------------------------------


async def stubborn() -> str:
    try:
        await asyncio.sleep(100)
    except asyncio.CancelledError:
        return "done all the same"
    return "done"


def in_a_task(work: Coroutine[Any, Any, Any]) -> Any:
    """Run `work` in a task that counts its cancellations, as the receiver does."""

    async def main() -> Any:
        return await start_task(asyncio.get_running_loop(), work)

    return run_virtual(main())


def test_what_waits_for_nothing_ends_at_once_and_sets_no_timer() -> None:
    async def done() -> int:
        return 3

    async def failed() -> None:
        raise ValueError("no")

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.call_later = None  # type: ignore[assignment, method-assign]  # fails
        assert await within(1, done()) == 3
        with pytest.raises(ValueError, match="no"):
            await within(1, failed())
        del loop.call_later

    in_a_task(main())


def test_errors_while_it_waits_reach_it_and_it_may_go_on() -> None:
    async def persistent() -> list[str]:
        seen: list[str] = []
        for _ in range(3):
            refused = asyncio.get_running_loop().create_future()
            refused.get_loop().call_later(1, refused.set_exception, OSError("away"))
            try:
                await refused
            except OSError as exc:
                seen.append(str(exc))
        await asyncio.sleep(1)
        return seen

    async def main() -> None:
        assert await within(10, persistent()) == ["away"] * 3

    in_a_task(main())


def test_what_ends_in_spite_of_its_cancellation_has_ended() -> None:
    async def main() -> None:
        assert await within(1, stubborn()) == "done all the same"
        # Nothing is left of the cancellation: neither now nor at the next await.
        await asyncio.sleep(1)
        await assert_next_limit_works()

    async def assert_next_limit_works() -> None:
        with pytest.raises(TimeoutError, match="no end within 1 s"):
            await within(1, asyncio.sleep(100))

    in_a_task(main())


def test_a_cancellation_from_outside_is_one() -> None:
    async def main() -> None:
        task = start_task(
            asyncio.get_running_loop(),
            within(10, asyncio.sleep(100)),
        )
        await asyncio.sleep(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run_virtual(main())


def test_a_cancellation_from_outside_wins_over_the_limit() -> None:
    async def slow_to_end() -> None:
        try:
            await asyncio.sleep(100)
        finally:
            await asyncio.sleep(5)

    async def main() -> None:
        task = start_task(asyncio.get_running_loop(), within(10, slow_to_end()))
        await asyncio.sleep(12)  # past the limit, in the cleanup
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run_virtual(main())


def test_a_cancellation_reaches_what_only_lets_others_run() -> None:
    async def yielding() -> None:
        for _ in range(100):
            await asyncio.sleep(0)

    async def main() -> None:
        task = start_task(asyncio.get_running_loop(), within(10, yielding()))
        await asyncio.sleep(0)  # it has begun
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run_virtual(main())


def test_a_cleanup_ends_before_the_cancellation_that_came_meanwhile() -> None:
    async def main() -> None:
        cleaned: list[str] = []

        async def cleanup() -> None:
            await asyncio.sleep(3)
            cleaned.append("up")

        task = asyncio.ensure_future(uninterrupted(cleanup()))
        await asyncio.sleep(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert cleaned == ["up"]

    run_virtual(main())
