"""What is promised for batches, whatever the code of others does."""

from __future__ import annotations

import asyncio
import gc
import weakref
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import BaseModel

from taskiq import InMemoryBroker, TaskiqMessage, TaskiqMiddleware, TaskiqResult
from taskiq.serializers import PickleSerializer
from tests.support.brokers import QueueBroker
from tests.support.virtual_time import virtual
from tests.support.worker import CurrentBatch, Worker

if TYPE_CHECKING:
    from taskiq import BrokerMessage


class DownBroker(QueueBroker):
    """Sends until it is down; then each sending takes a second, and fails."""

    is_down = False

    async def kick(self, message: BrokerMessage) -> None:
        if self.is_down:
            await asyncio.sleep(1)
            raise ConnectionError("down")
        await super().kick(message)


@pytest.mark.parametrize("second", [None, 0])
@virtual
async def test_who_requeues_side_by_side_loses_nothing_when_sending_fails(
    second: int | None,
) -> None:
    broker = DownBroker()
    worker = Worker(broker=broker)

    @broker.task(batch=True, batch_size=2)
    async def work(items: list[int], batch: CurrentBatch) -> None:
        broker.is_down = True
        await asyncio.gather(batch.requeue(0), batch.requeue(second))

    await worker.send_to(work, 0, 1)
    await worker.run()
    await asyncio.sleep(2)  # what was still being sent has failed by now

    assert worker.errors.keys() == {"0", "1"}


@virtual
async def test_who_requeues_side_by_side_sends_each_message_once() -> None:
    worker = Worker(broker=QueueBroker())

    @worker.broker.task(batch=True, batch_size=3)
    async def work(items: list[int], batch: CurrentBatch) -> None:
        worker.broker.end()
        await asyncio.gather(batch.requeue(1), batch.requeue(), batch.requeue())

    await worker.send_to(work, 0, 1, 2)
    listening = worker.listen()
    await listening

    sent = [message.task_id for message in worker.broker.take_all()]
    assert sorted(sent) == ["0", "1", "2"]
    assert not worker.backend.results
    assert sorted(worker.broker.acked) == ["0", "1", "2"]


class Stopping(TaskiqMiddleware):
    """Does something with its broker in one hook."""

    def __init__(self, hook: str, method: str) -> None:
        super().__init__()
        self.hook = hook
        self.method = method

    async def _act(self, hook: str, message: TaskiqMessage) -> None:
        if hook == self.hook and message.task_name == "batched":
            await asyncio.sleep(1)  # others help to settle the batch then
            await getattr(self.broker, self.method)()

    async def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
        await self._act("pre_execute", message)
        return message

    async def post_execute(
        self,
        message: TaskiqMessage,
        result: TaskiqResult[Any],
    ) -> None:
        await self._act("post_execute", message)


@pytest.mark.parametrize("hook", ["pre_execute", "post_execute"])
@pytest.mark.parametrize("method", ["wait_all", "shutdown"])
@pytest.mark.parametrize("is_sent_by_task", [False, True])
@virtual
async def test_a_hook_of_a_batched_message_does_not_wait_for_itself(
    hook: str,
    method: str,
    is_sent_by_task: bool,
) -> None:
    broker = InMemoryBroker().with_middlewares(Stopping(hook, method))

    @broker.task("batched", batch=True, batch_size=1)
    async def batched(items: list[int]) -> str:
        return "done"

    @broker.task("sender")
    async def sender() -> None:
        await batched.kicker().with_task_id("id").kiq(1)

    if is_sent_by_task:
        await sender.kiq()
    else:
        await sender.original_func()
    result = await broker.result_backend.wait_for_result("id", timeout=100)

    if (hook, method) == ("pre_execute", "wait_all"):
        assert "it is one of them" in str(result.error)
    else:
        assert result.return_value == "done"
    await asyncio.wait_for(broker.wait_all(), 100)


class Item:
    """Something that can be seen to live."""


@pytest.mark.parametrize("is_batched", [False, True])
@pytest.mark.parametrize("has_begun_a_task", [False, True])
@virtual
async def test_nothing_keeps_the_items_of_a_call_that_has_ended(
    has_begun_a_task: bool,
    is_batched: bool,
) -> None:
    broker = InMemoryBroker(max_stored_results=0)
    broker.with_serializer(PickleSerializer())
    items_seen: list[weakref.ref[Item]] = []
    begun: list[asyncio.Task[None]] = []

    def see(*items: Any) -> None:
        items_seen.extend(weakref.ref(item) for item in items if item is not None)
        if has_begun_a_task:
            begun.append(asyncio.create_task(asyncio.sleep(1000)))

    if is_batched:

        @broker.task(task_name="work", batch=True, batch_size=3)
        async def work(items: list[Any]) -> None:
            see(*items)
    else:

        @broker.task(task_name="work")
        async def work_alone(item: Any) -> None:
            see(item)

    task = broker.find_task("work")
    assert task is not None
    for _ in range(3):
        await task.kiq(Item())
    await broker.wait_all()
    # The context of the last call is there until the next one.
    await task.kiq(None)
    await broker.wait_all()
    await asyncio.sleep(1)
    gc.collect()

    assert [item() for item in items_seen] == [None, None, None]
    for each in begun:
        each.cancel()
    await asyncio.gather(*begun, return_exceptions=True)


class Open(BaseModel, extra="allow"):
    """Takes fields it does not name."""


@virtual
async def test_fields_that_a_model_does_not_name_are_told_apart_by_type_too() -> None:
    broker = InMemoryBroker()
    calls: list[list[int]] = []

    @broker.task(batch=True, batch_size=4)
    async def work(items: list[int], extra: Open) -> None:
        calls.append(items)

    values: list[Any] = [1, True, 1.0, 1]
    for number, value in enumerate(values):
        await work.kiq(number, Open.model_validate({"x": value}))
    await broker.wait_all()

    assert sorted(calls) == [[0, 3], [1], [2]]


@virtual
async def test_a_shared_value_may_raise_anything_when_it_is_copied() -> None:
    class Uncopyable:
        def __deepcopy__(self, memo: dict[int, Any]) -> Any:
            raise SystemExit("copied")

    worker = Worker()
    shared = Uncopyable()

    @worker.broker.task(batch=True, batch_size=3)
    async def work(items: list[int]) -> Any:
        return shared

    await worker.send_to(work, 0, 1, 2)
    await worker.run()

    worker.assert_settled_once(3)
    assert all(value is shared for value in worker.values.values())
