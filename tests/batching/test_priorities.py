"""Priorities in a whole worker: what is never high in rank waits, but not for ever."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.virtual_time import run_virtual
from tests.support.worker import Worker

if TYPE_CHECKING:
    pass

#: Of how many keys there may be messages of the quiet task, and of the busy one.
_KEYS = 3


class Crowd:
    """A worker whose slots are never free: as one call ends, others are due.

    :param seconds: how long each call takes.
    :param timeout: of the quiet task, whose priority is the lowest.
    :param is_plain: whether messages of a plain task take their turn, too.
    :ivar sent: when each message of the quiet task, or of `lone`, was sent.
    :ivar started: when it started.
    """

    def __init__(
        self, slots: int, seconds: float, timeout: float, *, is_plain: bool
    ) -> None:
        self.worker = Worker(
            max_async_tasks=slots, max_prefetch=1000, wait_tasks_timeout=0
        )
        self.sent: dict[int, float] = {}
        self.started: dict[int, float] = {}
        self.calls = 0
        self._seconds = seconds
        self._is_plain = is_plain
        broker: Any = self.worker.broker
        self._busy: Any = broker.task(
            "busy", batch=True, batch_size=1, batch_timeout=0, batch_priority=10
        )(self._work)
        self._load = broker.register_task(self._load_one, "load")
        self._quiet = broker.task(
            "quiet",
            batch=True,
            batch_size=2,
            batch_timeout=timeout,
            batch_priority=-10,
        )(self._note)
        self._lone = broker.register_task(self._note_one, "lone")

    async def _work(self, items: list[int], key: int = 0) -> None:
        self.calls += 1
        await asyncio.sleep(self._seconds)

    async def _load_one(self, item: int) -> None:
        self.calls += 1
        await asyncio.sleep(self._seconds)

    async def _note(self, items: list[int], key: int = 0) -> None:
        now = asyncio.get_running_loop().time()
        self.started.update(dict.fromkeys(items, now))
        await asyncio.sleep(self._seconds)

    async def _note_one(self, item: int) -> None:
        await self._note([item])

    async def feed(self) -> None:
        """Keep more waiting than there are slots, for as long as it goes on."""
        number = 0
        while True:
            waiting = self.worker.receiver.batch_statistics().due_batches
            while waiting < 2 * _KEYS:
                await self._busy.kiq(number, number % _KEYS)
                if self._is_plain:
                    await self._load.kiq(number)
                number, waiting = number + 1, waiting + 1
            await asyncio.sleep(self._seconds / 4)

    async def send(self, number: int, key: int | None) -> None:
        self.sent[number] = asyncio.get_running_loop().time()
        if key is None:
            await self._lone.kiq(number)
        else:
            await self._quiet.kiq(number, key)

    async def play(
        self, quiet: list[tuple[float, int | None]], patience: float
    ) -> None:
        listening = self.worker.listen()
        feeding = asyncio.ensure_future(self.feed())
        await asyncio.sleep(patience / 2)
        for number, (pause, key) in enumerate(quiet):
            await asyncio.sleep(pause * patience)
            await self.send(number, key)
        await asyncio.sleep(2 * patience)
        feeding.cancel()
        self.worker.finish.set()
        await asyncio.wait([listening, feeding])


@settings(max_examples=settings().max_examples // 4, deadline=None)
@given(
    st.integers(1, 3),
    st.sampled_from([0, 0.5, 1.0, 3.0]),
    st.floats(0.1, 0.9),
    st.booleans(),
    st.lists(
        st.tuples(
            st.sampled_from([0, 0, 0.1, 0.5, 1.0]), st.none() | st.integers(0, 2)
        ),
        min_size=1,
        max_size=5,
    ),
)
def test_nothing_waits_beyond_ten_times_its_timeout(
    slots: int,
    timeout: float,
    share: float,
    is_plain: bool,
    quiet: list[tuple[float, int | None]],
) -> None:
    """Whatever is always due with a higher priority, and whatever plain tasks run.

    A worker gets through one call of each key that waits in half of that time: with
    less nobody can promise it.
    """
    patience = 10 * (timeout or 1)
    turns = (2 * _KEYS + 1) * (2 if is_plain else 1)
    crowd = Crowd(slots, share * patience / 2 / turns, timeout, is_plain=is_plain)
    run_virtual(crowd.play(quiet, patience))
    assert crowd.calls > 2 * slots
    for number, sent in crowd.sent.items():
        waited = crowd.started[number] - sent
        assert waited <= patience, f"{quiet[number]} waited {waited} s"
