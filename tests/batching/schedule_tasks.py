"""The tasks of every schedule: what they do with each message, it says itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any, Final, TypeAlias

from pydantic import BeforeValidator

from taskiq import (
    AsyncBroker,
    NoResultError,
    TaskiqDepends,
)
from taskiq.acks import AcknowledgeType
from taskiq.context import BatchContext, Context
from tests.batching.records import CallRecord, World
from tests.batching.schedules import (
    AlphaError,
    CallError,
    Ending,
    Entrance,
    Entry,
    Error,
    Fault,
    Kind,
    PlacingError,
    PoisonError,
    Sent,
    arguments_of,
    cancel_oneself,
    pause,
)


def _cast(value: Any) -> int:
    """Make the number of an item, or what its text names as the reason not to."""
    number, *errors = str(value).split()
    for name in errors:
        kind = Error[name].kind(ValueError)
        raise kind(value)
    return int(number)


Item: TypeAlias = Annotated[int, BeforeValidator(_cast)]
TheContext: TypeAlias = Annotated[Context, TaskiqDepends()]
TheBatch: TypeAlias = Annotated[BatchContext, TaskiqDepends()]


@dataclass(frozen=True, eq=False)
class _Odd:
    """A value that cannot be hashed, or not be compared with an equal one."""

    value: int
    kind: type[BaseException]
    is_hashable: bool

    def __hash__(self) -> int:
        if self.is_hashable:
            return hash(self.value)
        raise self.kind(self.value)

    def __eq__(self, other: object) -> bool:
        raise self.kind(self.value)


class _Functions:
    """What the batch tasks ask of an item."""

    def __init__(self, world: World) -> None:
        self.world = world

    def _value(self, number: int, value: int, *faults: Fault) -> Any:
        """Give a value, or what a fault makes of it: calling, hashing, comparing."""
        sent = self.world.sent[number]
        if sent.fault not in faults:
            return value
        kind = sent.error.kind(PlacingError)
        if sent.fault is faults[0]:
            raise kind(number)
        return _Odd(value, kind, is_hashable=sent.fault is faults[2])

    def key(self, item: int, key: int) -> Any:
        faults = (Fault.KEYING, Fault.HASHING_KEY, Fault.COMPARING_KEY)
        return self._value(item, self.world.sent[item].weight % 2, *faults)

    def weight(self, item: int) -> float:
        weight: float = self._value(item, self.world.sent[item].weight, Fault.WEIGHING)
        return weight

    def coalesce(self, item: int) -> Any:
        faults = (Fault.COALESCING, Fault.HASHING, Fault.COMPARING)
        return self._value(item, self.world.sent[item].same, *faults)

    def arguments(self) -> dict[str, Any]:
        return {"key": self.key, "weight": self.weight, "coalesce": self.coalesce}


def register_tasks(broker: AsyncBroker, world: World) -> None:
    async def alpha(items: list[Item], key: int, context: TheBatch) -> list[Any]:
        assert [int(message.task_id) for message in context.messages] == items
        with _recorded(world, Kind.ALPHA, items, key) as call:
            for index, number in enumerate(items):
                _decide(context, index, number, world.sent[number].entry)
            await _ack_by_hand(world, call, context.ack)
            sent = await _work(world, call)
            entries = [_alpha_entry(world, number) for number in items]
            is_short = sent.ending is Ending.WRONG_LENGTH
            return [*entries, None] if is_short else entries

    async def beta(items: list[Item], key: int) -> Any:
        with _recorded(world, Kind.BETA, items, key) as call:
            await _work(world, call)
            return ["beta", items, key]

    async def plain(item: Item, key: int, context: TheContext) -> Any:
        number = int(context.message.task_id)
        with _recorded(world, Kind.PLAIN, [number], key) as call:
            await _ack_by_hand(world, call, lambda _: context.ack())
            await _work(world, call)
            return ("plain", number)

    functions = _Functions(world).arguments()
    schedule = world.schedule
    each = {**arguments_of(schedule.alpha, functions), "batch_results": "each"}
    shared = {**arguments_of(schedule.beta, functions), "batch_results": "shared"}
    broker.register_task(alpha, task_name="alpha", batch=True, **each)
    broker.register_task(beta, task_name="beta", batch=True, **shared)
    broker.register_task(plain, task_name="plain")


class _recorded:  # noqa: N801 - a context manager, used like a function
    """Writes a call down, also when it is cancelled."""

    def __init__(self, world: World, kind: Kind, numbers: list[int], key: int) -> None:
        self.record = record = world.record_of(numbers[0])
        started = record.note("call")
        for number in numbers:
            record.note("called", number)
        self.call = CallRecord(kind, tuple(numbers), key, started)
        record.calls.append(self.call)

    def __enter__(self) -> CallRecord:
        return self.call

    def __exit__(self, *_: object) -> None:
        for number in self.call.numbers:
            self.call.ended = self.record.note("call ended", number)


async def _work(world: World, call: CallRecord) -> Sent:
    """Take the time of a call, and end it badly if that is to be."""
    first = world.sent[call.numbers[0]]
    try:
        await pause(first.seconds)
    except asyncio.CancelledError:
        await asyncio.sleep(0)  # rolling back takes its time
        await asyncio.sleep(0)
        raise
    if any(world.sent[number].entry is Entry.POISON for number in call.numbers):
        raise PoisonError(*call.numbers)
    if first.ending is Ending.RAISE:
        await first.error.happen(CallError, *call.numbers)
    if first.ending is Ending.NO_RESULT:
        raise NoResultError
    if first.ending is Ending.CANCELS_ITSELF:
        cancel_oneself()
    return first


async def _ack_by_hand(
    world: World,
    call: CallRecord,
    ack: Callable[[int], Any],
) -> None:
    for index, number in enumerate(call.numbers):
        if _is_acked_by_hand(world, number):
            call.acked_by_hand.append(number)
            with suppress(ConnectionError):
                await ack(index)


def _is_acked_by_hand(world: World, number: int) -> bool:
    """Whether the function acknowledges a message, and has not done so before."""
    schedule, sent = world.schedule, world.sent[number]
    record = world.record_of(number)
    is_listening = schedule.entrance is Entrance.LISTEN
    if not is_listening or not schedule.is_ackable:
        return False
    if sent.kind is Kind.ALPHA and schedule.alpha.is_coalescing:
        return False  # it would acknowledge the messages of equal items, too
    if schedule.ack_type_of(sent) is not AcknowledgeType.MANUAL:
        return False
    if sent.fault is Fault.ACK and sent.error is not Error.ORDINARY:
        return False
    return not any(number in call.acked_by_hand for call in record.calls)


_DECIDED: Final = {
    Entry.SET_RESULT: lambda context, index, number: context.set_result(
        index,
        ("set", number),
    ),
    Entry.FAIL: lambda context, index, number: context.fail(index, AlphaError(number)),
    Entry.REJECT: lambda context, index, _: context.reject(index),
}


def _decide(context: BatchContext, index: int, number: int, entry: Entry) -> None:
    decide: Any = _DECIDED.get(entry)
    if decide is not None:
        decide(context, index, number)


def _alpha_entry(world: World, number: int) -> Any:
    if world.sent[number].entry is Entry.ERROR:
        return AlphaError(number)
    return ("alpha", number)
