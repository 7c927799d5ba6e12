"""Sending one message with many items: what leaves, and what comes back."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import pickle
from typing import Any

import pytest
from pydantic import BaseModel

from taskiq import (
    AsyncBroker,
    AsyncTaskiqChunk,
    BrokerMessage,
    InMemoryBroker,
    SendTaskError,
    TaskiqMessage,
    TaskiqMiddleware,
    TaskiqResult,
    async_shared_broker,
    gather_results,
)
from taskiq.abc.serializer import TaskiqSerializer
from taskiq.chunks import MOST_ITEMS
from taskiq.compat import model_dump, model_validate
from taskiq.exceptions import (
    ChunkItemError,
    UnsendableArgumentError,
    UnstorableResultError,
)
from taskiq.kicker import AsyncKicker
from taskiq.serializers import (
    CBORSerializer,
    JSONSerializer,
    MSGPackSerializer,
    ORJSONSerializer,
    PickleSerializer,
)
from tests.support.brokers import QueueBroker
from tests.support.recorders import RecordingBackend
from tests.support.virtual_time import virtual
from tests.support.worker import Worker

SERIALIZERS = [
    JSONSerializer,
    ORJSONSerializer,
    MSGPackSerializer,
    CBORSerializer,
    PickleSerializer,
]


@pytest.fixture
def broker() -> QueueBroker:
    return QueueBroker().with_id_generator(lambda: "an id")


def batch_task(broker: AsyncBroker, **labels: Any) -> Any:
    task: Any = broker.task

    @task("work", batch=True, **labels)  # type: ignore[untyped-decorator]
    async def work(items: list[int], unit: str = "", *, scale: int = 1) -> list[int]:
        return items

    return work


# -- What is sent --------------------------------------------------------------------


def content(broker: QueueBroker) -> dict[str, Any]:
    [message] = broker.take_all()
    loaded: dict[str, Any] = json.loads(message.message)
    return loaded


async def test_it_is_one_message_that_nobody_can_take_for_another(
    broker: QueueBroker,
) -> None:
    task = batch_task(broker, queue="slow")
    handle = await task.kiq_chunk([1, 2, 3])
    assert handle.task_id == "an id"
    assert content(broker) == {
        "task_id": "an id",
        "task_name": "work",
        "labels": {"queue": "slow", "batch_chunk": "3"},
        "labels_types": {"queue": 3, "batch_chunk": 2},
        "args": [],
        "kwargs": {"batch_chunk.items": [1, 2, 3]},
    }


async def test_the_other_arguments_are_sent_once(broker: QueueBroker) -> None:
    await batch_task(broker).kiq_chunk((n for n in range(2)), "m", scale=4)
    assert content(broker)["kwargs"] == {
        "batch_chunk.items": [0, 1],
        "batch_chunk.args": ["m"],
        "scale": 4,
    }


class Point(BaseModel):
    x: int


@dataclasses.dataclass
class Pair:
    a: int


async def test_items_are_prepared_as_arguments_of_kiq_are(broker: QueueBroker) -> None:
    @broker.task("any", batch=True)
    async def work(items: list[Any]) -> None: ...

    await work.kiq_chunk([Point(x=1), Pair(a=2)])
    assert content(broker)["kwargs"]["batch_chunk.items"] == [{"x": 1}, {"a": 2}]


async def test_the_kicker_gives_labels_and_an_id(broker: QueueBroker) -> None:
    kicker = batch_task(broker).kicker().with_labels(priority=5).with_task_id("mine")
    handle = await kicker.kiq_chunk([1])
    assert handle.task_id == "mine"
    sent = content(broker)
    assert sent["labels"] == {"priority": "5", "batch_chunk": "1"}
    assert kicker.labels == {"priority": 5}  # it may send something else


async def test_a_sender_without_the_function_sends_it_too(broker: QueueBroker) -> None:
    kicker: AsyncKicker[..., Any] = AsyncKicker("elsewhere", broker, {})
    await kicker.kiq_chunk([1, 2])
    assert content(broker)["kwargs"] == {"batch_chunk.items": [1, 2]}


async def test_a_shared_task_sends_it_through_its_broker(
    broker: QueueBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(async_shared_broker, "global_task_registry", {})
    monkeypatch.setattr(async_shared_broker, "_default_broker", broker)

    @async_shared_broker.task("shared chunk", batch=True)
    async def work(items: list[int]) -> list[int]:
        return items

    await work.kiq_chunk([1])
    assert content(broker)["task_name"] == "shared chunk"


class Hooks(TaskiqMiddleware):
    def __init__(self) -> None:
        super().__init__()
        self.journal: list[str] = []

    def pre_send(self, message: TaskiqMessage) -> TaskiqMessage:
        self.journal.append("pre_send")
        return message

    def post_send(self, message: TaskiqMessage) -> None:
        self.journal.append("post_send")

    def on_send_error(self, message: TaskiqMessage, exception: BaseException) -> None:
        self.journal.append(f"on_send_error {type(exception).__name__}")


async def test_hooks_of_senders_run_once(broker: QueueBroker) -> None:
    hooks = Hooks()
    broker.add_middlewares(hooks)
    await batch_task(broker).kiq_chunk([1, 2, 3])
    assert hooks.journal == ["pre_send", "post_send"]


class Lost(QueueBroker):
    async def kick(self, message: BrokerMessage) -> None:
        raise ConnectionError("lost")


@pytest.mark.parametrize("has_hooks", [False, True])
async def test_a_broker_that_cannot_send_it_is_told_of_as_by_kiq(
    has_hooks: bool,
) -> None:
    broker, hooks = Lost(), Hooks()
    if has_hooks:
        broker.add_middlewares(hooks)
    with pytest.raises(SendTaskError) as raised:
        await batch_task(broker).kiq_chunk([1, 2])
    assert type(raised.value) is SendTaskError
    assert isinstance(raised.value.__cause__, ConnectionError)
    if has_hooks:
        assert hooks.journal == ["pre_send", "on_send_error SendTaskError"]


# -- What is refused -----------------------------------------------------------------


async def refused(sending: Any, kind: type[Exception], match: str) -> None:
    with pytest.raises(kind, match=match):
        await sending


async def test_what_cannot_work_is_refused_before_it_is_sent(
    broker: QueueBroker,
) -> None:
    task = batch_task(broker)

    @broker.task("plain")
    async def plain(item: int) -> None: ...

    unique: Any = batch_task(broker.with_unique_store(None), unique=True)  # type: ignore[arg-type]
    many = range(MOST_ITEMS + 1)
    await refused(task.kiq_chunk(5), TypeError, r"takes an iterable of items, .* 5 of")
    await refused(task.kiq_chunk([1, [2, 3]]), TypeError, r"^items\[1\] of work\.kiq")
    await refused(task.kiq_chunk([1], color=1), TypeError, r"unexpected.*'color'")
    await refused(task.kiq_chunk(many), ValueError, r"has 10000 items at most")
    await refused(plain.kiq_chunk([1]), TypeError, r"plain is no batch task.*kiq_many")
    await refused(unique.kiq_chunk([1]), TypeError, r"unique task work.*kiq_many")
    assert not broker.take_all()


async def test_an_item_that_cannot_be_serialised_is_named(broker: QueueBroker) -> None:
    @broker.task("any", batch=True)
    async def work(items: list[Any], unit: Any) -> None: ...

    await refused(
        work.kiq_chunk([1, {"deep": [object()]}], ""),
        UnsendableArgumentError,
        r"items\[1\]\[\"deep\"\]\[0\] is of type object",
    )
    await refused(
        work.kiq_chunk([1], object()),
        UnsendableArgumentError,
        r"args\[0\] is of type object",
    )
    await refused(work.kiq_chunk([Pair], ""), ValueError, "Cannot serialize types")


# -- What comes back -----------------------------------------------------------------


class Storing(RecordingBackend):
    """Keeps results as bytes, as servers do.

    :param serializer: what makes them.
    """

    def __init__(self, serializer: TaskiqSerializer) -> None:
        super().__init__()
        self.serializer = serializer
        self.stored: dict[str, bytes] = {}

    async def set_result(self, task_id: str, result: TaskiqResult[Any]) -> None:
        self.stored[task_id] = self.serializer.dumpb(model_dump(result))

    async def is_result_ready(self, task_id: str) -> bool:
        return task_id in self.stored

    async def get_result(
        self, task_id: str, with_logs: bool = False
    ) -> TaskiqResult[Any]:
        loaded = self.serializer.loadb(self.stored[task_id])
        return model_validate(TaskiqResult[Any], loaded)


class OwnError(Exception):
    """One with arguments of its own."""


def own_error(number: int) -> OwnError:
    error = OwnError("no", number)
    error.__cause__ = KeyError("why")
    return error


@pytest.mark.parametrize("kind", SERIALIZERS)
def test_errors_of_items_survive_every_serializer(kind: Any) -> None:
    @virtual
    async def main() -> None:
        worker = Worker(backend=Storing(kind()))

        @worker.broker.task(batch=True, batch_size=3)
        async def move(points: list[Point]) -> list[Point | Exception]:
            return [own_error(p.x) if p.x % 2 else Point(x=10 * p.x) for p in points]

        handle = await move.kiq_chunk([Point(x=0), Point(x=1), Point(x=2)])
        await worker.run()
        result = await handle.wait_result(timeout=5)
        zero, one, two = result.return_value
        assert (zero.return_value, two.return_value) == (Point(x=0), Point(x=20))
        assert one.is_err
        assert type(one.error) is OwnError
        assert one.error.args == ("no", 1)
        assert isinstance(one.error.__cause__, KeyError)
        [gathered] = await gather_results([handle], timeout=5)
        assert gathered.return_value[2].return_value == Point(x=20)

    main()


def test_results_of_items_survive_pickling() -> None:
    error = ChunkItemError(task_id="id", index=3, wish="to give it back")
    item: TaskiqResult[None] = TaskiqResult(
        is_err=True, return_value=None, execution_time=0, error=error
    )
    whole: TaskiqResult[Any] = TaskiqResult(
        is_err=False, return_value=[item], execution_time=0
    )
    [back] = pickle.loads(pickle.dumps(whole)).return_value  # noqa: S301 - our own
    assert isinstance(back.error, ChunkItemError)
    assert (back.error.index, back.error.wish) == (3, "to give it back")


def test_a_value_that_cannot_be_stored_takes_no_other_along(
    caplog: pytest.LogCaptureFixture,
) -> None:
    @virtual
    async def main() -> None:
        worker = Worker(backend=Storing(JSONSerializer()))

        @worker.broker.task(batch=True, batch_size=3)
        async def work(items: list[int]) -> list[object]:
            return [object() if item == 1 else item for item in items]

        handle = await work.kiq_chunk(range(3))
        await worker.run()
        zero, one, two = (await handle.wait_result(timeout=5)).return_value
        assert (zero.return_value, two.return_value) == (0, 2)
        assert isinstance(one.error, UnstorableResultError)
        assert one.error.path == "item 1: return_value"

    main()
    assert "cannot be stored" in caplog.text


@virtual
async def test_a_value_of_another_type_is_kept_and_takes_no_other_along() -> None:
    broker = InMemoryBroker()

    @broker.task(batch=True)
    async def work(items: list[int]) -> list[int]:
        return [item if item else "zero" for item in items]  # type: ignore[misc]

    handle = await work.kiq_chunk([0, 1])
    await broker.wait_all()
    result = await handle.wait_result(timeout=5)
    assert [each.return_value for each in result.return_value] == ["zero", 1]
    broker.executor.shutdown()


async def test_what_is_no_list_of_results_is_kept_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    handle: AsyncTaskiqChunk[Any] = AsyncTaskiqChunk("id", RecordingBackend())
    values: list[Any] = [5, [5], [{"no": "result"}]]
    for value in values:
        result: TaskiqResult[Any] = TaskiqResult(
            is_err=False, return_value=value, execution_time=0
        )
        assert handle.converted(result).return_value == value
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 3


@virtual
async def test_a_result_in_memory_stays_while_its_handle_is_alive() -> None:
    broker = InMemoryBroker(max_stored_results=0)
    task = batch_task(broker)
    handles = await asyncio.gather(*(task.kiq_chunk([n]) for n in range(5)))
    await broker.wait_all()
    results = await gather_results(handles, timeout=5)
    assert [result.return_value[0].return_value for result in results] == [*range(5)]
    broker.executor.shutdown()
