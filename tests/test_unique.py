"""Unique tasks: what is the same work, who holds the right to it, and how it ends."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import weakref
from collections.abc import Sequence
from datetime import date, datetime, timezone
from typing import Annotated, Any, ClassVar
from uuid import UUID

import pytest
from pydantic import AfterValidator, BaseModel

from taskiq import (
    AsyncBroker,
    BrokerMessage,
    Context,
    InMemoryBroker,
    NoResultError,
    SendTaskError,
    SimpleRetryMiddleware,
    TaskiqDepends,
    TaskiqMessage,
    TaskiqMiddleware,
    TaskiqResult,
    TaskiqScheduler,
)
from taskiq.acks import AcknowledgeType
from taskiq.brokers.inmemory_broker import InmemoryResultBackend
from taskiq.brokers.shared_broker import AsyncSharedBroker
from taskiq.exceptions import (
    SendManyError,
    TaskiqUniqueConfigError,
    UniqueError,
    UniqueKeyError,
    UniqueNotSupportedError,
)
from taskiq.receiver import Receiver
from taskiq.receiver.delivery import Delivery
from taskiq.receiver.states import MessageState
from taskiq.result_backends.dummy import DummyResultBackend
from taskiq.schedule_sources import LabelScheduleSource
from taskiq.scheduler.scheduled_task import ScheduledTask
from taskiq.testing import ManualClock
from taskiq.unique import Claim, InMemoryUniqueKeys, Unique
from tests.support.brokers import QueueBroker
from tests.support.virtual_time import run_virtual, virtual


class Broker(QueueBroker):
    """Keeps what is sent, and holds keys."""

    def __init__(self) -> None:
        super().__init__()
        self.keys = InMemoryUniqueKeys()
        self.with_unique_store(self.keys)
        self.with_result_backend(InmemoryResultBackend())
        self.refusal: Exception | None = None

    async def kick(self, message: BrokerMessage) -> None:
        if self.refusal is not None:
            raise self.refusal
        await super().kick(message)

    async def run(self) -> None:
        """Run what is queued, as a worker would."""
        receiver = Receiver(self, run_startup=False)
        messages = [self.ackable(message) for message in self.take_all()]
        await asyncio.gather(*map(receiver.callback, messages))


@pytest.fixture
def broker() -> Broker:
    return Broker()


# -- From the first message to its outcome ---------------------------------------------


@pytest.mark.parametrize("batch", [False, True])
async def test_what_is_queued_or_running_is_not_sent_again(batch: bool) -> None:
    broker = InMemoryBroker()
    runs: list[Any] = []
    started, may_end = asyncio.Event(), asyncio.Event()

    async def work(given: Any) -> None:
        runs.append(given)
        started.set()
        await may_end.wait()

    register: Any = broker.register_task  # its types want to know of `batch`
    task = register(work, "work", batch=batch, unique=True)
    first = await task.kiq(1)
    assert (await task.kiq(1)).task_id == first.task_id
    waiting = asyncio.create_task(broker.wait_all())
    await started.wait()
    second = await task.kiq(given=1)
    assert second.task_id == first.task_id
    may_end.set()
    await second.wait_result(timeout=5)
    await waiting
    assert len(runs) == 1

    third = await task.kiq(1)
    assert third.task_id != first.task_id
    await broker.wait_all()
    assert len(runs) == 2


async def test_other_arguments_are_other_work(broker: Broker) -> None:
    @broker.task(unique=True)
    async def pair(a: int, b: int = 0) -> None: ...

    @broker.task("other", unique=True)
    async def other(a: int, b: int = 0) -> None: ...

    await pair.kiq(1)
    await pair.kiq(1, 2)
    await pair.kiq(2, 1)
    await other.kiq(1)
    assert broker.queue.qsize() == 4
    await pair.kiq(1, b=2)
    await pair.kiq(b=2, a=1)
    assert broker.queue.qsize() == 4


async def test_a_key_function_says_what_is_the_same(broker: Broker) -> None:
    @broker.task(unique=lambda order, **_: order["id"])
    async def charge(order: dict[str, int], *, note: str = "") -> None: ...

    first = await charge.kiq({"id": 1, "total": 5})
    assert (await charge.kiq({"id": 1, "total": 6}, note="x")).task_id == first.task_id
    assert (await charge.kiq({"id": 2, "total": 5})).task_id != first.task_id


async def test_hooks_run_for_what_is_sent_alone(broker: Broker) -> None:
    told: list[str] = []

    class Hooks(TaskiqMiddleware):
        def pre_send(self, message: TaskiqMessage) -> TaskiqMessage:
            told.append("pre_send")
            return message

        def post_send(self, message: TaskiqMessage) -> None:
            told.append("post_send")

    broker.add_middlewares(Hooks())

    @broker.task(unique=True)
    async def work() -> None: ...

    await work.kiq()
    await work.kiq()
    assert told == ["pre_send", "post_send"]


async def test_who_has_waited_for_the_result_may_send_again(broker: Broker) -> None:
    """Also where the worker has saved it, and not released the key yet."""

    @broker.task(unique=True)
    async def work() -> None: ...

    first = await work.kiq()
    result: TaskiqResult[Any] = TaskiqResult(
        is_err=False, return_value=None, execution_time=0
    )
    await broker.result_backend.set_result(first.task_id, result)
    assert (await work.kiq()).task_id != first.task_id
    named = await work.kicker().with_task_id("nightly").kiq()
    assert named.task_id != "nightly"  # the second one holds the key


async def test_a_backend_that_keeps_nothing_frees_no_key(broker: Broker) -> None:
    broker.with_result_backend(DummyResultBackend())

    @broker.task(unique=True)
    async def work() -> None: ...

    first = await work.kiq()
    assert (await work.kiq()).task_id == first.task_id


async def test_an_old_result_of_a_given_id_frees_no_key(broker: Broker) -> None:
    @broker.task(unique=True)
    async def work() -> None: ...

    nightly = work.kicker().with_task_id("nightly")
    await nightly.kiq()
    await broker.run()
    await nightly.kiq()
    assert broker.queue.qsize() == 1
    assert (await nightly.kiq()).task_id == "nightly"
    assert (await work.kiq()).task_id == "nightly"
    assert broker.queue.qsize() == 1


# -- Many at once ----------------------------------------------------------------------


async def test_of_many_items_each_key_leaves_once(broker: Broker) -> None:
    @broker.task(unique=True)
    async def work(number: int) -> None: ...

    first = await work.kiq(0)
    handles = await work.kiq_many([0, 1, 2, 1, *range(3, 1200), 1])
    assert handles[0].task_id == first.task_id
    assert handles[1] is handles[3] is handles[-1]
    assert len({handle.task_id for handle in handles}) == 1200
    assert broker.queue.qsize() == 1200


async def test_of_many_senders_one_sends(broker: Broker) -> None:
    @broker.task(unique=True)
    async def work() -> None: ...

    handles = await asyncio.gather(*(work.kiq() for _ in range(50)))
    assert len({handle.task_id for handle in handles}) == 1
    assert broker.queue.qsize() == 1


# -- What is not sent ------------------------------------------------------------------


class Refusing(TaskiqMiddleware):
    def pre_send(self, message: TaskiqMessage) -> TaskiqMessage:
        raise ValueError("no")


@pytest.mark.parametrize("hook", [None, TaskiqMiddleware(), Refusing()])
async def test_what_cannot_be_sent_frees_its_key(
    broker: Broker,
    hook: TaskiqMiddleware | None,
) -> None:
    broker.refusal = OSError("gone")
    if hook is not None:
        broker.add_middlewares(hook)

    @broker.task(unique=True)
    async def work(number: int) -> None: ...

    with pytest.raises((SendTaskError, ValueError)) as caught:
        await work.kiq(1)
    assert not isinstance(caught.value, SendManyError)
    with pytest.raises(SendManyError) as many:
        await work.kiq_many([1, 2, 2])
    assert sorted(many.value.errors) == [0, 1, 2]
    assert len(broker.keys) == 0


async def test_a_sending_that_is_cancelled_frees_its_key(broker: Broker) -> None:
    sending = asyncio.Event()

    class Waiting(TaskiqMiddleware):
        async def pre_send(self, message: TaskiqMessage) -> TaskiqMessage:
            sending.set()
            await asyncio.Event().wait()
            return message

    broker.add_middlewares(Waiting())

    @broker.task(unique=True)
    async def work() -> None: ...

    task = asyncio.create_task(work.kiq())
    await sending.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(broker.keys) == 0


async def test_a_claim_that_is_cancelled_is_given_up(broker: Broker) -> None:
    class Slow(InMemoryUniqueKeys):
        async def claim_many(self, claims: Sequence[Claim]) -> Any:
            await super().claim_many(claims)
            claimed.set()
            await asyncio.Event().wait()

    claimed, slow = asyncio.Event(), Slow()
    broker.with_unique_store(slow)

    @broker.task(unique=True)
    async def work() -> None: ...

    task = asyncio.create_task(work.kiq())
    await claimed.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(slow) == 0


async def test_what_was_sent_holds_its_key_though_a_hook_fails(broker: Broker) -> None:
    class Failing(TaskiqMiddleware):
        def post_send(self, message: TaskiqMessage) -> None:
            raise ValueError("too late")

    broker.add_middlewares(Failing())

    @broker.task(unique=True)
    async def work() -> None: ...

    with pytest.raises(ValueError, match="too late"):
        await work.kiq()
    await work.kiq()
    assert broker.queue.qsize() == 1


async def test_a_store_that_fails_is_the_cause_and_nothing_is_sent(
    broker: Broker,
) -> None:
    class Broken(InMemoryUniqueKeys):
        async def claim(self, claim: Claim) -> str:
            await super().claim(claim)
            raise OSError("the answer is lost")

    broken = Broken()
    broker.with_unique_store(broken)

    @broker.task(unique=True)
    async def work() -> None: ...

    with pytest.raises(UniqueError) as caught:
        await work.kiq()
    assert isinstance(caught.value.__cause__, OSError)
    assert broker.queue.empty()
    assert len(broken) == 0


async def test_a_broker_without_a_store_says_what_to_add() -> None:
    broker = QueueBroker()

    @broker.task("my_task", unique=True)
    async def work() -> None: ...

    with pytest.raises(UniqueNotSupportedError) as caught:
        await work.kiq()
    assert "my_task" in str(caught.value)
    assert "with_unique_store" in str(caught.value)
    assert "DummyResultBackend" in str(caught.value)


@pytest.mark.parametrize("function", [lambda number: number.id, lambda _: None])
async def test_a_key_that_cannot_be_made_fails_its_own_message(
    broker: Broker,
    function: Any,
) -> None:
    @broker.task("my_task", unique=function)
    async def work(number: int) -> None: ...

    with pytest.raises(UniqueKeyError, match="my_task"):
        await work.kiq(1)
    assert broker.queue.empty()


# -- Outcomes --------------------------------------------------------------------------


async def failing(context: Context) -> None:
    raise ValueError


async def ends_without_result(context: Context) -> None:
    raise NoResultError


async def rejecting(context: Context) -> None:
    context.reject()


async def dead_lettering(context: Context) -> None:
    context.dead_letter()


async def requeueing(context: Context) -> None:
    if "X-Taskiq-requeue" not in context.message.labels:
        await context.requeue()


async def giving_back(context: Context) -> None:
    if "X-Taskiq-deliveries" not in context.message.labels:
        context.nack()


async def returning(context: Context) -> None: ...


@pytest.fixture(params=["plain", "batch", "bulk"])
def kind(request: pytest.FixtureRequest, broker: Broker) -> str:
    """What a task is; `bulk` is a batch task whose results are saved together."""
    if request.param == "bulk":
        broker.with_result_backend(Bulk())
    kind: str = request.param
    return kind


class Bulk(InmemoryResultBackend[Any]):
    async def set_results(self, results: Any) -> Any:
        for task_id, result in results.items():
            await self.set_result(task_id, result)
        return {}


@pytest.mark.parametrize(
    "function", [returning, failing, ends_without_result, rejecting, dead_lettering]
)
async def test_an_outcome_frees_the_key(
    broker: Broker, kind: str, function: Any
) -> None:
    await is_held_after_a_run(broker, function, kind, is_held=False)


@pytest.mark.parametrize("function", [requeueing, giving_back])
async def test_what_runs_again_holds_its_key(
    broker: Broker, kind: str, function: Any
) -> None:
    await is_held_after_a_run(broker, function, kind, is_held=True)


@pytest.mark.parametrize("leaves_result", [False, True])
async def test_a_retry_holds_the_key(
    broker: Broker, kind: str, leaves_result: bool
) -> None:
    broker.add_middlewares(
        SimpleRetryMiddleware(
            default_retry_label=True,
            default_retry_count=2,
            no_result_on_retry=not leaves_result,
        ),
    )
    await is_held_after_a_run(broker, failing, kind, is_held=True)


@pytest.mark.parametrize(
    "policy",
    [
        {"max_deliveries": 2, "on_failure": "requeue"},
        {"max_deliveries": 2, "on_failure": "dead_letter"},
    ],
)
async def test_policies_free_it_at_the_end(
    broker: Broker, kind: str, policy: dict[str, Any]
) -> None:
    is_requeue = policy["on_failure"] == "requeue"
    await is_held_after_a_run(broker, failing, kind, is_held=is_requeue, **policy)


@pytest.mark.parametrize("on_failure", ["ack", "dead_letter"])
async def test_what_must_not_be_given_back_once_more_frees_its_key(
    broker: Broker,
    kind: str,
    on_failure: str,
) -> None:
    policy = {"max_deliveries": 1, "on_failure": on_failure}
    await is_held_after_a_run(broker, giving_back, kind, is_held=False, **policy)


class Item:
    """What a worker makes of an item, as long as somebody keeps it."""

    alive: ClassVar[weakref.WeakSet[Item]] = weakref.WeakSet()

    def __init__(self, number: int) -> None:
        self.number = number
        self.alive.add(self)


async def test_of_what_runs_again_the_worker_keeps_nothing_but_the_key(
    broker: Broker,
) -> None:
    @broker.task(batch=True, batch_timeout=0.1, unique=True)
    async def work(
        items: list[Annotated[Any, AfterValidator(Item)]],
        context: Annotated[Context, TaskiqDepends()],
    ) -> None:
        assert len(Item.alive) == 2
        await requeueing(context)

    await work.kiq_many([1, 2])
    receiver = Receiver(broker, run_startup=False)
    messages = [broker.ackable(message) for message in broker.take_all()]
    await asyncio.gather(*map(receiver.callback, messages))
    gc.collect()
    assert not Item.alive
    assert len(broker.keys) == 2


async def is_held_after_a_run(
    broker: Broker,
    function: Any,
    kind: str,
    *,
    is_held: bool,
    **policy: Any,
) -> None:
    """Run messages, and see whether their keys are held; after a second run not."""

    async def work(
        number: int,
        context: Annotated[Context, TaskiqDepends()],
    ) -> None:
        await function(context)

    async def batch(
        numbers: list[int],
        context: Annotated[Context, TaskiqDepends()],
    ) -> None:
        await function(context)

    limits = {"batch": True, "batch_size": 2, "batch_timeout": 0.1}
    register: Any = broker.register_task  # its types want to know of `batch`
    own = (work, {}) if kind == "plain" else (batch, limits)
    task = register(own[0], "work", unique=True, **own[1], **policy)
    await task.kiq_many([1, 2])
    await broker.run()
    assert len(broker.keys) == 2 * is_held
    await broker.run()
    assert len(broker.keys) == 0


class Unsaving(InmemoryResultBackend[Any]):
    async def set_result(self, task_id: str, result: TaskiqResult[Any]) -> None:
        raise OSError("gone")


class UnsavingBulk(Unsaving, Bulk):
    async def set_results(self, results: Any) -> Any:
        raise OSError("gone")


@pytest.mark.parametrize("ack_type", AcknowledgeType)
@pytest.mark.parametrize("kind", ["plain", "batch", "bulk"])
async def test_a_result_that_is_not_saved_holds_the_key_of_what_comes_again(
    broker: Broker, kind: str, ack_type: AcknowledgeType
) -> None:
    """What was acknowledged before does not: nobody else would release its key."""
    broker.with_result_backend(UnsavingBulk() if kind == "bulk" else Unsaving())
    limits = {"batch": True, "batch_size": 2} if kind != "plain" else {}

    async def work(numbers: Any) -> None: ...

    register: Any = broker.register_task  # its types want to know of `batch`
    task = register(work, "work", unique=True, **limits)
    sender = task.kicker().with_labels(ack_type=ack_type)
    await sender.kiq_many([1, 2])
    await broker.run()
    comes_again = ack_type in {AcknowledgeType.WHEN_SAVED, AcknowledgeType.MANUAL}
    assert len(broker.acked) == (0 if comes_again else 2)
    assert len(broker.keys) == (2 if comes_again else 0)


async def test_what_is_left_holds_its_key(broker: Broker) -> None:
    """A worker that stops has begun it, and the broker delivers it again."""
    started = asyncio.Event()

    @broker.task(unique=True)
    async def work() -> None:
        started.set()
        await asyncio.Event().wait()

    await work.kiq()
    finish = asyncio.Event()
    receiver = Receiver(broker, run_startup=False, wait_tasks_timeout=0)
    listening = asyncio.create_task(receiver.listen(finish))
    await started.wait()
    finish.set()
    await listening
    assert broker.acked == []
    assert len(broker.keys) == 1


@pytest.mark.parametrize("batch", [False, True])
def test_who_runs_longer_than_its_ttl_holds_its_key_and_no_longer(batch: bool) -> None:
    """Also while it waits in a batch; what is over is renewed by nobody."""

    async def main() -> None:
        broker = Broker()
        broker.keys = InMemoryUniqueKeys(asyncio.get_running_loop().time)
        broker.with_unique_store(broker.keys)

        async def work(given: Any) -> None:
            await asyncio.sleep(20)

        limits = {"batch": True, "batch_timeout": 25} if batch else {}
        task: Any = broker.register_task
        task = task(work, "work", unique=True, unique_ttl=4, **limits)
        first = await task.kiq(1)
        finish = asyncio.Event()
        receiver = Receiver(broker, run_startup=False)
        listening = asyncio.create_task(receiver.listen(finish))
        for _ in range(19):
            await asyncio.sleep(1)
            assert (await task.kiq(1)).task_id == first.task_id
        await asyncio.sleep(30)
        assert len(broker.keys) == 0
        assert (await task.kiq(1)).task_id != first.task_id
        finish.set()
        await listening

    run_virtual(main())


@virtual
async def test_a_key_of_another_message_is_not_renewed() -> None:
    """It came after the time of the first was over: it waited too long."""
    now = asyncio.get_running_loop().time
    keys = InMemoryUniqueKeys(now)
    assert await keys.claim(Claim("key", "first", 1)) == "first"
    await asyncio.sleep(2)
    assert await keys.claim(Claim("key", "second", 3)) == "second"
    await keys.renew(Claim("key", "first", 60))
    await asyncio.sleep(3.1)
    assert await keys.claim(Claim("key", "third", 1)) == "third"
    await keys.release("key", "third")
    await keys.renew(Claim("key", "third", 60))
    assert len(keys) == 0


class Renewing(InMemoryUniqueKeys):
    """Counts the keys that it is told to renew."""

    def __init__(self) -> None:
        super().__init__()
        self.renewed = 0

    async def renew(self, claim: Claim) -> None:
        self.renewed += 1


class Holding:
    """A worker that has read messages of a unique task, by a clock moved by hand."""

    def __init__(self) -> None:
        self.broker, self.store = Broker(), Renewing()
        self.broker.with_unique_store(self.store)
        self.clock = ManualClock()
        self.receiver = Receiver(self.broker, run_startup=False)
        self.receiver.use_clock(self.clock)

    async def read(self, seconds: float, *, has_key: bool = True) -> Delivery:
        """Read a message whose key is held for so long, or has none."""

        async def work() -> None: ...

        name = f"work {seconds}"
        options: dict[str, Any] = {"unique": True, "unique_ttl": seconds}
        task = self.broker.register_task(work, name, **(options if has_key else {}))
        await task.kiq()
        self.broker.register_task(work, name, **options)
        [message] = self.broker.take_all()
        return self.receiver.runtime.delivery(self.broker.ackable(message))

    async def advance(self, seconds: float) -> int:
        """Let time go by; gives how many keys were renewed meanwhile."""
        before = self.store.renewed
        self.clock.advance(seconds)
        for _ in range(10):
            await asyncio.sleep(0)
        return self.store.renewed - before


async def test_keys_are_renewed_in_half_of_the_shortest_time() -> None:
    holding = Holding()
    held = [await holding.read(seconds) for seconds in (40, 4, 60)]
    assert await holding.advance(1.9) == 0
    assert await holding.advance(0.1) == len(held)
    assert await holding.advance(2) == len(held)


async def test_what_has_no_key_or_has_ended_is_renewed_by_nobody() -> None:
    """Though somebody keeps it."""
    holding = Holding()
    without = await holding.read(4, has_key=False)
    assert holding.clock.armed == 0
    ended = await holding.read(4)
    ended.end(MessageState.LEFT)
    assert await holding.advance(10) == 0
    assert holding.clock.armed == 0
    assert without.unique is None
    assert ended.unique is not None


async def test_a_worker_without_a_store_renews_nothing() -> None:
    """Who has sent the message has one."""
    holding = Holding()
    held = await holding.read(4)
    holding.broker.unique_store = None
    holding.broker.with_result_backend(DummyResultBackend())
    assert await holding.advance(10) == 0
    assert held.unique is not None


@virtual
async def test_a_store_that_cannot_renew_is_named_and_asked_again() -> None:
    class Shaky(InMemoryUniqueKeys):
        tries = 0

        async def renew(self, claim: Claim) -> None:
            self.tries += 1
            if self.tries == 1:
                raise OSError("gone")
            await super().renew(claim)

    broker, keys = Broker(), Shaky(asyncio.get_running_loop().time)
    broker.with_unique_store(keys)

    @broker.task(unique=True, unique_ttl=4)
    async def work() -> None:
        await asyncio.sleep(20)

    await work.kiq()
    await broker.run()
    assert keys.tries > 5
    assert broker.queue.empty()


def test_a_message_without_a_key_pays_for_no_hook(broker: Broker) -> None:
    @broker.task(unique=True)
    async def work() -> None: ...

    assert broker.middlewares == []


async def test_a_dead_letter_that_is_not_kept_holds_the_key(broker: Broker) -> None:
    class Store:
        queue = "dead"

        async def put(self, letter: object) -> None:
            raise OSError("gone")

    broker.with_dead_letters(store=Store())  # type: ignore[arg-type] # it fails

    @broker.task(unique=True)
    async def work() -> None:
        raise ValueError

    await work.kiq()
    await broker.run()
    assert broker.acked == []
    assert len(broker.keys) == 1


async def test_a_hook_that_mends_a_dead_letter_frees_its_key(broker: Broker) -> None:
    class Mending(TaskiqMiddleware):
        def post_execute(
            self, message: TaskiqMessage, result: TaskiqResult[Any]
        ) -> None:
            result.error = None

    broker.add_middlewares(Mending())

    @broker.task(unique=True, on_failure="dead_letter")
    async def work() -> None:
        raise ValueError

    handle = await work.kiq()
    await broker.run()
    assert broker.acked == [handle.task_id]
    assert len(broker.keys) == 0


async def test_other_hooks_have_ended_when_the_key_is_free(broker: Broker) -> None:
    held: list[int] = []

    class Looking(TaskiqMiddleware):
        def post_save(self, message: TaskiqMessage, result: TaskiqResult[Any]) -> None:
            held.append(len(broker.keys))

    broker.add_middlewares(Looking())

    @broker.task(unique=True)
    async def work() -> None: ...

    await work.kiq()
    await broker.run()
    assert held == [1]


@pytest.mark.parametrize("has_letters", [False, True])
async def test_a_message_of_no_task_frees_its_key(
    broker: Broker, has_letters: bool
) -> None:
    """It is dropped, or kept as a dead letter."""
    if has_letters:
        broker.with_dead_letters()

    @broker.task("work", unique=True)
    async def work() -> None: ...

    await work.kiq()
    broker.local_task_registry.clear()
    await broker.run()
    assert len(broker.keys) == 0


async def test_an_aborted_message_frees_its_key() -> None:
    broker = InMemoryBroker()

    @broker.task(batch=True, unique=True)
    async def work(numbers: list[int]) -> None: ...

    first = await work.kiq(1)
    await first.abort()
    await first.wait_result(timeout=5)
    second = await work.kiq(1)
    assert second.task_id != first.task_id
    await broker.wait_all()


async def test_a_store_that_cannot_release_is_named_and_harms_no_message(
    broker: Broker,
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Broken(InMemoryUniqueKeys):
        async def release(self, key: str, token: str) -> None:
            raise OSError("gone")

    broker.with_unique_store(Broken())

    @broker.task("my_task", unique=True)
    async def work() -> None: ...

    handle = await work.kiq()
    await broker.run()
    assert broker.acked == [handle.task_id]
    assert "Cannot release the unique key my_task:" in caplog.text


# -- Where tasks and schedules come from -----------------------------------------------


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> AsyncSharedBroker:
    """Give a shared broker whose tasks are gone after the test."""
    monkeypatch.setattr(AsyncBroker, "global_task_registry", {})
    return AsyncSharedBroker()


async def test_shared_tasks_are_unique_in_their_default_broker(
    shared: AsyncSharedBroker,
) -> None:
    broker = InMemoryBroker()
    may_end = asyncio.Event()

    @shared.task(unique=True)
    async def work() -> None:
        await may_end.wait()

    shared.default_broker(broker)
    first = await work.kiq()
    assert (await work.kiq()).task_id == first.task_id
    may_end.set()
    await broker.wait_all()
    assert (await work.kiq()).task_id != first.task_id
    await broker.wait_all()


async def test_a_worker_that_sends_nothing_releases_shared_tasks(
    shared: AsyncSharedBroker,
) -> None:
    client, worker = Broker(), Broker()
    worker.with_unique_store(client.keys)

    @shared.task(unique=True)
    async def work() -> None: ...

    await work.kicker().with_broker(client).kiq()
    await worker.startup()
    for message in client.take_all():
        await worker.kick(message)
    await worker.run()
    assert len(client.keys) == 0


async def test_a_schedule_sends_nothing_while_the_last_one_runs(
    broker: Broker,
) -> None:
    @broker.task("work", unique=True)
    async def work(number: int) -> None: ...

    scheduler = TaskiqScheduler(broker, [])
    source = LabelScheduleSource(broker)
    due = ScheduledTask(
        task_name="work", labels={}, args=[], kwargs={"number": 1}, cron="* * * * *"
    )
    await scheduler.on_ready(source, due)
    await scheduler.on_ready(source, due)
    assert broker.queue.qsize() == 1
    await work.kiq(1)
    assert broker.queue.qsize() == 1


def key_of() -> int:
    return 1


def test_a_task_that_is_registered_again_stays_unique(broker: Broker) -> None:
    @broker.task(unique=True, unique_ttl=5)
    async def work() -> None: ...

    again = broker.register_task(work)
    assert again.unique == work.unique == Unique(ttl=5.0)
    assert broker.register_task(work, unique_ttl=6).unique == Unique(ttl=6.0)
    assert broker.register_task(work, unique=key_of).unique == Unique(5.0, key_of)
    assert broker.register_task(work, unique=False).unique is None
    assert "unique" not in again.labels


async def a_coroutine(number: int) -> int:
    return number


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"unique": "id"}, "unique='id' is not allowed: it must be True, False or a"),
        ({"unique": a_coroutine}, "a function that is not async"),
        ({"unique": True, "unique_ttl": 0}, "a finite number of seconds over 0"),
        ({"unique": True, "unique_ttl": True}, "a finite number of seconds over 0"),
        ({"unique": True, "unique_ttl": float("inf")}, "a finite number"),
        ({"unique_ttl": 5}, "it needs unique="),
        ({"unique": False, "unique_ttl": 5}, "it needs unique="),
    ],
)
def test_what_cannot_work_is_refused(
    broker: Broker,
    arguments: dict[str, Any],
    text: str,
) -> None:
    with pytest.raises(TaskiqUniqueConfigError, match=text):
        broker.register_task(a_coroutine, "my_task", **arguments)


# -- Keys and their holders ------------------------------------------------------------


class Order(BaseModel):
    id: int


@dataclasses.dataclass
class Line:
    tags: set[int]


def test_keys_are_the_same_in_every_process() -> None:
    unique = Unique()
    moment = datetime(2026, 1, 1, tzinfo=timezone.utc)
    first = {"a": 1, "b": [moment, b"\xff", Order(id=1)]}
    second = {"b": [moment, b"\xff", Order(id=1)], "a": 1}
    assert unique.key("t", [first], {}) == unique.key("t", [second], {})
    # Of numbers that collide: a set gives them in the order they came in.
    lines = [dataclasses.asdict(Line(set(each))) for each in ([0, 8], [8, 0])]
    assert unique.key("t", [lines[0]], {}) == unique.key("t", [lines[1]], {})
    assert unique.key("t", [1], {}).startswith("t:")
    different: list[list[Any]] = [[1], ["1"], [[1]], [None], [], [True], [{"a": 1}]]
    assert len({unique.key("t", each, {}) for each in different}) == len(different)


@pytest.mark.parametrize(
    "mapping",
    [
        {date(2026, 1, 2): 1},
        {UUID(int=7): 1},
        {(1, 2): 1},
        {9: 1, 10: 2},
        {None: 0, 1: 1, 2.5: 2, "a": 3},
        {"nested": [{AcknowledgeType.MANUAL: 1, 0: 1}]},
    ],
)
async def test_a_dict_that_can_be_sent_is_the_same_as_what_is_sent(
    broker: Broker, mapping: Any
) -> None:
    @broker.task(unique=True)
    async def work(given: Any) -> None: ...

    first = await work.kiq(mapping)
    [raw] = broker.take_all()
    [sent] = broker.formatter.loads(raw.message).args
    assert (await work.kiq(sent)).task_id == first.task_id
    backwards = dict(reversed(mapping.items()))
    assert (await work.kiq(backwards)).task_id == first.task_id


async def test_who_holds_a_key_no_longer_releases_nobody_elses() -> None:
    now = 0.0
    keys = InMemoryUniqueKeys(clock=lambda: now)
    assert await keys.claim(Claim("key", "first", 5)) == "first"
    assert await keys.claim(Claim("key", "second", 5)) == "first"
    now = 5.0
    assert await keys.claim(Claim("key", "second", 5)) == "second"
    await keys.release("key", "first")
    assert await keys.claim(Claim("key", "third", 5)) == "second"
    await keys.release("key", "second")
    assert await keys.claim(Claim("key", "third", 5)) == "third"
