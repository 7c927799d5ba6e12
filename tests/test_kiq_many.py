"""Sending many messages in one go: what leaves, what comes back, and what fails."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import json
import pickle
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskiq import (
    BrokerMessage,
    InMemoryBroker,
    SendManyError,
    TaskiqMessage,
    TaskiqMiddleware,
    TaskiqResult,
    async_shared_broker,
    gather_results,
)
from taskiq.exceptions import SendTaskError
from taskiq.kicker import AsyncKicker
from tests.support.brokers import QueueBroker
from tests.support.virtual_time import virtual


class BulkBroker(QueueBroker):
    """Sends many at once.

    :ivar sizes: how many messages each call had.
    :ivar refused: why messages of some ids are not sent.
    """

    def __init__(self) -> None:
        super().__init__()
        numbers = iter(range(1_000_000))
        self.id_generator = lambda: f"id-{next(numbers)}"
        self.sizes: list[int] = []
        self.refused: dict[str, Exception] = {}

    async def kick_many(
        self,
        messages: Sequence[BrokerMessage],
    ) -> list[Exception | None]:
        self.sizes.append(len(messages))
        outcomes = [self.refused.get(message.task_id) for message in messages]
        for message, outcome in zip(messages, outcomes, strict=True):
            if outcome is None:
                self.queue.put_nowait(message)
        return outcomes


@pytest.fixture
def broker() -> BulkBroker:
    return BulkBroker()


@dataclasses.dataclass
class Point:
    x: int


# -- What is sent ------------------------------------------------------------------


class Stamping(TaskiqMiddleware):
    """Puts a label on each message, and notes its hooks."""

    def __init__(self) -> None:
        super().__init__()
        self.journal: list[str] = []

    async def pre_send(self, message: TaskiqMessage) -> TaskiqMessage:
        self.journal.append(f"pre {message.task_id}")
        return message.model_copy(update={"labels": {**message.labels, "stamp": "x"}})

    def post_send(self, message: TaskiqMessage) -> None:
        self.journal.append(f"post {message.task_id} {message.labels['stamp']}")


async def test_each_message_is_byte_for_byte_the_one_kiq_sends() -> None:
    one_by_one, at_once = BulkBroker(), BulkBroker()
    sent: list[list[BrokerMessage]] = []
    for broker in (one_by_one, at_once):
        broker.add_middlewares(Stamping())

        @broker.task("name", priority=3, raw=b"\x00")
        async def add(point: Any, y: Any = None, *, z: Any = 1) -> None: ...

        kicker = add.kicker().with_labels(queue="slow")
        if broker is one_by_one:
            await kicker.kiq(Point(1))
            await kicker.kiq("ü", [2], z={"a": None})
            await kicker.kiq(point=(1, 2))
        else:
            await kicker.kiq_many(
                [
                    add.call(Point(1)),
                    add.call("ü", [2], z={"a": None}),
                    add.call(point=(1, 2)),
                ],
            )
        sent.append(broker.take_all())

    assert sent[0] == sent[1]
    assert at_once.sizes == [3]


async def test_an_item_is_the_only_argument_whatever_it_is(broker: BulkBroker) -> None:
    @broker.task
    async def take(item: Any) -> None: ...

    items: list[Any] = [1, "two", [3], (4, 5), {"six": 6}, None, Point(7)]
    await take.kiq_many(items)

    loaded = [broker.formatter.loads(each.message) for each in broker.take_all()]
    assert [message.args for message in loaded] == [
        [1],
        ["two"],
        [[3]],
        [[4, 5]],
        [{"six": 6}],
        [None],
        [{"x": 7}],
    ]
    assert all(message.kwargs == {} for message in loaded)


async def test_a_batch_task_gets_its_items_and_each_handle_its_result() -> None:
    broker = InMemoryBroker()
    calls: list[list[int]] = []

    @broker.task(batch=True, batch_size=50)
    async def double(numbers: list[int]) -> list[int]:
        calls.append(numbers)
        return [number * 2 for number in numbers]

    results = await gather_results(await double.kiq_many(range(100)), timeout=30)

    assert calls == [list(range(50)), list(range(50, 100))]
    assert [result.return_value for result in results] == list(range(0, 200, 2))


async def test_hooks_run_for_each_message_and_post_send_after_it_left(
    broker: BulkBroker,
) -> None:
    stamping = Stamping()
    broker.add_middlewares(stamping)
    broker.refused["id-1"] = ConnectionError("refused")
    kicker: AsyncKicker[..., Any] = AsyncKicker("name", broker, {})

    with pytest.raises(SendManyError):
        await kicker.kiq_many([1, 2, 3])

    assert stamping.journal == [
        "pre id-0",
        "pre id-1",
        "pre id-2",
        "post id-0 x",
        "post id-2 x",
    ]


class Marking(TaskiqMiddleware):
    """Keeps the id of a message in the context, from one hook to the other."""

    def __init__(self) -> None:
        super().__init__()
        self.marked: ContextVar[str] = ContextVar("marked", default="nothing")
        self.seen: list[tuple[str, str]] = []

    async def pre_send(self, message: TaskiqMessage) -> TaskiqMessage:
        assert self.marked.get() == "nothing"
        self.marked.set(message.task_id)
        await asyncio.sleep(3 - message.args[0])
        return message

    async def post_send(self, message: TaskiqMessage) -> None:
        self.seen.append((message.task_id, self.marked.get()))


@virtual
async def test_hooks_of_a_message_share_a_context_and_messages_do_not() -> None:
    marking = Marking()
    broker = BulkBroker().with_middlewares(marking)
    kicker: AsyncKicker[..., Any] = AsyncKicker("name", broker, {})

    handles = await kicker.kiq_many(range(3))

    assert sorted(marking.seen) == [(f"id-{n}", f"id-{n}") for n in range(3)]
    assert marking.marked.get() == "nothing"
    # In the order of the items, though the hooks of the last one were done first.
    assert [handle.task_id for handle in handles] == ["id-0", "id-1", "id-2"]
    assert [message.task_id for message in broker.take_all()] == [
        handle.task_id for handle in handles
    ]
    assert asyncio.get_running_loop().time() == 3


class Cancelling(TaskiqMiddleware):
    """Cancels itself, before or after the sending."""

    def pre_send(self, message: TaskiqMessage) -> TaskiqMessage:
        if message.args == ["before"]:
            raise asyncio.CancelledError
        return message

    async def post_send(self, message: TaskiqMessage) -> None:
        if message.args == ["after"]:
            raise asyncio.CancelledError


@virtual
async def test_a_hook_that_cancels_itself_fails_its_own_item() -> None:
    broker = BulkBroker().with_middlewares(Cancelling())
    kicker: AsyncKicker[..., Any] = AsyncKicker("name", broker, {})
    with pytest.raises(SendManyError) as caught:
        await kicker.kiq_many(["before", "after", "fine"])
    assert sorted(caught.value.errors) == [0, 1]
    assert sorted(caught.value.handles) == [1, 2]
    assert "a hook cancelled the sending" in str(caught.value)


@virtual
async def test_cancelling_the_sending_ends_its_hooks() -> None:
    marking = Marking()
    broker = BulkBroker().with_middlewares(marking)
    kicker: AsyncKicker[..., Any] = AsyncKicker("name", broker, {})
    sending = asyncio.create_task(kicker.kiq_many(range(3)))
    await asyncio.sleep(1.5)
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    assert len(asyncio.all_tasks()) == 1
    assert broker.take_all() == []


async def test_handles_come_in_the_order_of_the_items(broker: BulkBroker) -> None:
    @broker.task
    async def text(number: int) -> str:
        return str(number)

    handles = await text.kiq_many(range(3))

    assert [handle.task_id for handle in handles] == ["id-0", "id-1", "id-2"]
    assert all(handle.result_backend is broker.result_backend for handle in handles)
    assert all(handle.return_type is str for handle in handles)
    assert await text.kiq_many([]) == []
    assert broker.sizes == [3]


async def test_a_shared_task_goes_to_the_default_broker(
    broker: BulkBroker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(async_shared_broker, "global_task_registry", {})
    monkeypatch.setattr(async_shared_broker, "_default_broker", broker)

    @async_shared_broker.task
    async def shared(number: int) -> None: ...

    await shared.kiq_many([1, 2])
    assert len(broker.take_all()) == 2


async def test_one_id_for_many_messages_is_refused(broker: BulkBroker) -> None:
    kicker: AsyncKicker[..., Any] = AsyncKicker("name", broker, {})
    with pytest.raises(ValueError, match="name under the one id 'mine'"):
        await kicker.with_task_id("mine").kiq_many([1])
    assert len(await kicker.with_task_id(None).kiq_many([1])) == 1


# -- Very many ---------------------------------------------------------------------


async def test_a_long_iterator_leaves_in_chunks_while_others_run(
    broker: BulkBroker,
) -> None:
    kicker: AsyncKicker[..., Any] = AsyncKicker("name", broker, {})
    taken = 0
    turns = 0
    progress: list[tuple[int, int]] = []

    def items() -> Iterator[int]:
        nonlocal taken
        for number in range(3500):
            taken += 1
            yield number

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    other = asyncio.create_task(others())
    handles = await kicker.kiq_many(
        items(),
        on_progress=lambda done: progress.append((done, taken)),
    )
    other.cancel()

    assert len(handles) == 3500
    assert broker.sizes == [1000, 1000, 1000, 500]
    assert progress == [(1000, 1000), (2000, 2000), (3000, 3000), (3500, 3500)]
    assert turns >= 3


async def test_on_progress_may_be_async(broker: BulkBroker) -> None:
    kicker: AsyncKicker[..., Any] = AsyncKicker("name", broker, {})
    told: list[int] = []

    async def tell(done: int) -> None:
        await asyncio.sleep(0)
        told.append(done)

    await kicker.kiq_many(range(1001), on_progress=tell)
    assert told == [1000, 1001]


async def test_what_on_progress_raises_ends_the_sending(broker: BulkBroker) -> None:
    kicker: AsyncKicker[..., Any] = AsyncKicker("name", broker, {})

    def stop(done: int) -> None:
        raise StopAsyncIteration(done)

    with pytest.raises(StopAsyncIteration, match="1000"):
        await kicker.kiq_many(range(5000), on_progress=stop)
    assert len(broker.take_all()) == 1000


# -- What fails --------------------------------------------------------------------


class Picky(TaskiqMiddleware):
    """Fails before or after the sending of some items."""

    def pre_send(self, message: TaskiqMessage) -> TaskiqMessage:
        if message.args == ["refused"]:
            raise PermissionError("not this one")
        return None if message.args == ["lost"] else message  # type: ignore[return-value] # a mistake

    def post_send(self, message: TaskiqMessage) -> None:
        if message.args == ["unnoticed"]:
            raise OSError("cannot note it")


async def test_the_error_names_the_argument_that_cannot_be_serialised(
    broker: BulkBroker,
) -> None:
    kicker: AsyncKicker[..., Any] = AsyncKicker("name", broker, {})
    expected = r'first for item 1: .* args\[0\]\["rows"\]\[0\] is of type object'
    with pytest.raises(SendManyError, match=expected):
        await kicker.kiq_many(["good", {"rows": [object()]}])


async def test_each_item_fails_for_itself_and_the_error_tells_all(
    broker: BulkBroker,
) -> None:
    broker.add_middlewares(Picky())
    broker.refused["id-1"] = ConnectionError("connection lost")
    kicker: AsyncKicker[..., Any] = AsyncKicker("name", broker, {})

    with pytest.raises(SendManyError) as caught:
        await kicker.kiq_many(
            ["good", "id-1", object(), Point, "refused", "lost", "unnoticed", "fine"],
        )

    error = caught.value
    assert isinstance(error, SendTaskError)
    assert str(error) == (
        "Sending 8 messages of task name failed for 6 of them, "
        "first for item 1: ConnectionError('connection lost')"
    )
    assert (error.task_name, error.total, error.failed) == ("name", 8, 6)
    assert {n: type(each).__name__ for n, each in error.errors.items()} == {
        1: "SendTaskError",
        2: "UnsendableArgumentError",
        3: "ValueError",
        4: "PermissionError",
        5: "SendTaskError",
        6: "OSError",
    }
    assert str(error.errors[1].__cause__) == "connection lost"
    assert "object" in str(error.errors[2].__cause__)
    assert "pre_send of Picky returned None" in str(error.errors[5].__cause__)
    # What was sent, even if somebody could not be told of it.
    assert {n: each.task_id for n, each in error.handles.items()} == {
        0: "id-0",
        6: "id-6",
        7: "id-7",
    }
    assert error.unsent == [1, 2, 3, 4, 5]


class BrokenBroker(QueueBroker):
    """Fails as a whole, or loses count."""

    def __init__(self, outcome: Any) -> None:
        super().__init__()
        self.outcome = outcome

    async def kick_many(
        self,
        messages: Sequence[BrokerMessage],
    ) -> list[Exception | None]:
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return list(self.outcome)


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [
        (OSError("no route"), "no route"),
        ([None], "kick_many of BrokenBroker must return a list of 2 outcomes"),
    ],
)
async def test_a_broker_that_fails_as_a_whole_has_sent_nothing(
    outcome: Any,
    reason: str,
) -> None:
    kicker: AsyncKicker[..., Any] = AsyncKicker("name", BrokenBroker(outcome), {})
    with pytest.raises(SendManyError) as caught:
        await kicker.kiq_many([1, 2])
    assert caught.value.unsent == [0, 1]
    assert all(reason in str(e.__cause__) for e in caught.value.errors.values())


async def test_a_task_may_fail_with_the_error_and_its_result_is_kept(
    broker: BulkBroker,
) -> None:
    broker.refused["id-1"] = ConnectionError("connection lost")
    kicker: AsyncKicker[..., Any] = AsyncKicker("name", broker, {})
    with pytest.raises(SendManyError) as caught:
        await kicker.kiq_many([1, 2])

    result: TaskiqResult[None] = TaskiqResult(
        is_err=True,
        return_value=None,
        execution_time=0,
        error=caught.value,
    )
    stored = json.dumps(result.model_dump(mode="json"))
    for restored in (
        TaskiqResult[None].model_validate(json.loads(stored)),
        pickle.loads(pickle.dumps(result)),  # noqa: S301 - our own
    ):
        assert isinstance(restored.error, SendManyError)
        assert str(restored.error) == str(caught.value)
        assert (restored.error.failed, restored.error.unsent) == (1, [])
    assert "test_kiq_many" not in stored
    assert repr(caught.value) == f"taskiq.exceptions.SendManyError({caught.value})"
    assert copy.copy(caught.value).unsent == [1]


# -- Any mix of failures -----------------------------------------------------------


@given(
    fates=st.lists(st.sampled_from(["sent", "refused", "unserialisable"]), max_size=30)
)
def test_no_handle_is_ever_that_of_another_item(fates: list[str]) -> None:
    broker = BulkBroker()
    broker.refused = {
        f"id-{n}": ConnectionError()
        for n, fate in enumerate(fates)
        if fate == "refused"
    }
    items = [object() if fate == "unserialisable" else fate for fate in fates]
    kicker: AsyncKicker[..., Any] = AsyncKicker("name", broker, {})

    try:
        handles = dict(enumerate(asyncio.run(kicker.kiq_many(items))))
        unsent: list[int] = []
    except SendManyError as error:
        handles, unsent = error.handles, error.unsent

    assert unsent == [n for n, fate in enumerate(fates) if fate != "sent"]
    assert {n: handle.task_id for n, handle in handles.items()} == {
        n: f"id-{n}" for n, fate in enumerate(fates) if fate == "sent"
    }
    assert [message.task_id for message in broker.take_all()] == [
        handle.task_id for handle in handles.values()
    ]


def test_a_call_shows_its_arguments() -> None:
    kicker: AsyncKicker[..., Any] = AsyncKicker("name", QueueBroker(), {})
    assert repr(kicker.call(1, "a", b=None)) == "call(1, 'a', b=None)"
