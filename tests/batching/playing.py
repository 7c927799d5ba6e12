"""Plays a schedule in virtual time, and writes down everything that happens."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import suppress
from contextvars import ContextVar, Token
from functools import partial
from typing import Any

from taskiq import (
    AckableMessage,
    AsyncBroker,
    AsyncResultBackend,
    BrokerMessage,
    InMemoryBroker,
    TaskiqMessage,
    TaskiqMiddleware,
    TaskiqResult,
)
from taskiq.batch import BatchInfo, FlushReason
from taskiq.exceptions import UnknownTaskError
from taskiq.formatters.json_formatter import JSONFormatter
from taskiq.receiver import Receiver
from taskiq.receiver.runtime import Runtime
from tests.batching.records import BatchRecord, Left, Life, Record, World, current
from tests.batching.schedule_tasks import register_tasks
from tests.batching.schedules import (
    BrokerLostError,
    Entrance,
    Fault,
    HookError,
    Hooks,
    Kind,
    PlacingError,
    Schedule,
    Stop,
    pause,
)
from tests.support.virtual_time import run_side_by_side, run_virtual

#: Set by `pre_execute` and reset by `post_execute`, which takes the very same context.
_scope: ContextVar[int | None] = ContextVar("scope", default=None)


def play(schedule: Schedule) -> list[Record]:
    """Play a schedule from start to end, in virtual time.

    :returns: what happened, for each event loop.
    """
    previous = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        world = World(schedule)
        stage = _Stage(world)
        with world.following_moves():
            if stage.is_alone:
                run_virtual(stage.play(world.records[0]))
            else:
                run_side_by_side(*map(stage.play, world.records))
        return world.records
    finally:
        logging.disable(previous)


class _Stage:
    """The worker a schedule is played on."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.schedule = schedule = world.schedule
        self.own_tasks: set[asyncio.Task[Any] | None] = set()
        self.interruptions: list[asyncio.Handle] = []
        self.runtimes: dict[asyncio.AbstractEventLoop, Runtime] = {}
        is_listening = schedule.entrance is Entrance.LISTEN
        self.broker = _Broker(world) if is_listening else _in_process(schedule)
        self.broker.with_formatter(_Formatter(world))
        self.broker.with_result_backend(_Backend(world))
        if schedule.hooks is not Hooks.NONE:
            is_full = schedule.hooks is Hooks.ALL
            self.broker.add_middlewares((_AllHooks if is_full else _BatchHooks)(world))
        register_tasks(self.broker, world)
        self.receiver = self._receiver()

    @property
    def is_alone(self) -> bool:
        """Whether one loop is enough, which is left clean."""
        is_dying = (
            self.schedule.entrance is not Entrance.LISTEN and self.schedule.is_cut
        )
        return len(self.world.records) == 1 and not is_dying

    def _receiver(self) -> Receiver:
        schedule = self.schedule
        if isinstance(self.broker, InMemoryBroker):
            self.broker.receiver.save_timeout = schedule.save_timeout
            return self.broker.receiver
        receiver_class = _OwnCallback if schedule.has_own_callback else Receiver
        receiver = receiver_class(
            self.broker,
            run_startup=False,
            max_async_tasks=schedule.max_async_tasks,
            max_prefetch=schedule.max_prefetch,
            ack_type=schedule.ack_type,
            max_tasks_to_execute=schedule.limit,
        )
        receiver.save_timeout = schedule.save_timeout
        return receiver

    async def play(self, record: Record) -> None:
        loop = record.loop = asyncio.get_running_loop()
        if self.schedule.has_eager_tasks and sys.version_info >= (3, 12):
            loop.set_task_factory(asyncio.eager_task_factory)
        loop.set_exception_handler(
            lambda _, context: record.problems.append(str(context)),
        )
        self.runtimes[loop] = self.receiver.runtime
        self.own_tasks.add(asyncio.current_task())
        (self_life, *later) = record.lives
        if record.entrance is Entrance.LISTEN:
            await self._listen_as_told(record, self_life)
            for life in later:
                await self._listen_again(record, life)
        else:
            await self._send(record, self_life)

    # -- Listening --

    async def _listen_as_told(self, record: Record, life: Life) -> None:
        loop = asyncio.get_running_loop()
        finish = asyncio.Event()
        self._broker.begin(life, self.schedule.stop)
        listening = loop.create_task(self._listen(record, life, finish))
        if self.schedule.stop in {Stop.FINISH_EVENT, Stop.CANCELLATION}:
            again = self.schedule.stop_again_after
            at = self.schedule.stop_at
            self._interrupt_later(at, life, listening, finish, again)
        await asyncio.wait([listening])
        await listening

    async def _listen_again(self, record: Record, life: Life) -> None:
        self._broker.begin(life, Stop.BROKER_ENDS)
        self.receiver.max_tasks_to_execute = None
        await self._listen(record, life, asyncio.Event())

    @property
    def _broker(self) -> _Broker:
        assert isinstance(self.broker, _Broker)
        return self.broker

    def _interrupt_later(self, seconds: float, *how: Any) -> None:
        loop = asyncio.get_running_loop()
        self.interruptions.append(
            loop.call_later(seconds, self._interrupt, *how)
            if seconds > 0
            else loop.call_soon(self._interrupt, *how),
        )

    def _interrupt(
        self,
        life: Life,
        listening: asyncio.Task[None],
        finish: asyncio.Event,
        again_after: float | None,
    ) -> None:
        """Set the finish event, or cancel, and perhaps once again."""
        life.stops.append(asyncio.get_running_loop().time())
        if self.schedule.stop is Stop.FINISH_EVENT:
            finish.set()
            return
        listening.cancel()
        if again_after is not None:
            self._interrupt_later(again_after, life, listening, finish, None)

    async def _listen(self, record: Record, life: Life, finish: asyncio.Event) -> None:
        """Listen, and look around before anybody else has another turn."""
        self.receiver.wait_tasks_timeout = life.grace
        try:
            await self.receiver.listen(finish)
        except BaseException as exc:  # noqa: BLE001 - looked at when all is over
            life.error = exc
        self._look_around(record, life)

    def _look_around(self, record: Record, life: Life) -> None:
        loop = asyncio.get_running_loop()
        life.ended = record.note("life ended")
        self.own_tasks.add(asyncio.current_task())
        if record is self.world.records[0]:
            for interruption in self.interruptions:
                interruption.cancel()
        tasks = asyncio.all_tasks() - self.own_tasks
        timers = loop._scheduled  # type: ignore[attr-defined]
        executions = self.receiver.sem
        life.left = Left(
            tasks=[str(task) for task in tasks],
            timers=[str(timer) for timer in timers if not timer.cancelled()],
            executions=None if executions is None else executions._value,
            deliveries=self.receiver.sem_prefetch._value,
            batches=[self.runtimes[loop].statistics()],
        )

    # -- Sending in process, or calling `callback` --

    async def _send(self, record: Record, life: Life) -> None:
        """Send messages, each after its gap, and wait for them or die before."""
        loop = asyncio.get_running_loop()
        sending = loop.create_task(self._send_all(record, life))
        is_dying = record is self.world.records[0] and self.schedule.is_cut
        if is_dying:
            await asyncio.wait([sending], timeout=max(self.schedule.stop_at, 0))
            life.stops.append(loop.time())
            life.ended = record.note("life ended")
            return
        await sending
        life.stops.append(loop.time())
        if isinstance(self.broker, InMemoryBroker):
            await self.broker.wait_all()
        else:  # a batch goes on when those who waited for its messages are gone
            await self.runtimes[loop].wait_idle(FlushReason.MANUAL)
        self._look_around(record, life)

    async def _send_all(self, record: Record, life: Life) -> None:
        sending = []
        for number in life.numbers:
            await pause(self.world.sent[number].gap)
            record.note("deliver", number)
            current.set(number)
            if record.entrance is Entrance.KICK:
                await self._kick(number)
                continue
            enter = self._kick if record.entrance is Entrance.IN_PLACE else self._call
            work = _cancelled_in_time(self.world, number, partial(enter, number))
            sending.append(asyncio.ensure_future(work))
        if sending:
            await asyncio.wait(sending)
            for each in sending:
                if not each.cancelled():
                    each.result()

    async def _kick(self, number: int) -> None:
        name = self.world.sent[number].kind.value
        is_garbage = name == Kind.GARBAGE.value
        message = BrokerMessage(
            task_id=str(number),
            task_name=Kind.PLAIN.value if is_garbage else name,
            message=_data(self.world, number),
            labels={},
        )
        with suppress(UnknownTaskError):
            await self.broker.kick(message)

    async def _call(self, number: int) -> None:
        await Receiver.callback(self.receiver, self._broker.message(number))


def _in_process(schedule: Schedule) -> InMemoryBroker:
    return InMemoryBroker(await_inplace=schedule.entrance is Entrance.IN_PLACE)


async def _cancelled_in_time(
    world: World,
    number: int,
    work: Callable[[], Coroutine[Any, Any, None]],
) -> None:
    """Await what `work` gives, and be cancelled meanwhile if the schedule says so."""
    after = world.sent[number].cancelled_after
    task = asyncio.current_task()
    assert task is not None

    def cancel(task: asyncio.Task[Any]) -> None:
        world.note("cancelled", number)
        task.cancel()

    timer = None
    if after is not None:
        timer = asyncio.get_running_loop().call_later(after, cancel, task)
    try:
        await work()
    finally:
        if timer is not None:
            timer.cancel()


class _Broker(AsyncBroker):
    """Gives out the messages of a life, each after its gap."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world

    def begin(self, life: Life, stop: Stop) -> None:
        """Give out these messages when it is listened to, and end so."""
        self.life = life
        self.stop = stop

    async def kick(self, message: BrokerMessage) -> None:
        raise AssertionError(f"nothing is sent by a worker here, but {message}")

    async def listen(self) -> AsyncGenerator[bytes | AckableMessage, None]:
        life = self.life
        try:
            for number in life.numbers:
                await pause(self.world.sent[number].gap)
                self.world.note("deliver", number)
                yield self.message(number)
            if self.stop is Stop.BROKER_FAILS:
                raise BrokerLostError
            if self.stop is not Stop.BROKER_ENDS:
                await asyncio.Event().wait()
        finally:
            if not life.stops:
                life.stops.append(asyncio.get_running_loop().time())
            await asyncio.sleep(0)

    def message(self, number: int) -> bytes | AckableMessage:
        data = _data(self.world, number)
        if not self.world.schedule.is_ackable:
            return data
        note, sent = self.world.note, self.world.sent[number]

        async def ack() -> None:
            note("ack", number)
            try:
                await pause(sent.takes("ack"))
            except asyncio.CancelledError:
                note("ack interrupted", number)
                raise
            if sent.fault is Fault.ACK:
                note("ack failed", number)
                await sent.error.happen(ConnectionError, number)
            note("acked", number)

        return AckableMessage(data=data, ack=ack)


class _Formatter(JSONFormatter):
    """Fails at garbage as its message says."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world

    def loads(self, message: bytes) -> TaskiqMessage:
        if message.startswith(b"garbage"):
            raise self.world.sent[_number(message)].error.kind(PlacingError)
        return super().loads(message)


def _number(data: bytes) -> int:
    if data.startswith(b"garbage"):
        return int(data.split()[1])
    return int(JSONFormatter().loads(data).task_id)


def _data(world: World, number: int) -> bytes:
    sent = world.sent[number]
    if sent.kind is Kind.GARBAGE:
        return f"garbage {number}".encode()
    labels: dict[str, Any] = {}
    if sent.timeout is not None:
        labels["timeout"] = sent.timeout
    if sent.fault is Fault.TIMEOUT_LABEL:
        labels["timeout"] = "nan"
    if sent.priority is not None:
        labels["priority"] = sent.priority
    if sent.ack_type is not None:
        labels["ack_type"] = sent.ack_type.value
    if sent.fault is Fault.ACK_LABEL:
        labels["ack_type"] = "sometime"
    item = f"{number} {sent.error.name}" if sent.fault is Fault.CASTING else str(number)
    message = TaskiqMessage(
        task_id=str(number),
        task_name=sent.kind.value,
        labels=labels,
        args=[item, sent.key],
        kwargs={},
    )
    return JSONFormatter().dumps(message).message


class _Backend(AsyncResultBackend[Any]):
    """Saves results at the pace of the schedule."""

    def __init__(self, world: World) -> None:
        self.world = world

    async def set_result(self, task_id: str, result: TaskiqResult[Any]) -> None:
        number = int(task_id)
        sent, record = self.world.sent[number], self.world.record_of(number)
        record.note("save", number)
        try:
            await pause(sent.takes("save"))
        except asyncio.CancelledError:
            # Closing a connection takes a while, also when one is in a hurry.
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            if sent.fault is not Fault.SAVE_IS_STUBBORN:
                record.note("save interrupted", number)
                raise
        if sent.fault is Fault.SAVE:
            record.note("save failed", number)
            await sent.error.happen(ConnectionError, number)
        record.results.setdefault(number, []).append(result)
        record.note("saved", number)

    async def is_result_ready(self, task_id: str) -> bool:
        raise NotImplementedError

    async def get_result(
        self,
        task_id: str,
        with_logs: bool = False,
    ) -> TaskiqResult[Any]:
        raise NotImplementedError


class _BatchHooks(TaskiqMiddleware):
    """Takes its time, fails where it should, and writes everything down."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        self.batches: dict[str, BatchRecord] = {}

    async def on_batch_start(self, batch: BatchInfo) -> None:
        numbers = tuple(int(message.task_id) for message in batch.messages)
        first, record = self.world.sent[numbers[0]], self.world.record_of(numbers[0])
        started = record.note("batch starts")
        if batch.batch_id in self.batches:
            record.problems.append(f"started twice: {batch}")
        self.batches[batch.batch_id] = BatchRecord(numbers, batch, started)
        record.batches.append(self.batches[batch.batch_id])
        await pause(first.takes("batch hooks"))
        if first.fault is Fault.HOOKS:
            await first.error.happen(HookError, numbers)

    async def on_batch_end(
        self,
        batch: BatchInfo,
        results: Sequence[TaskiqResult[Any]],
    ) -> None:
        told = self.batches[batch.batch_id]
        first = self.world.sent[told.numbers[0]]
        record = self.world.record_of(told.numbers[0])
        if told.ended is not None or len(results) != len(told.numbers):
            record.problems.append(f"ended wrongly: {batch}")
        told.info, told.results = batch, results
        await pause(first.takes("batch hooks"))
        for number in told.numbers:
            told.ended = record.note("batch ended", number)
        if first.fault is Fault.HOOKS:
            await first.error.happen(HookError, told.numbers)


class _AllHooks(_BatchHooks):
    """Keeps a context for each message, too."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.tokens: dict[int, Token[int | None]] = {}

    async def _hook(self, step: str, message: TaskiqMessage) -> None:
        number = int(message.task_id)
        sent = self.world.sent[number]
        self.world.note(step, number)
        await pause(sent.takes(step))
        self.world.note("hook ended", number)
        if step == "post_execute":
            self._leave_scope(number)
        if sent.fault is Fault.HOOKS:
            await sent.error.happen(HookError, number)

    def _leave_scope(self, number: int) -> None:
        try:
            _scope.reset(self.tokens.pop(number))
        except ValueError as exc:
            self.world.record_of(number).problems.append(f"message {number}: {exc}")

    async def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
        number = int(message.task_id)
        sent = self.world.sent[number]
        self.world.note("pre_execute", number)
        self.tokens[number] = _scope.set(number)
        current.set(number)
        await pause(sent.takes("pre_execute"))
        self.world.note("pre_executed", number)
        if sent.fault is Fault.PRE_EXECUTE:
            await sent.error.happen(HookError, number)
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


class _OwnCallback(Receiver):
    """Overrides `callback`, and has some of its callbacks cancelled."""

    async def callback(
        self,
        message: bytes | AckableMessage,
        raise_err: bool = False,
    ) -> None:
        broker = self.broker
        assert isinstance(broker, _Broker)
        number = _number(
            message.data if isinstance(message, AckableMessage) else message
        )
        broker.world.note("callback", number)
        current.set(number)
        work = partial(super().callback, message=message, raise_err=raise_err)
        await _cancelled_in_time(broker.world, number, work)
