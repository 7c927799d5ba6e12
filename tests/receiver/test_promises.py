"""What is promised for plain tasks, whatever the code of others does."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import TYPE_CHECKING, Any

import pytest

from taskiq import Context, InMemoryBroker, TaskiqMessage, TaskiqMiddleware
from tests.support.brokers import QueueBroker
from tests.support.virtual_time import virtual
from tests.support.worker import CurrentContext, Worker

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from taskiq import AckableMessage, BrokerMessage


@virtual
async def test_an_error_in_answer_to_a_cancellation_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    error = ConnectionError("closed")

    class Failing(QueueBroker):
        async def listen(self) -> AsyncGenerator[bytes | AckableMessage, None]:
            try:
                async for message in super().listen():
                    yield message
            finally:
                raise error

    listening = Worker(broker=Failing()).listen()
    await asyncio.sleep(1)
    listening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await listening

    [record] = [each for each in caplog.records if each.levelno == logging.ERROR]
    assert record.exc_info is not None
    assert record.exc_info[1] is error


class SlowBroker(QueueBroker):
    """Takes a second to send; fails as often as it is told to.

    :ivar failures: how many sendings are still to fail.
    :ivar sent: how many have not.
    """

    def __init__(self, failures: int) -> None:
        super().__init__()
        self.failures = failures
        self.sent = 0

    async def kick(self, message: BrokerMessage) -> None:
        await asyncio.sleep(1)
        if self.failures:
            self.failures -= 1
            raise ConnectionError("down")
        self.sent += 1


@pytest.mark.parametrize(("failures", "is_sent"), [(0, True), (2, False)])
@virtual
async def test_a_task_that_requeues_side_by_side_ends_when_that_has_ended(
    failures: int,
    is_sent: bool,
) -> None:
    broker = SlowBroker(failures)
    worker = Worker(broker=broker)

    @broker.task
    async def work(context: CurrentContext) -> None:
        await asyncio.gather(context.requeue(), context.requeue())

    result = await worker.deliver(work)
    sent = broker.sent
    await asyncio.sleep(5)

    assert sent == broker.sent == is_sent
    assert (result is None) is is_sent


@virtual
async def test_a_hook_that_returns_no_message_fails_that_message_alone() -> None:
    class Wrong(TaskiqMiddleware):
        def pre_execute(self, message: TaskiqMessage) -> Any:
            return message.model_dump() if message.task_id == "1" else message

    worker = Worker(Wrong(), is_recording=False)

    @worker.broker.task
    async def work(number: int) -> None:
        """Do nothing."""

    await worker.send_to(work, 0, 1, 2)
    await worker.run()

    worker.assert_settled_once(3)
    assert "pre_execute of Wrong returned dict" in str(worker.errors["1"])


@virtual
async def test_a_task_sees_its_own_context_whatever_another_thread_runs() -> None:
    class Shared(dict[Any, Any]):
        """As if another thread's call came in between."""

        def copy(self) -> dict[Any, Any]:
            return dict.fromkeys(self, "another message")

    worker = Worker()
    worker.broker.custom_dependency_context = Shared()

    @worker.broker.task
    async def work(context: CurrentContext) -> bool:
        return isinstance(context, Context)

    result = await worker.deliver(work)

    assert result is not None
    assert result.return_value is True


def test_loops_of_many_threads_come_and_go_on_one_broker() -> None:
    broker = InMemoryBroker()
    broker.add_middlewares(TaskiqMiddleware())

    @broker.task(batch=True, batch_size=100)
    async def work(items: list[int]) -> int:
        return len(items)

    async def send() -> int:
        handles = [await work.kiq(number) for number in range(3)]
        broker.receiver.batch_statistics()
        await broker.wait_all()
        return sum([(await handle.get_result()).return_value for handle in handles])

    sums: list[int] = []

    def serve() -> None:
        sums.extend(asyncio.run(send()) for _ in range(20))

    threads = [threading.Thread(target=serve) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sums == [9] * 160
