"""What becomes of messages that fail, from the decorator to the dead letter."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

import pytest

from taskiq import (
    AckableMessage,
    BatchContext,
    BrokerMessage,
    Context,
    InMemoryBroker,
    SimpleRetryMiddleware,
    TaskiqDepends,
    TaskiqMiddleware,
    TaskiqResult,
)
from taskiq.acks import AcknowledgeType
from taskiq.dead_letters import DeadLetter, InMemoryDeadLetters
from taskiq.exceptions import (
    DeadLetteredError,
    MaxDeliveriesError,
    NoResultError,
    UnknownTaskError,
)
from taskiq.message import TaskiqMessage
from taskiq.policies import Action, Ending
from taskiq.receiver import Receiver
from tests.support.recorders import RecordingBackend


class Told(TaskiqMiddleware):
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.endings: list[str] = []
        self.letters: list[DeadLetter] = []

    def on_ending(self, message: TaskiqMessage | None, ending: Ending) -> None:
        self.endings.append(ending.action.value)

    def on_dead_letter(self, letter: DeadLetter) -> None:
        self.letters.append(letter)


def letters_of(broker: InMemoryBroker) -> list[DeadLetter]:
    store = broker.dead_letter_store
    assert isinstance(store, InMemoryDeadLetters)
    return store.letters


async def test_a_failure_is_put_aside_with_its_bytes() -> None:
    told = Told()
    broker = InMemoryBroker().with_middlewares(told)

    @broker.task("plain", on_failure="dead_letter")
    async def plain(number: int) -> None:
        raise ValueError(f"no {number}")

    handle = await plain.kicker().with_labels(own="1").kiq(7)
    assert isinstance((await handle.wait_result(timeout=5)).error, ValueError)
    await broker.wait_all()
    [letter] = letters_of(broker)
    message = broker.formatter.loads(letter.data)
    assert (message.task_id, message.args) == (handle.task_id, [7])
    assert message.labels == {"own": "1"}
    assert letter.labels["X-Taskiq-dead-error"] == "ValueError: no 7"
    assert (letter.reason, letter.deliveries, letter.task_name) == ("error", 1, "plain")
    assert told.letters == [letter]
    assert told.endings == ["dead_lettered"]


async def test_what_fails_is_delivered_again_up_to_the_limit() -> None:
    told = Told()
    broker = InMemoryBroker().with_middlewares(told)
    runs: list[int] = []

    @broker.task(max_deliveries=3, on_failure="requeue")
    async def failing(number: int) -> None:
        runs.append(number)
        raise ValueError

    handle = await failing.kiq(1)
    await broker.wait_all()
    assert isinstance((await handle.get_result()).error, ValueError)
    assert runs == [1] * 3
    assert told.endings == ["given_back", "given_back", "dead_lettered"]
    assert [letter.deliveries for letter in letters_of(broker)] == [3]


async def test_a_retry_comes_before_the_policy() -> None:
    """The first failures are none yet, with a trace in the result and without."""
    for no_result in (True, False):
        told = Told()
        retry = SimpleRetryMiddleware(3, no_result_on_retry=no_result)
        broker = InMemoryBroker().with_middlewares(retry, told).with_dead_letters()

        @broker.task(retry_on_error=True)
        async def failing() -> None:
            raise ValueError

        await failing.kiq()
        await broker.wait_all()
        assert told.endings == ["sent_again", "sent_again", "dead_lettered"]
        assert len(letters_of(broker)) == 1


@pytest.mark.parametrize("on_failure", ["ack", "requeue", "dead_letter"])
async def test_what_a_task_requeues_has_not_failed(on_failure: Any) -> None:
    """Whatever it says of failures: its copy may."""
    told = Told()
    broker = InMemoryBroker().with_middlewares(told)
    runs: list[int] = []

    @broker.task(max_deliveries=3, on_failure=on_failure)
    async def work(ctx: Context = TaskiqDepends()) -> str:  # noqa: B008
        runs.append(1)
        if len(runs) == 1:
            await ctx.requeue()
        return "done"

    handle = await work.kiq()
    await broker.wait_all()
    assert (await handle.get_result()).return_value == "done"
    assert (told.endings, letters_of(broker)) == (["sent_again"], [])


async def test_each_member_of_a_batch_ends_for_itself() -> None:
    """Also messages of equal items, which the function sees once."""
    broker = InMemoryBroker()
    calls: list[list[str]] = []

    @broker.task(
        batch=True, batch_size=6, batch_coalesce=str, max_deliveries=2, batch_timeout=0
    )
    async def work(items: list[str], ctx: BatchContext = TaskiqDepends()) -> list[str]:  # noqa: B008
        calls.append(items)
        for index, item in enumerate(items):
            if item == "dead":
                ctx.dead_letter(index, reason="no such customer")
            elif item == "later":
                ctx.nack(index, delay=0)
        return items

    handles = [
        await work.kiq(item) for item in ("fine", "dead", "dead", "later", "later", "x")
    ]
    await broker.wait_all()
    results = [await handle.get_result() for handle in handles]
    assert calls[0] == ["fine", "dead", "later", "x"]
    assert [result.return_value for result in results if not result.is_err] == [
        "fine",
        "x",
    ]
    kinds = [type(result.error) for result in results[1:5]]
    assert kinds == [DeadLetteredError] * 2 + [MaxDeliveriesError] * 2
    letters = {letter.task_id: letter for letter in letters_of(broker)}
    assert set(letters) == {handle.task_id for handle in handles[1:5]}
    assert "no such customer" in letters[handles[1].task_id].error
    assert letters[handles[3].task_id].reason == "max_deliveries"


async def test_a_plain_task_gives_its_message_back_or_puts_it_aside() -> None:
    broker = InMemoryBroker()
    runs: list[int] = []

    @broker.task
    async def work(ctx: Context = TaskiqDepends()) -> None:  # noqa: B008
        runs.append(1)
        if len(runs) < 3:
            ctx.nack()
        ctx.dead_letter(reason="enough")

    handle = await work.kiq()
    await broker.wait_all()
    assert isinstance((await handle.get_result()).error, DeadLetteredError)
    [letter] = letters_of(broker)
    assert (letter.reason, letter.deliveries, len(runs)) == ("requested", 3, 3)
    for delay in (-1, 4_294_968, math.nan, True):
        with pytest.raises(ValueError, match="delay must be a number of seconds"):
            Context(TaskiqMessage.model_construct(), broker).nack(delay=delay)


class Bare(InMemoryBroker):
    """A broker that can acknowledge, and nothing else."""

    message_capabilities: Any = ()

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[BrokerMessage] = []
        self.acked: list[bytes] = []

    async def kick(self, message: BrokerMessage) -> None:
        self.sent.append(message)

    def equip_message(self, message: Any) -> Any:
        return message

    async def listen(self) -> AsyncGenerator[Any, None]:
        yield

    def delivery(self, data: bytes, **more: Any) -> AckableMessage:
        return AckableMessage(data=data, ack=lambda: self.acked.append(data), **more)


class Naming(InMemoryDeadLetters):
    """Names letters by a number of its own, as servers do, or by theirs."""

    def __init__(self, number: str | None) -> None:
        super().__init__()
        self.number = number

    async def put(self, letter: DeadLetter) -> str | None:
        self.letters.append(replace(letter, id=self.number or letter.id))
        return self.number


@pytest.mark.parametrize("number", ["7-0", None])
async def test_the_log_and_the_hooks_name_a_letter_as_its_place_does(
    number: str | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    told, store = Told(), Naming(number)
    broker = Bare().with_middlewares(told).with_dead_letters(store=store)
    task = broker.task("task")(_fail)
    await task.kiq()
    await Receiver(broker).callback(broker.delivery(broker.sent[0].message))
    assert told.letters == store.letters
    assert f"kept in memory as {number or store.letters[0].id}" in caplog.text


class Failing(InMemoryDeadLetters):
    async def put(self, letter: DeadLetter) -> None:
        raise ConnectionError("the server is away")


@pytest.mark.parametrize("ack_type", AcknowledgeType)
async def test_what_cannot_be_put_aside_is_not_acknowledged(
    ack_type: AcknowledgeType, caplog: pytest.LogCaptureFixture
) -> None:
    """Unless it was when it came; what was put aside is, whenever that is else."""
    for store, is_acked in ((Failing(), False), (InMemoryDeadLetters(), True)):
        broker = Bare().with_dead_letters(store=store)
        task = broker.task("task")(_fail)
        await task.kiq()
        message = broker.delivery(broker.sent[0].message)
        await Receiver(broker, ack_type=ack_type).callback(message)
        is_first = ack_type is AcknowledgeType.WHEN_RECEIVED
        assert bool(broker.acked) is (is_acked or is_first)
        assert len(broker.acked) < 2
    assert "not acknowledged: ConnectionError: the server is away" in caplog.text


async def test_nothing_that_nobody_can_run_is_lost() -> None:
    """With dead letters; without, it is acknowledged as ever."""
    told = Told()
    store = InMemoryDeadLetters()
    broker = Bare().with_middlewares(told)
    broker.task("task")(_fail)
    wire = '{"task_id":"1","task_name":"%s","args":[],"kwargs":{},%s}'
    datas = [
        b"\xff not to be read",
        (wire % ("unknown", '"labels":{}')).encode(),
        (wire % ("task", '"labels":{"n":"x"},"labels_types":{"n":2}')).encode(),
        (wire % ("task", '"labels":{"ack_type":"never"}')).encode(),
    ]
    for data in datas:
        await Receiver(broker).callback(broker.delivery(data))
    assert broker.acked == datas
    assert told.letters == []
    broker.with_dead_letters(store=store, on_failure="ack")
    broker.task("task", on_failure="dead_letter")(_fail)
    for data in datas:
        await Receiver(broker).callback(broker.delivery(data))
    assert broker.acked == datas * 2
    assert [(each.data, each.reason) for each in store.letters] == list(
        zip(
            datas,
            ("unparsable", "unknown_task", "bad_label", "bad_label"),
            strict=True,
        )
    )


async def test_a_result_that_nobody_gets_of_what_was_put_aside_is_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store, backend = InMemoryDeadLetters(), RecordingBackend()
    backend.failing = {"1"}
    broker = Bare().with_dead_letters(store=store).with_result_backend(backend)
    data = b'{"task_id":"1","task_name":"unknown","args":[],"kwargs":{},"labels":{}}'
    await Receiver(broker).callback(broker.delivery(data))
    assert [letter.data for letter in store.letters] == broker.acked == [data]
    assert "Cannot set the result of a message that nobody can run" in caplog.text
    backend.failing.clear()
    await Receiver(broker).callback(broker.delivery(data))
    assert isinstance(backend.results["1"].error, UnknownTaskError)


async def test_a_message_delivered_too_often_is_not_run() -> None:
    store = InMemoryDeadLetters()
    broker = Bare()
    broker.dead_letter_store = store
    task = broker.task("task", max_deliveries=2)(_never)
    handle = await task.kiq()
    message = broker.delivery(broker.sent[0].message, deliveries=3)
    await Receiver(broker).callback(message)
    assert isinstance((await handle.get_result()).error, MaxDeliveriesError)
    assert [letter.reason for letter in store.letters] == ["max_deliveries"]
    assert len(broker.acked) == 1


async def test_what_cannot_be_given_back_is_sent_again_and_counted() -> None:
    broker = Bare()
    broker.dead_letter_store = store = InMemoryDeadLetters()

    @broker.task("task", max_deliveries=2)
    async def task(ctx: Context = TaskiqDepends()) -> None:  # noqa: B008
        ctx.nack(delay=2)

    await task.kiq()
    await Receiver(broker).callback(broker.delivery(broker.sent[0].message))
    _, again = broker.sent
    assert again.labels == {"X-Taskiq-deliveries": "1", "delay": "2"}
    assert again.task_id == broker.sent[0].task_id
    assert len(broker.acked) == 1
    await Receiver(broker).callback(broker.delivery(again.message))
    assert [letter.deliveries for letter in store.letters] == [2]
    assert len(broker.sent) == 2


def _without_delays(module: str, **attributes: Any) -> Bare:
    """Make a broker that sends as that of a plugin does, and count it as such."""

    async def kick(self: Bare, message: BrokerMessage) -> None:
        self.sent.append(message)

    members = {"__module__": module, "kick": kick}
    broker: Bare = type("Plugin", (Bare,), members)()
    vars(broker).update(attributes)
    return broker


@pytest.mark.parametrize(
    ("module", "attributes", "advice"),
    [
        (
            "taskiq_redis.redis_broker",
            {},
            "the broker of Redis streams of taskiq.adapters.redis does",
        ),
        (
            "taskiq.adapters.redis",
            {"message_capabilities": ["delayed_nack"]},
            "it does so only before a message is acknowledged",
        ),
        ("taskiq_nats.brokers.core", {}, "the brokers of JetStream do"),
        ("taskiq_aio_pika.broker", {"_delay_queue": None}, "give it a delay_queue"),
        ("taskiq_aio_pika.broker", {"_delay_queue": "delays"}, None),
        ("taskiq_aio_pika.broker", {"_delayed_message_exchange_plugin": True}, None),
        ("somebody.own", {}, None),
    ],
)
async def test_who_asks_in_vain_for_a_delay_is_told_once_what_to_do(
    module: str,
    attributes: dict[str, Any],
    advice: str | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The message comes at once; who sends in a way of its own gets the label."""
    broker = _without_delays(module, **attributes)

    @broker.task("task")
    async def task(delay: float | None, ctx: Context = TaskiqDepends()) -> None:  # noqa: B008
        ctx.nack(delay=delay)

    receiver = Receiver(broker)
    for delay in (None, 2, 3):
        await task.kiq(delay)
        data = broker.sent[-1].message
        await receiver.callback(broker.delivery(data))
        is_late = delay is not None and advice is None
        assert ("delay" in broker.sent[-1].labels) is is_late
    warnings = [each for each in caplog.messages if "nack(delay=" in each]
    if advice is None:
        assert warnings == []
    else:
        [warning] = warnings
        assert "nack(delay=2)" in warning
        assert warning.endswith(f": {advice}.")


async def test_a_message_is_not_sent_again_for_a_delay_that_nobody_keeps() -> None:
    """Its broker refuses the label, and takes it back at once."""
    broker = _without_delays("taskiq_aio_pika.broker", _delay_queue=None)
    given: list[float | None] = []

    @broker.task("task")
    async def task(ctx: Context = TaskiqDepends()) -> None:  # noqa: B008
        ctx.nack(delay=2)

    await task.kiq()
    message = broker.delivery(broker.sent[0].message, nack=given.append, deliveries=1)
    await Receiver(broker).callback(message)
    assert (given, len(broker.sent)) == ([None], 1)


async def _cannot_count() -> int:
    raise ConnectionError("the server is away")


@pytest.mark.parametrize("deliveries", [_cannot_count, None])
async def test_what_cannot_be_counted_was_delivered_once(
    deliveries: Any, caplog: pytest.LogCaptureFixture
) -> None:
    broker = Bare()
    broker.dead_letter_store = store = InMemoryDeadLetters()
    task = broker.task("task", max_deliveries=2, on_failure="dead_letter")(_fail)
    await task.kiq()
    message = broker.delivery(broker.sent[0].message, deliveries=deliveries)
    await Receiver(broker).callback(message)
    assert [letter.deliveries for letter in store.letters] == [None]
    assert ("Cannot count deliveries of task" in caplog.text) is bool(deliveries)


async def test_who_asks_for_no_result_has_not_failed() -> None:
    """Nothing is told, put aside or given back, whatever the task says of failures."""
    told = Told()
    broker = Bare().with_middlewares(told).with_dead_letters()

    @broker.task("task", max_deliveries=3, on_failure="requeue")
    async def task() -> None:
        raise NoResultError

    await task.kiq()
    message = broker.delivery(broker.sent[0].message, deliveries=1)
    await Receiver(broker).callback(message)
    assert (told.endings, told.letters, len(broker.acked)) == ([], [], 1)


@pytest.mark.parametrize(
    "labels",
    ['"labels":{"ack_type":"never"}', '"labels":{"n":"x"},"labels_types":{"n":2}'],
)
async def test_a_message_that_nobody_can_run_may_be_acknowledged_and_told(
    labels: str,
) -> None:
    told = Told()
    broker = Bare().with_middlewares(told)
    broker.task("task", max_deliveries=3, on_failure="ack")(_never)
    data = '{"task_id":"1","task_name":"task","args":[],"kwargs":{},' + labels + "}"
    await Receiver(broker).callback(broker.delivery(data.encode()))
    assert (told.endings, told.letters, len(broker.acked)) == (["acknowledged"], [], 1)


class Mending(TaskiqMiddleware):
    def post_execute(self, message: TaskiqMessage, result: TaskiqResult[Any]) -> None:
        result.error, result.is_err, result.return_value = None, False, "mended"


@pytest.mark.parametrize("is_batched", [False, True])
@pytest.mark.parametrize("ack_type", [None, AcknowledgeType.WHEN_EXECUTED])
async def test_a_hook_that_mends_a_result_saves_its_message(
    is_batched: bool,
    ack_type: AcknowledgeType | None,
) -> None:
    async def fail_all(items: list[int]) -> None:
        raise ValueError(items)

    broker = Bare().with_middlewares(Mending()).with_dead_letters()
    if is_batched:
        handle = await broker.task("task", batch=True, batch_size=1)(fail_all).kiq(1)
    else:
        handle = await broker.task("task")(_fail).kiq()
    data = broker.sent[0].message
    await Receiver(broker, ack_type=ack_type).callback(broker.delivery(data))
    assert (await handle.get_result()).return_value == "mended"
    assert letters_of(broker) == []
    assert broker.acked == [data]


class Unfound(Bare):
    """A broker of which nobody can say where its dead letters go."""

    @property
    def dead_letter_store(self) -> Any:
        raise OSError("no such module")

    @dead_letter_store.setter
    def dead_letter_store(self, store: Any) -> None: ...


async def test_without_a_place_for_letters_nothing_is_acknowledged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One that cannot be found is not one that does not exist."""
    broker = Unfound()
    task = broker.task("task", on_failure="dead_letter")(_fail)
    await task.kiq()
    await Receiver(broker).callback(broker.delivery(broker.sent[0].message))
    assert broker.acked == []
    assert "not acknowledged: OSError: no such module" in caplog.text


@pytest.mark.parametrize("is_ackable", [True, False])
async def test_without_a_store_a_letter_is_told_to_hooks_and_in_the_result(
    is_ackable: bool, caplog: pytest.LogCaptureFixture
) -> None:
    told = Told()
    broker = Bare().with_middlewares(told)
    broker.dead_letter_store = None
    task = broker.task("task", on_failure="dead_letter")(_fail)
    handle = await task.kiq()
    data = broker.sent[0].message
    await Receiver(broker).callback(broker.delivery(data) if is_ackable else data)
    assert isinstance((await handle.get_result()).error, ValueError)
    assert [letter.data for letter in told.letters] == [data]
    assert broker.acked == [data] * is_ackable
    assert "told to on_dead_letter hooks alone" in caplog.text


@pytest.mark.parametrize("acks", ["nobody", "task"])
async def test_a_message_is_given_back_once_and_not_acknowledged_as_well(
    acks: str,
) -> None:
    """One that its task has acknowledged is gone at the broker, and is sent again."""
    broker = Bare()
    given: list[float | None] = []

    @broker.task("task")
    async def task(ctx: Context = TaskiqDepends()) -> None:  # noqa: B008
        if acks == "task":
            await ctx.ack()
        ctx.nack()

    await task.kiq()
    message = broker.delivery(broker.sent[0].message, nack=given.append, deliveries=1)
    await Receiver(broker).callback(message)
    if acks == "task":
        assert (given, len(broker.acked), len(broker.sent)) == ([], 1, 2)
    else:
        assert (given, len(broker.acked), len(broker.sent)) == ([None], 0, 1)


async def test_a_message_that_is_being_acknowledged_is_not_given_back() -> None:
    """Whoever began first ends it: both would confuse the broker."""
    broker = Bare()
    given: list[float | None] = []
    begun, go_on, acked = asyncio.Event(), asyncio.Event(), list[int]()
    acking: list[asyncio.Future[None]] = []

    async def ack() -> None:
        begun.set()
        await go_on.wait()
        acked.append(1)

    @broker.task("task")
    async def task(ctx: Context = TaskiqDepends()) -> None:  # noqa: B008
        acking.append(asyncio.ensure_future(ctx.ack()))
        await begun.wait()
        ctx.nack()

    await task.kiq()
    data = broker.sent[0].message
    message = AckableMessage(data=data, ack=ack, nack=given.append, deliveries=1)
    await Receiver(broker).callback(message)
    go_on.set()
    await acking[0]
    assert (given, acked, len(broker.sent)) == ([], [1], 1)


@pytest.mark.parametrize("is_ackable", [True, False])
async def test_what_is_due_is_sent_again_without_its_delay(is_ackable: bool) -> None:
    broker = Bare()

    @broker.task("task")
    async def task(ctx: Context = TaskiqDepends()) -> None:  # noqa: B008
        ctx.nack()

    await task.kicker().with_labels(delay=5).kiq()
    data = broker.sent[0].message
    await Receiver(broker).callback(broker.delivery(data) if is_ackable else data)
    assert broker.sent[1].labels == {"X-Taskiq-deliveries": "1"}
    assert broker.acked == [data] * is_ackable


def _fail() -> None:
    raise ValueError


def _never() -> None:
    raise AssertionError("it was run")


def test_every_action_is_told_by_its_name() -> None:
    assert {each.value for each in Action} == {
        "acknowledged",
        "sent_again",
        "given_back",
        "dead_lettered",
    }
