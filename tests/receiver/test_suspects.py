"""What may kill its process is found with few deaths, and costs no other a result."""

from __future__ import annotations

import asyncio
import math
import random
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskiq.acks import AckableMessage
from taskiq.brokers.inmemory_broker import InMemoryBroker
from taskiq.receiver import Receiver
from taskiq.receiver.suspects import parts

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator


@given(
    st.lists(st.integers(1, 200), min_size=1, max_size=300),
    st.integers(1, 300),
)
def test_every_message_is_in_one_call_with_such_as_itself(
    deliveries: list[int],
    size: int,
) -> None:
    calls = parts(deliveries, size)
    assert sorted(index for call in calls for index in call) == list(
        range(len(deliveries)),
    )
    for call in calls:
        most = max(deliveries[index] for index in call)
        assert 1 <= len(call) <= max(size / 2 ** (most - 1), 1)
        assert call == sorted(call)


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
        for call in parts([deliveries[each] for each in batch], size, shuffle):
            items = [batch[index] for index in call]
            yield items
            if killer in items:
                return


async def four() -> int:
    return 4


async def away() -> int:
    raise ConnectionError("the server is away")


#: One is asked for its count, one cannot be asked, one says nothing.
COUNTS = (1, 2, four, away, 2, 2, None)


class Redelivering(InMemoryBroker):
    """Delivers messages that say how often they were delivered; the last is bytes."""

    def equip_message(self, message: bytes | AckableMessage) -> Any:
        return message

    async def listen(self) -> AsyncGenerator[Any, None]:
        for number, deliveries in enumerate(COUNTS):
            message = self.formatter.dumps(
                self.find_task("double").kicker()._prepare_message(number),  # type: ignore[union-attr]
            )
            yield AckableMessage(
                data=message.message,
                ack=lambda: None,
                deliveries=deliveries,
            )
        yield self.formatter.dumps(
            self.find_task("double").kicker()._prepare_message(7),  # type: ignore[union-attr]
        ).message


async def test_a_worker_calls_suspects_apart_and_settles_call_by_call(
    caplog: pytest.LogCaptureFixture,
) -> None:
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
    results = broker.result_backend.results.values()  # type: ignore[attr-defined]
    assert [each.return_value for each in results] == [0, 6, 12, 14, 2, 8, 10, 4]
    assert "Runs alone, as it was delivered 4 times" in caplog.text
