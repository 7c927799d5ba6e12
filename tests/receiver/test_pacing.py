"""Rates of plain tasks: how often they start, in virtual time."""

from __future__ import annotations

import asyncio
import functools
from typing import Any, cast

import pytest

from taskiq import InMemoryBroker
from taskiq.acks import AckableMessage
from taskiq.exceptions import TaskiqRateError
from taskiq.rates import SHARE, Pace
from taskiq.receiver import Receiver
from taskiq.receiver.pacing import Pacing
from taskiq.receiver.states import MessageState
from taskiq.receiver.tasks import CANCELS_ARE_COUNTED
from taskiq.testing import ManualClock
from tests.support.virtual_time import run_virtual, virtual
from tests.support.worker import Worker

_Starts = list[tuple[float, int]]


def starting(rate: str, seconds: float = 0, **options: Any) -> tuple[Worker, _Starts]:
    """Make a worker whose task `limited` notes what started when."""
    worker, starts = Worker(**options), _Starts()

    @worker.broker.task("limited", rate=rate)
    async def limited(item: int) -> None:
        starts.append((asyncio.get_running_loop().time(), item))
        await asyncio.sleep(seconds)

    return worker, starts


async def send(worker: Worker, *items: int) -> None:
    await worker.send_to(worker.broker.find_task("limited"), *items)


@pytest.mark.parametrize(("rate", "count"), [("2/s", 120), ("100/m", 100), ("7/m", 7)])
def test_in_a_minute_there_are_as_many_calls_as_the_rate_says(
    rate: str,
    count: int,
) -> None:
    worker, starts = starting(rate, seconds=1.3)

    async def main() -> None:
        await send(worker, *range(200))
        listening = worker.listen()
        await asyncio.sleep(60)
        worker.finish.set()
        await listening

    run_virtual(main())
    within = [item for moment, item in starts if moment < 60 - 1e-6]
    assert len(within) == pytest.approx(count, rel=0.05)
    assert within == list(range(len(within)))


def test_who_waits_for_the_rate_holds_no_slot() -> None:
    worker, starts = starting("1/m", max_async_tasks=1)
    others: list[float] = []

    @worker.broker.task("other")
    async def other(_: int) -> None:
        others.append(asyncio.get_running_loop().time())

    async def main() -> None:
        await send(worker, 1, 2)
        listening = worker.listen()
        await asyncio.sleep(1)
        await worker.send_to(other, 3)
        await asyncio.sleep(1)
        assert others == [1]
        worker.finish.set()
        await listening
        worker.assert_as_new()

    run_virtual(main())
    assert starts == [(0, 1), (60, 2)]


@pytest.mark.parametrize("limit", [1, 3, None])
def test_however_many_wait_for_the_rate_another_task_starts_within_a_second(
    limit: int | None,
) -> None:
    """A thousand step aside at once, and then one a second: the others hold a slot."""
    worker, _ = starting("10/h", max_async_tasks=limit, wait_tasks_timeout=0)
    others: list[float] = []

    @worker.broker.task("other")
    async def other(_: int) -> None:
        others.append(asyncio.get_running_loop().time())

    async def main() -> None:
        await send(worker, *range(SHARE + 11))
        listening = worker.listen()
        await worker.send_to(other, "other")
        await asyncio.sleep(0.5)
        beyond = 0 if limit is None else SHARE + 10 - (SHARE + limit - 1)
        assert len(others) == (limit is None)
        await asyncio.sleep(beyond + 0.51)
        assert len(others) == 1
        await asyncio.sleep(20)
        for number in range(5):
            await worker.send_to(other, f"other {number}")
        await asyncio.sleep(1)
        assert others[1:] == pytest.approx([others[-1]] * 5)
        worker.finish.set()
        await listening
        if limit is not None:
            worker.assert_as_new()

    run_virtual(main())


def test_who_is_called_makes_room_for_one_who_holds_a_slot() -> None:
    worker, starts = starting("10/s", max_async_tasks=1)
    others: list[float] = []

    @worker.broker.task("other")
    async def other(_: int) -> None:
        others.append(asyncio.get_running_loop().time())

    async def main() -> None:
        await send(worker, *range(SHARE + 3))
        listening = worker.listen()
        await worker.send_to(other, "other")
        await asyncio.sleep(0.45)
        assert others == pytest.approx([0.2])
        await asyncio.sleep(200)
        worker.finish.set()
        await listening
        worker.assert_as_new()

    run_virtual(main())
    assert [item for _, item in starts] == list(range(SHARE + 3))
    assert len(worker.broker.acked) == SHARE + 4


def test_who_waited_for_a_slot_starts_no_sooner_after_the_one_before() -> None:
    """The slots are taken for ten seconds; ten that were to start meanwhile wait."""
    worker, starts = starting("1/s", max_async_tasks=3, max_prefetch=20)

    @worker.broker.task("long")
    async def long(_: int) -> None:
        await asyncio.sleep(10)

    async def main() -> None:
        await worker.send_to(long, 7, 8, 9)
        await send(worker, 1, 2, 3)
        await worker.run()

    run_virtual(main())
    assert starts == [(10, 1), (11, 2), (12, 3)]


@pytest.mark.parametrize(("limit", "count"), [(None, 4), (1.5, 2)])
def test_a_stop_starts_what_was_read_at_its_rate_as_long_as_there_is_time(
    limit: float | None,
    count: int,
) -> None:
    worker, starts = starting("1/s", wait_tasks_timeout=limit)

    async def main() -> None:
        await send(worker, 0, 1, 2, 3)
        listening = worker.listen()
        await asyncio.sleep(0.25)
        worker.finish.set()
        await listening
        worker.assert_as_new()

    run_virtual(main())
    assert starts == [(n, n) for n in range(count)]
    assert worker.broker.acked == [str(n) for n in range(count)]


def test_a_worker_without_a_limit_reads_on_meanwhile() -> None:
    worker, starts = starting("1/s", max_async_tasks=None)

    async def main() -> None:
        await send(worker, 0, 1, 2)
        await worker.run()

    run_virtual(main())
    assert starts == [(0, 0), (1, 1), (2, 2)]


def test_a_callback_of_ones_own_has_the_same_rate() -> None:
    class OwnReceiver(Receiver):
        async def callback(
            self,
            message: bytes | AckableMessage,
            raise_err: bool = False,
        ) -> None:
            await super().callback(message, raise_err)

    worker, starts = starting("1/s", receiver_class=OwnReceiver)

    async def main() -> None:
        await send(worker, 0, 1, 2)
        await worker.run()

    run_virtual(main())
    assert starts == [(0, 0), (1, 1), (2, 2)]


@pytest.mark.parametrize("when", ["before", "just before", "just after"])
@virtual
async def test_who_gives_up_waiting_holds_nobody_up(when: str) -> None:
    """Before its turn, or in the moment of that."""
    worker, starts = starting("1/s")
    clock = ManualClock()
    worker.receiver.use_clock(clock)
    callbacks: list[asyncio.Task[None]] = []
    await send(worker, 0, 1, 2)
    async for message in worker.broker.listen():
        callbacks.append(asyncio.ensure_future(worker.receiver.callback(message)))
        if len(callbacks) == 3:
            break
    await callbacks[0]
    if when != "just after":
        callbacks[1].cancel()
    if when != "before":
        clock.advance(1)
    callbacks[1].cancel()
    await asyncio.wait(callbacks[1:2])
    assert callbacks[1].cancelled()
    clock.advance(1)
    await callbacks[2]
    # Python 3.10 has a task inside a callback, which has begun with its turn.
    is_late = when == "just after" and not CANCELS_ARE_COUNTED
    assert [item for _, item in starts] == ([0, 1, 2] if is_late else [0, 2])
    assert clock.armed == 0


@virtual
async def test_in_process_messages_start_at_the_rate_of_their_task() -> None:
    broker = InMemoryBroker()
    starts: list[float] = []

    @broker.task(rate="2/s")
    async def limited() -> None:
        starts.append(asyncio.get_running_loop().time())

    for _ in range(3):
        await limited.kiq()
    await broker.wait_all()
    assert starts == [0, 0.5, 1]


@virtual
async def test_with_a_clock_of_ones_own_the_next_one_waits_until_it_is_moved() -> None:
    clock, calls = ManualClock(), list[int]()
    broker = InMemoryBroker().with_clock(clock)

    @broker.task(rate="1/m")
    async def limited(item: int) -> None:
        calls.append(item)

    await limited.kiq(1)
    await limited.kiq(2)
    await broker.wait_running()
    assert calls == [1]
    clock.advance(60)
    await broker.wait_running()
    assert calls == [1, 2]
    assert clock.armed == 0


@pytest.mark.parametrize("rate", ["2", 2, "0/s", "2/d"])
def test_what_is_no_rate_is_refused(rate: Any) -> None:
    broker = InMemoryBroker()
    with pytest.raises(TaskiqRateError) as caught:
        broker.register_task(len, "measure", rate=rate)
    assert str(caught.value) == (
        f"Cannot register task measure: rate={rate!r} is not allowed: it must be text: "
        'so many calls per second, minute or hour, as in "2/s", "100/m" or "10/h"'
    )


@pytest.mark.parametrize("count", [2, SHARE + 11])
@pytest.mark.parametrize("is_called", [False, True])
def test_a_message_that_is_left_is_called_by_nobody_and_holds_up_none(
    count: int,
    is_called: bool,
) -> None:
    """A stop that has no time discards those who wait; the next listen is as new.

    Those that were called and wait for a slot, too, and those that hold one as so many
    wait already.
    """
    worker, starts = starting("1/s", max_async_tasks=4, wait_tasks_timeout=0)

    async def main() -> None:
        await send(worker, *range(count))
        listening = worker.listen()
        await asyncio.sleep(0.5)
        if is_called:
            await worker.occupy()
            await asyncio.sleep(1)
        worker.finish.set()
        await listening
        if is_called:
            worker.vacate()
        worker.assert_as_new()
        worker.finish.clear()
        worker.broker.take_all()
        await send(worker, -1)
        listening = worker.listen()
        await asyncio.sleep(1)
        worker.finish.set()
        await listening

    run_virtual(main())
    assert [item for _, item in starts] == [0, -1]
    assert len(worker.broker.acked) == 2


def test_a_batch_task_is_told_its_own_argument() -> None:
    broker: Any = InMemoryBroker()

    async def work(items: list[int]) -> list[int]:
        return items

    with pytest.raises(TaskiqRateError, match="says it with batch_rate="):
        broker.register_task(work, "work", batch=True, rate="2/s")


def test_a_task_that_is_registered_again_keeps_its_rate_and_sends_no_label() -> None:
    broker, other = InMemoryBroker(), InMemoryBroker()
    first = broker.register_task(len, "measure", rate="2/s")
    again = other.register_task(first)
    assert first.rate == again.rate == "2/s"
    assert "rate" not in again.labels


# -- The line of a task, by itself ----------------------------------------------------


class Restful(Pace):
    """Counts how often it was told that nobody waits."""

    rests = 0

    def rest(self) -> None:
        self.rests += 1


class Line:
    """Messages of one task, by a clock that is moved by hand.

    :ivar called: those whose turn it was.
    """

    rate = "1/h"

    def __init__(self) -> None:
        self.clock, self.pace = ManualClock(), Restful(self.rate)
        self.pacing = Pacing(self.clock, lambda *_: self.pace)
        self.called: list[Message] = []

    def enter(self, count: int) -> list[Message]:
        messages = [Message(self) for _ in range(count)]
        for each in messages:
            go = functools.partial(self.called.append, each)
            self.pacing.enter(cast("Any", each), go, is_held=True)
        return messages


class Message:
    """What the line of its task knows of a message."""

    def __init__(self, task: Line) -> None:
        self.task = task
        self.state = MessageState.ADMITTING

    def steps_aside(self) -> None:
        self.state = MessageState.PACED


def test_beyond_those_that_may_wait_the_first_steps_aside_in_each_second() -> None:
    line = Line()
    first, *_ = line.enter(1 + SHARE)
    assert line.called == [first]
    others = line.enter(3)
    for count in range(4):
        states = [each.state is MessageState.PACED for each in others]
        assert states == [number < count for number in range(3)]
        line.clock.advance(1)
    assert line.clock.armed == 0  # who was called has not started


def test_the_rate_is_told_when_nobody_waits_for_it_any_more() -> None:
    line = Line()
    first, second = line.enter(2)
    line.pacing.started(cast("Any", first))
    assert line.pace.rests == 0
    line.pacing.leave(cast("Any", second))
    assert line.pace.rests == 1
    assert line.clock.armed == 0
