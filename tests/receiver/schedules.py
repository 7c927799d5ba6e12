"""Whole schedules of a worker: what arrives, what happens to it, how it is stopped.

A schedule is plain data, so that hypothesis can draw it and shrink it. `run` plays it
in virtual time over `Receiver.listen` and writes down everything that happened, in
order; what has to be true of that is for the tests to say.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Final

from taskiq import (
    AckableMessage,
    AsyncBroker,
    AsyncResultBackend,
    BrokerMessage,
    NoResultError,
    TaskiqDepends,
    TaskiqMessage,
    TaskiqMiddleware,
    TaskiqResult,
)
from taskiq.acks import AcknowledgeType
from taskiq.context import BatchContext, Context
from taskiq.receiver import Receiver
from tests.support.virtual_time import run_virtual

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence

    from taskiq.batch import BatchInfo, FlushReason
    from taskiq.receiver.batcher import BatcherStatistics
    from taskiq.receiver.batching import Batching

#: A pause of this length takes one turn of the loop and no time.
ONE_TURN: Final = -1.0


async def pause(seconds: float) -> None:
    """Wait so many seconds: 0 does not even yield, `ONE_TURN` yields once."""
    if seconds:
        await asyncio.sleep(max(seconds, 0))


class Kind(enum.Enum):
    """Whom a message is for."""

    ALPHA = "alpha"  # a batch task that gives each item its own result
    BETA = "beta"  # a batch task with one result for all, and limits of its own
    PLAIN = "plain"
    GARBAGE = "garbage"  # cannot be decoded
    STRANGER = "stranger"  # names a task that does not exist


BATCHED: Final = (Kind.ALPHA, Kind.BETA)


class Fault(enum.Enum):
    """What goes wrong for one message, and for no other."""

    CASTING = enum.auto()
    PRE_EXECUTE = enum.auto()
    ACK = enum.auto()
    SAVE = enum.auto()
    SAVE_CANCELLED = enum.auto()  # the backend cancels itself
    HOOKS = enum.auto()  # each of on_error, post_execute, post_save raises


class Entry(enum.Enum):
    """What alpha gives one item."""

    VALUE = enum.auto()
    ERROR = enum.auto()
    SET_RESULT = enum.auto()
    FAIL = enum.auto()
    REJECT = enum.auto()


class Ending(enum.Enum):
    """How a call ends whose first item is this one."""

    RETURN = enum.auto()
    RAISE = enum.auto()
    WRONG_LENGTH = enum.auto()
    NO_RESULT = enum.auto()
    CANCELLED = enum.auto()  # the function raises CancelledError by itself


@dataclass(frozen=True)
class Sent:
    """One message, and what happens to it on its way.

    :ivar gap: seconds the broker takes to give it out once it was asked.
    :ivar key: the second argument: messages of one task with equal keys are a group.
    :ivar timeout: its label, seconds a call may take.
    :ivar ack_type: its label.
    :ivar seconds: how long a call takes whose first item this is.
    :ivar slow_step: the step of its own that takes `slow_seconds`.
    :ivar cancelled_after: seconds from the start of its callback to its cancellation;
        only where callbacks are overridden.
    """

    kind: Kind = Kind.ALPHA
    gap: float = 0
    key: int = 0
    timeout: float | None = None
    ack_type: AcknowledgeType | None = None
    fault: Fault | None = None
    entry: Entry = Entry.VALUE
    ending: Ending = Ending.RETURN
    seconds: float = 0
    slow_step: str = ""
    slow_seconds: float = 0
    cancelled_after: float | None = None

    def takes(self, step: str) -> float:
        return self.slow_seconds if step == self.slow_step else 0


#: The steps of a message that can be slow, for `Sent.slow_step`.
SLOW_STEPS: Final = ("pre_execute", "ack", "save", "post_execute", "batch hooks")


class Stop(enum.Enum):
    """What ends the listening."""

    BROKER_ENDS = enum.auto()
    FINISH_EVENT = enum.auto()
    LIMIT = enum.auto()  # `max_tasks_to_execute`
    BROKER_FAILS = enum.auto()
    CANCELLATION = enum.auto()


GRACEFUL: Final = (Stop.BROKER_ENDS, Stop.FINISH_EVENT, Stop.LIMIT)


@dataclass(frozen=True)
class Schedule:
    """One life of a receiver.

    :ivar stop_at: seconds from the start to the finish event or the cancellation.
    :ivar stop_again_after: seconds from a cancellation to a second one, if any.
    :ivar sent_later: messages of a second `listen` of the same receiver.
    """

    sent: tuple[Sent, ...]
    alpha: dict[str, Any] = field(default_factory=dict)
    beta: dict[str, Any] = field(default_factory=dict)
    max_async_tasks: int = 2
    max_prefetch: int = 0
    ack_type: AcknowledgeType | None = None
    is_ackable: bool = True
    has_middleware: bool = True
    has_own_callback: bool = False
    has_eager_tasks: bool = False
    stop: Stop = Stop.BROKER_ENDS
    stop_at: float = 0
    stop_again_after: float | None = None
    limit: int | None = None
    wait_tasks_timeout: float | None = None
    sent_later: tuple[Sent, ...] = ()


class AlphaError(Exception):
    """The entry of one item."""


class CallError(Exception):
    """What a whole call fails with."""


class HookError(Exception):
    """What a hook fails with."""


class BrokerLostError(Exception):
    """What the broker's generator fails with."""


@dataclass(frozen=True)
class Event:
    """Something that happened to a message."""

    index: int
    time: float
    step: str
    number: int


@dataclass
class CallRecord:
    """One call of a task function."""

    kind: Kind
    numbers: tuple[int, ...]
    key: int
    started: Event
    ended: Event | None = None


@dataclass
class BatchRecord:
    """One batch, as the hooks saw it."""

    numbers: tuple[int, ...]
    info: BatchInfo
    started: Event
    ended: Event | None = None

    @property
    def reason(self) -> FlushReason:
        return self.info.flush_reason


class Record:
    """All that happened while a schedule was played, in order.

    :ivar stops: moments at which something began to end the first `listen`.
    :ivar ended_at: the moment it returned.
    :ivar error: what it raised.
    :ivar left: for each `listen`, what was still there when it returned.
    :ivar reports: what asyncio had to say about errors nobody took.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.sent = schedule.sent + schedule.sent_later
        self.events: list[Event] = []
        self.calls: list[CallRecord] = []
        self.batches: list[BatchRecord] = []
        self.results: dict[int, list[TaskiqResult[Any]]] = {}
        self.reports: list[str] = []
        self.error: BaseException | None = None
        self.stops: list[float] = []
        self.ended_at = 0.0
        self.left: list[Left] = []

    def note(self, step: str, number: int) -> Event:
        """Write down what happens now."""
        now = asyncio.get_running_loop().time()
        event = Event(len(self.events), now, step, number)
        self.events.append(event)
        return event

    @cached_property
    def by_number(self) -> dict[int, list[Event]]:
        """The events of each message; a cache, for when all is over."""
        found: dict[int, list[Event]] = {}
        for event in self.events:
            found.setdefault(event.number, []).append(event)
        return found

    def of(self, number: int, *steps: str) -> list[Event]:
        """The events of one message, all of them or those of some steps."""
        events = self.by_number.get(number, [])
        return [e for e in events if e.step in steps] if steps else events

    @cached_property
    def delivered(self) -> list[int]:
        """The messages the broker gave out, in order."""
        return [event.number for event in self.events if event.step == "deliver"]


@dataclass(frozen=True)
class Left:
    """What a `listen` left behind at the moment it returned."""

    tasks: list[str]
    timers: list[str]
    executions: int
    deliveries: int
    batches: list[BatcherStatistics]


def run(schedule: Schedule) -> Record:
    """Play a schedule from start to end, in virtual time."""
    previous = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        record = Record(schedule)
        run_virtual(_Stage(schedule, record).play())
        return record
    finally:
        logging.disable(previous)


class _Stage:
    """The worker a schedule is played on."""

    def __init__(self, schedule: Schedule, record: Record) -> None:
        self.schedule = schedule
        self.record = record
        self.own_tasks: set[asyncio.Task[Any] | None] = set()
        self.interruptions: list[asyncio.Handle] = []
        self.broker = _Broker(schedule, record)
        self.broker.with_result_backend(_Backend(record))
        if schedule.has_middleware:
            self.broker.add_middlewares(_Middleware(record))
        _register_tasks(self.broker, schedule, record)
        receiver_class = _OwnCallback if schedule.has_own_callback else Receiver
        self.receiver = receiver_class(
            self.broker,
            run_startup=False,
            max_async_tasks=schedule.max_async_tasks,
            max_prefetch=schedule.max_prefetch,
            ack_type=schedule.ack_type,
            max_tasks_to_execute=schedule.limit,
            wait_tasks_timeout=schedule.wait_tasks_timeout,
        )
        self.broker.on_listening = self._listening
        self.batchings: list[Batching] = []

    def _listening(self) -> None:
        self.batchings.append(self.receiver.batching)

    async def play(self) -> None:
        loop = asyncio.get_running_loop()
        if self.schedule.has_eager_tasks and sys.version_info >= (3, 12):
            loop.set_task_factory(asyncio.eager_task_factory)
        loop.set_exception_handler(
            lambda _, context: self.record.reports.append(str(context)),
        )
        self.own_tasks.add(asyncio.current_task())
        finish = asyncio.Event()
        listening = loop.create_task(self._listen(finish))
        if self.schedule.stop in {Stop.FINISH_EVENT, Stop.CANCELLATION}:
            again = self.schedule.stop_again_after
            self._interrupt_later(self.schedule.stop_at, listening, finish, again)
        await asyncio.wait([listening])
        await listening
        if self.schedule.sent_later:
            self.broker.begin_again()
            self.receiver.max_tasks_to_execute = None
            self.receiver.wait_tasks_timeout = None
            await self.receiver.listen(asyncio.Event())
            self._look_around(loop)

    def _interrupt_later(self, seconds: float, *how: Any) -> None:
        loop = asyncio.get_running_loop()
        self.interruptions.append(
            loop.call_later(seconds, self._interrupt, *how)
            if seconds > 0
            else loop.call_soon(self._interrupt, *how),
        )

    def _interrupt(
        self,
        listening: asyncio.Task[None],
        finish: asyncio.Event,
        again_after: float | None,
    ) -> None:
        """Set the finish event, or cancel, and perhaps once again."""
        self.record.stops.append(asyncio.get_running_loop().time())
        if self.schedule.stop is Stop.FINISH_EVENT:
            finish.set()
            return
        listening.cancel()
        if again_after is not None:
            self._interrupt_later(again_after, listening, finish, None)

    async def _listen(self, finish: asyncio.Event) -> None:
        """Listen, and look around before anybody else has another turn."""
        loop = asyncio.get_running_loop()
        try:
            await self.receiver.listen(finish)
        except BaseException as exc:  # noqa: BLE001 - looked at when all is over
            self.record.error = exc
        self.record.ended_at = self.record.note("listen ended", -1).time
        self.own_tasks.add(asyncio.current_task())
        for interruption in self.interruptions:
            interruption.cancel()
        self._look_around(loop)

    def _look_around(self, loop: asyncio.AbstractEventLoop) -> None:
        tasks = asyncio.all_tasks() - self.own_tasks
        timers = loop._scheduled  # type: ignore[attr-defined]
        semaphore = self.receiver.sem
        assert semaphore is not None
        self.record.left.append(
            Left(
                tasks=[str(task) for task in tasks],
                timers=[str(timer) for timer in timers if not timer.cancelled()],
                executions=semaphore._value,
                deliveries=self.receiver.sem_prefetch._value,
                batches=[batching.statistics() for batching in self.batchings],
            ),
        )


class _Broker(AsyncBroker):
    """Gives out the messages of a schedule, each after its gap."""

    def __init__(self, schedule: Schedule, record: Record) -> None:
        super().__init__()
        self.schedule = schedule
        self.record = record
        self.stop = schedule.stop
        self.numbers: Sequence[int] = range(len(schedule.sent))
        self.on_listening: Callable[[], None] = lambda: None

    def begin_again(self) -> None:
        """Go on with what is sent later; the generator ends by itself then."""
        self.stop = Stop.BROKER_ENDS
        self.numbers = range(len(self.schedule.sent), len(self.record.sent))

    async def kick(self, message: BrokerMessage) -> None:
        raise AssertionError(f"nothing is sent by a worker here, but {message}")

    async def listen(self) -> AsyncGenerator[bytes | AckableMessage, None]:
        self.on_listening()
        try:
            for number in self.numbers:
                await pause(self.record.sent[number].gap)
                self.record.note("deliver", number)
                yield self._message(number)
            if self.stop is Stop.BROKER_FAILS:
                raise BrokerLostError
            if self.stop is not Stop.BROKER_ENDS:
                await asyncio.Event().wait()
        finally:
            if not self.record.stops:
                self.record.stops.append(asyncio.get_running_loop().time())
            await asyncio.sleep(0)

    def _message(self, number: int) -> bytes | AckableMessage:
        data = self._data(number, self.record.sent[number])
        if not self.schedule.is_ackable:
            return data

        async def ack() -> None:
            sent = self.record.sent[number]
            self.record.note("ack", number)
            await pause(sent.takes("ack"))
            if sent.fault is Fault.ACK:
                self.record.note("ack failed", number)
                raise ConnectionError(number)
            self.record.note("acked", number)

        return AckableMessage(data=data, ack=ack)

    def _data(self, number: int, sent: Sent) -> bytes:
        if sent.kind is Kind.GARBAGE:
            return f"garbage {number}".encode()
        labels: dict[str, Any] = {}
        if sent.timeout is not None:
            labels["timeout"] = sent.timeout
        if sent.ack_type is not None:
            labels["ack_type"] = sent.ack_type.value
        item = f"item {number}" if sent.fault is Fault.CASTING else number
        message = TaskiqMessage(
            task_id=str(number),
            task_name=sent.kind.value,
            labels=labels,
            args=[item, sent.key],
            kwargs={},
        )
        return self.formatter.dumps(message).message


class _Backend(AsyncResultBackend[Any]):
    """Saves results at the pace of the schedule."""

    def __init__(self, record: Record) -> None:
        self.record = record

    async def set_result(self, task_id: str, result: TaskiqResult[Any]) -> None:
        number = int(task_id)
        sent = self.record.sent[number]
        self.record.note("save", number)
        try:
            await pause(sent.takes("save"))
        except asyncio.CancelledError:
            # Closing a connection takes a while, also when one is in a hurry.
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            raise
        if sent.fault in {Fault.SAVE, Fault.SAVE_CANCELLED}:
            self.record.note("save failed", number)
            is_cancelled = sent.fault is Fault.SAVE_CANCELLED
            raise asyncio.CancelledError if is_cancelled else ConnectionError(number)
        self.record.results.setdefault(number, []).append(result)
        self.record.note("saved", number)

    async def is_result_ready(self, task_id: str) -> bool:
        return int(task_id) in self.record.results

    async def get_result(
        self,
        task_id: str,
        with_logs: bool = False,
    ) -> TaskiqResult[Any]:
        return self.record.results[int(task_id)][-1]


class _Middleware(TaskiqMiddleware):
    """Takes its time, fails where it should, and writes everything down."""

    def __init__(self, record: Record) -> None:
        super().__init__()
        self.record = record
        self.batches: dict[str, BatchRecord] = {}

    async def _hook(self, step: str, message: TaskiqMessage) -> None:
        number = int(message.task_id)
        sent = self.record.sent[number]
        self.record.note(step, number)
        await pause(sent.takes(step))
        self.record.note("hook ended", number)
        if sent.fault is Fault.HOOKS:
            raise HookError(number)

    async def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
        number = int(message.task_id)
        sent = self.record.sent[number]
        self.record.note("pre_execute", number)
        await pause(sent.takes("pre_execute"))
        self.record.note("pre_executed", number)
        if sent.fault is Fault.PRE_EXECUTE:
            raise HookError(number)
        return message

    async def on_error(
        self,
        message: TaskiqMessage,
        result: TaskiqResult[Any],
        exception: BaseException,
    ) -> None:
        await self._hook("on_error", message)

    async def post_execute(
        self,
        message: TaskiqMessage,
        result: TaskiqResult[Any],
    ) -> None:
        await self._hook("post_execute", message)

    async def post_save(
        self,
        message: TaskiqMessage,
        result: TaskiqResult[Any],
    ) -> None:
        await self._hook("post_save", message)

    async def on_batch_start(self, batch: BatchInfo) -> None:
        numbers = tuple(int(message.task_id) for message in batch.messages)
        first = self.record.sent[numbers[0]]
        started = self.record.note("batch starts", -1)
        self.batches[batch.batch_id] = BatchRecord(numbers, batch, started)
        self.record.batches.append(self.batches[batch.batch_id])
        await pause(first.takes("batch hooks"))
        if first.fault is Fault.HOOKS:
            raise HookError(numbers)

    async def on_batch_end(
        self,
        batch: BatchInfo,
        results: Sequence[TaskiqResult[Any]],
    ) -> None:
        record = self.batches[batch.batch_id]
        assert record.ended is None, "ended twice"
        first = self.record.sent[record.numbers[0]]
        await pause(first.takes("batch hooks"))
        for number in record.numbers:
            record.ended = self.record.note("batch ended", number)
        assert len(results) == len(record.numbers)
        if first.fault is Fault.HOOKS:
            raise HookError(record.numbers)


class _OwnCallback(Receiver):
    """Overrides `callback`, and has some of its callbacks cancelled."""

    async def callback(
        self,
        message: bytes | AckableMessage,
        raise_err: bool = False,
    ) -> None:
        broker = self.broker
        assert isinstance(broker, _Broker)
        number = self._number(message)
        sent = broker.record.sent[number]
        broker.record.note("callback", number)
        cancel = None
        if sent.cancelled_after is not None:
            task = asyncio.current_task()
            assert task is not None
            cancel = asyncio.get_running_loop().call_later(
                sent.cancelled_after,
                self._cancel,
                task,
                number,
            )
        try:
            await super().callback(message=message, raise_err=raise_err)
        finally:
            if cancel is not None:
                cancel.cancel()

    def _number(self, message: bytes | AckableMessage) -> int:
        data = message.data if isinstance(message, AckableMessage) else message
        if data.startswith(b"garbage"):
            return int(data.split()[1])
        return int(self.broker.formatter.loads(data).task_id)

    def _cancel(self, task: asyncio.Task[Any], number: int) -> None:
        broker = self.broker
        assert isinstance(broker, _Broker)
        broker.record.note("cancelled", number)
        task.cancel()


def _register_tasks(broker: AsyncBroker, schedule: Schedule, record: Record) -> None:
    async def alpha(
        items: list[int],
        key: int,
        context: Annotated[BatchContext, TaskiqDepends()],
    ) -> list[Any]:
        assert [int(message.task_id) for message in context.messages] == items
        with _recorded(record, Kind.ALPHA, items, key) as sent:
            for index, number in enumerate(items):
                _decide(context, index, number, record.sent[number].entry)
            await _ack_by_hand(record, items, context.ack)
            await _take_time(sent)
            _end_badly(sent, items)
            entries = [_alpha_entry(record, number) for number in items]
            return entries if sent.ending is Ending.RETURN else [*entries, None]

    async def beta(items: list[int], key: int) -> Any:
        with _recorded(record, Kind.BETA, items, key) as sent:
            await _take_time(sent)
            _end_badly(sent, items)
            return ("beta", tuple(items), key)

    async def plain(
        item: int,
        key: int,
        context: Annotated[Context, TaskiqDepends()],
    ) -> Any:
        number = int(context.message.task_id)
        with _recorded(record, Kind.PLAIN, [number], key) as sent:
            await _ack_by_hand(record, [number], lambda _: context.ack())
            await _take_time(sent)
            _end_badly(sent, [number])
            return ("plain", number)

    broker.register_task(alpha, task_name="alpha", batch=True, **schedule.alpha)
    broker.register_task(beta, task_name="beta", batch=True, **schedule.beta)
    broker.register_task(plain, task_name="plain")


class _recorded:  # noqa: N801 - a context manager, used like a function
    """Writes a call down, also when it is cancelled."""

    def __init__(
        self,
        record: Record,
        kind: Kind,
        numbers: list[int],
        key: int,
    ) -> None:
        started = record.note("call", -1)
        for number in numbers:
            record.note("called", number)
        self.record = record
        self.call = CallRecord(kind, tuple(numbers), key, started)
        record.calls.append(self.call)

    def __enter__(self) -> Sent:
        return self.record.sent[self.call.numbers[0]]

    def __exit__(self, *_: object) -> None:
        for number in self.call.numbers:
            self.call.ended = self.record.note("call ended", number)


async def _take_time(sent: Sent) -> None:
    try:
        await pause(sent.seconds)
    except asyncio.CancelledError:
        await asyncio.sleep(0)  # rolling back takes its time
        await asyncio.sleep(0)
        raise


async def _ack_by_hand(
    record: Record,
    numbers: list[int],
    ack: Callable[[int], Any],
) -> None:
    schedule = record.schedule
    for index, number in enumerate(numbers):
        ack_type = record.sent[number].ack_type or schedule.ack_type
        if ack_type is AcknowledgeType.MANUAL and schedule.is_ackable:
            with suppress(ConnectionError):
                await ack(index)


def _end_badly(sent: Sent, numbers: list[int]) -> None:
    if sent.ending is Ending.RAISE:
        raise CallError(*numbers)
    if sent.ending is Ending.NO_RESULT:
        raise NoResultError
    if sent.ending is Ending.CANCELLED:
        raise asyncio.CancelledError


def _decide(context: BatchContext, index: int, number: int, entry: Entry) -> None:
    if entry is Entry.SET_RESULT:
        context.set_result(index, ("set", number))
    elif entry is Entry.FAIL:
        context.fail(index, AlphaError(number))
    elif entry is Entry.REJECT:
        context.reject(index)


def _alpha_entry(record: Record, number: int) -> Any:
    if record.sent[number].entry is Entry.ERROR:
        return AlphaError(number)
    return ("alpha", number)
