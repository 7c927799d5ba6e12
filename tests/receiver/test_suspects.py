"""What may kill its process is found with few deaths, and costs no other a result."""

from __future__ import annotations

import asyncio
import math
import random
from collections import deque
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from taskiq.acks import AckableMessage
from taskiq.brokers.inmemory_broker import InMemoryBroker
from taskiq.receiver import Receiver
from taskiq.receiver.casualties import Death
from taskiq.receiver.suspects import Part, counted, has_died, parts, runs, turn_of
from taskiq.receiver.turns import Turn
from tests.support.brokers import QueueBroker
from tests.support.virtual_time import virtual
from tests.support.worker import Worker

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator

    from taskiq.message import BrokerMessage


@given(
    st.lists(st.integers(1, 200), min_size=1, max_size=300),
    st.integers(1, 300),
    st.none() | st.integers(1, 12),
)
@example([3], 8, None)
@example([1], 8, 1)
def test_every_message_is_in_one_call_with_such_as_itself(
    deliveries: list[int],
    size: int,
    limit: int | None,
) -> None:
    calls = parts(deliveries, size, limit)
    assert sorted(index for call in calls for index in call.indexes) == list(
        range(len(deliveries)),
    )
    for call, is_exclusive in calls:
        most = max(deliveries[index] for index in call)
        assert 1 <= len(call) <= max(size / 2 ** (most - 1), 1)
        assert list(call) == sorted(call)
        if limit is not None and most >= limit > 1:
            assert len(call) == 1
        assert is_exclusive is (most > 2 or (most == 2 and limit in {1, 2}))


@given(
    size=st.integers(2, 128),
    count=st.integers(1, 600),
    data=st.data(),
)
def test_one_that_kills_is_alone_soon_and_the_others_end(
    size: int,
    count: int,
    data: st.DataObject,
) -> None:
    killer = data.draw(st.integers(0, count - 1))
    held = data.draw(st.integers(size, 2 * count + size))
    shuffle = random.Random(data.draw(st.integers(0, 1000))).shuffle  # noqa: S311
    deliveries, left, shared, deaths = [1] * count, list(range(count)), 0, 0
    while left != [killer]:
        # As a broker would: what the process held comes again, in order, counted up.
        taken = left[:held]
        for call in calls_until_death(taken, deliveries, size, killer, shuffle):
            if killer in call:
                deaths += 1
                shared += len(call) > 1
            else:
                left = [each for each in left if each not in call]
        for each in taken:
            deliveries[each] += 1
    assert shared <= math.log2(size) + 1
    # Beside those, the runs of the killer alone: the others get on meanwhile.
    assert deaths <= 200 + 10 * count


def calls_until_death(
    taken: list[int],
    deliveries: list[int],
    size: int,
    killer: int,
    shuffle: Callable[[list[list[int]]], None],
) -> Iterator[list[int]]:
    """Give the calls of a process that begins with the worst batch."""
    for start in range(0, len(taken), size):
        batch = taken[start : start + size]
        for call, _ in parts([deliveries[each] for each in batch], size, None, shuffle):
            items = [batch[index] for index in call]
            yield items
            if killer in items:
                return


@pytest.mark.parametrize(
    ("deliveries", "ran", "waited", "unknown", "count"),
    [
        (1, 0, 0, 0, 1),
        (4, 0, 0, 0, 4),
        (4, 1, 2, 0, 2),
        (4, 1, 1, 1, 3),
        (2, 4, 0, 0, 5),
        (20, 0, 16, 0, 4),
        (20, 0, 19, 0, 4),
    ],
)
def test_a_death_counts_for_those_that_may_have_run(
    deliveries: int, ran: int, waited: int, unknown: int, count: int
) -> None:
    """Not more than 16 are excused: something may kill before it runs."""
    kinds = ((ran, frozenset("a")), (waited, frozenset("b")), (unknown, None))
    deaths = [Death(0.0, ids) for number, ids in kinds for _ in range(number)]
    assert counted(deliveries, "a", deaths) == count
    assert has_died("a", deaths) is (ran > 0)


@pytest.mark.parametrize(
    ("deliveries", "limit", "turn"),
    [
        (1, 5, Turn(64)),
        (2, 9, Turn(32)),
        (3, 9, Turn(16)),
        (100, 200, Turn(1)),
        # With the limit at hand, from 64 to 8 and to 1.
        (2, 3, Turn(8)),
        (3, 3, Turn(1, is_alone=True)),
        (2, 2, Turn(1, is_alone=True)),
    ],
)
def test_ever_fewer_of_64_run_together_and_one_at_its_last_delivery(
    deliveries: int, limit: int, turn: Turn
) -> None:
    """Half of them, or fewer, as the limit is near."""
    assert turn_of(deliveries, 64, limit) == turn


@given(
    size=st.integers(2, 128),
    count=st.integers(1, 300),
    limit=st.integers(2, 12),
    at_once=st.integers(1, 6),
    data=st.data(),
)
def test_one_that_kills_is_over_its_limit_and_no_other_is(
    size: int,
    count: int,
    limit: int,
    at_once: int,
    data: st.DataObject,
) -> None:
    """Where it is known what ran, whoever else was held by the process or ran in it."""
    killer = data.draw(st.integers(0, count - 1))
    chance = random.Random(data.draw(st.integers(0, 1000)))  # noqa: S311
    deliveries, left = [1] * count, list(range(count))
    deaths: list[Death] = []

    def counts(messages: list[int]) -> list[int]:
        return [counted(deliveries[each], str(each), deaths) for each in messages]

    while left:
        over = [each for each, n in zip(left, counts(left), strict=True) if n > limit]
        assert over in ([], [killer])
        left = [each for each in left if each not in over]
        batches = [left[start : start + size] for start in range(0, len(left), size)]
        calls = [
            deque(
                call._replace(indexes=[batch[i] for i in call.indexes]) for call in run
            )
            for batch in batches
            for run in runs(parts(counts(batch), size, limit, chance.shuffle))
        ]
        left = process(calls, left, killer, at_once, chance, deaths)
        for each in left:
            deliveries[each] += 1
    assert len(deaths) == limit


def process(
    batches: list[deque[Part]],
    left: list[int],
    killer: int,
    at_once: int,
    chance: random.Random,
    deaths: list[Death],
) -> list[int]:
    """Make calls, some at once, until one kills; give what has no result then."""
    going: dict[int, Part] = {}
    while any(batches) or going:
        for number, batch in enumerate(batches):
            is_free = not any(each.is_exclusive for each in going.values())
            may_begin = batch and (is_free or not batch[0].is_exclusive)
            if number not in going and len(going) < at_once and may_begin:
                going[number] = batch.popleft()
        number = chance.choice(list(going))
        if killer in going[number].indexes:
            ids = [str(each) for part in going.values() for each in part.indexes]
            deaths.append(Death(0.0, frozenset(ids)))
            return left
        done = going.pop(number).indexes
        left = [each for each in left if each not in done]
    return left


async def four() -> int:
    return 4


async def away() -> int:
    raise ConnectionError("the server is away")


async def hangs() -> int:
    await asyncio.Event().wait()
    raise NotImplementedError


#: One is asked for its count, one cannot be asked, one says nothing.
COUNTS = (1, 2, four, away, 2, 2, None)


class Redelivering(InMemoryBroker):
    """Delivers messages that say how often they were delivered; the last is bytes.

    Every other one says so when it is equipped.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[bytes, Any] = {}

    def equip_message(self, message: bytes | AckableMessage) -> Any:
        if isinstance(message, AckableMessage) and message.deliveries is None:
            message.deliveries = self.counts[message.data]
            if message.deliveries is None:
                raise LookupError("nothing is known of it")
        return message

    async def listen(self) -> AsyncGenerator[Any, None]:
        for number, deliveries in enumerate(COUNTS):
            data = self.formatter.dumps(
                self.find_task("double").kicker()._prepare_message(number),  # type: ignore[union-attr]
            ).message
            self.counts[data] = deliveries
            yield AckableMessage(
                data=data,
                ack=lambda: None,
                deliveries=None if number % 2 else deliveries,
            )
        yield self.formatter.dumps(
            self.find_task("double").kicker()._prepare_message(7),  # type: ignore[union-attr]
        ).message


@pytest.mark.parametrize(
    ("options", "together"),
    # At the limit of two each suspect is delivered for the last time.
    [({}, 3), ({"batch_concurrency": 2}, 2), ({"max_deliveries": 2}, 1)],
)
async def test_what_died_once_runs_side_by_side_where_there_are_slots(
    options: dict[str, Any], together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is killed leaves messages that are to run again soon."""
    monkeypatch.setattr("tests.receiver.test_suspects.COUNTS", (2, 2, 2, 2, 2, 2, 1))
    broker = Redelivering()
    running: list[list[int]] = []
    most: list[list[int]] = []
    calls: list[list[int]] = []

    @broker.task("double", batch=True, batch_size=8, batch_timeout=60, **options)  # type: ignore[untyped-decorator]
    async def double(numbers: list[int]) -> list[int]:
        calls.append(numbers)
        running.append(numbers)
        for _ in range(20):
            await asyncio.sleep(0)
        if len(running) > len(most):
            most[:] = running
        running.remove(numbers)
        return numbers

    await Receiver(broker, run_startup=False).listen(asyncio.Event())
    assert (most[0], len(most)) == ([6, 7], together)
    sizes = [1] * 6 if together == 1 else [4, 2]
    assert sorted(map(len, calls[1:]), reverse=True) == sizes
    assert len(broker.result_backend.results) == 8  # type: ignore[attr-defined]


@pytest.mark.parametrize(("unknown", "seconds"), [(away, 0), (hangs, 5)])
@virtual
async def test_a_worker_calls_suspects_apart_and_settles_call_by_call(
    unknown: Any,
    seconds: float,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A broker that does not say its count has five seconds: then it is the first."""
    counts = (*COUNTS[:3], unknown, *COUNTS[4:])
    monkeypatch.setattr("tests.receiver.test_suspects.COUNTS", counts)
    broker = Redelivering()
    calls: list[list[int]] = []

    @broker.task("double", batch=True, batch_size=8, batch_timeout=60)
    async def double(numbers: list[int]) -> list[int]:
        # What was called before is settled by now.
        assert len(broker.result_backend.results) == sum(map(len, calls))  # type: ignore[attr-defined]
        calls.append(numbers)
        return [2 * number for number in numbers]

    await Receiver(broker, run_startup=False).listen(asyncio.Event())
    assert calls == [[0, 3, 6, 7], [1, 4, 5], [2]]
    backend: Any = broker.result_backend
    assert [each.return_value for each in backend.results.values()] == [
        0,
        6,
        12,
        14,
        2,
        8,
        10,
        4,
    ]
    [told] = [each for each in caplog.messages if "Runs alone" in each]
    assert told.startswith("Runs alone, as it was delivered 4 times: a process may ")
    assert asyncio.get_running_loop().time() == seconds


async def test_the_items_of_a_chunk_that_came_twice_are_parted_like_messages() -> None:
    broker = Redelivering()
    calls: list[list[int]] = []

    @broker.task("double", batch=True, batch_size=8, batch_timeout=60)
    async def double(numbers: list[int]) -> list[int]:
        calls.append(numbers)
        return [2 * number for number in numbers]

    sent: list[bytes] = []

    async def keep(message: Any) -> None:
        sent.append(message.message)

    asked: list[int] = []

    def asks(deliveries: int) -> Callable[[], Coroutine[Any, Any, int]]:
        async def ask() -> int:
            asked.append(deliveries)
            return deliveries

        return ask

    async def listen() -> AsyncGenerator[AckableMessage, None]:
        for deliveries in (2, 1):
            data, ack = sent[0], (lambda: None)
            yield AckableMessage(data=data, ack=ack, deliveries=asks(deliveries))

    broker.kick = keep  # type: ignore[method-assign]
    handle = await double.kiq_chunk(range(6))
    broker.listen = listen  # type: ignore[method-assign]
    await Receiver(broker, run_startup=False).listen(asyncio.Event())
    assert sorted(calls) == [[0, 1], [0, 1, 2, 3], [2, 3, 4, 5], [4, 5]]
    assert asked == [2, 1]  # once, whatever batches their items are in
    items = (await handle.get_result()).return_value
    assert [each.return_value for each in items] == [0, 2, 4, 6, 8, 10]


@pytest.mark.parametrize("kind", ["plain", "batch", "chunk"])
@virtual
async def test_a_broker_is_asked_once_how_often_it_delivered_a_message(
    kind: str,
) -> None:
    """For its limit, for the parts of its batch, and for what becomes of it."""
    asked: list[bytes] = []

    class Counting(QueueBroker):
        message_capabilities = ("deliveries",)

        def ackable(self, message: BrokerMessage) -> AckableMessage:
            async def ask() -> int:
                asked.append(message.message)
                return 2

            told = {"deliveries": ask}
            return super().ackable(message).model_copy(update=told)

    worker = Worker(broker=Counting())

    async def fail(given: Any) -> None:
        raise ValueError

    options: dict[str, Any] = {"max_deliveries": 5, "on_failure": "ack"}
    if kind != "plain":
        options |= {"batch": True, "batch_size": 2}
    task: Any = worker.broker.register_task(fail, "work", **options)
    if kind == "chunk":
        await task.kiq_chunk(range(4))
    else:
        await worker.send_to(task, *range(4))
    await worker.run()
    worker.assert_as_new()
    assert len(worker.broker.acked) == len(asked) == (1 if kind == "chunk" else 4)
    assert len(asked) == len(set(asked))
