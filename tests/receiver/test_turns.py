"""What may kill its process runs beside ever fewer others, and in the end alone."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskiq.receiver.casualties import Death
from taskiq.receiver.suspects import counted, has_died, turn_of
from taskiq.receiver.turns import Gate, Turn, Turns
from taskiq.testing import ManualClock

# -- Decisions ----------------------------------------------------------------------

ALONE, FEW = Turn(1, is_alone=True), Turn(2)


@pytest.mark.parametrize(
    ("running", "turn", "options", "may_begin"),
    [
        ([], ALONE, {}, True),
        ([None], ALONE, {}, False),
        ([None], ALONE, {"is_late": True}, True),
        ([ALONE], ALONE, {"is_late": True}, False),
        ([ALONE], None, {}, False),
        ([ALONE], None, {"is_open": True}, True),
        ([ALONE], FEW, {"is_open": True}, False),
        ([None, None, None], FEW, {}, True),
        ([FEW], FEW, {}, True),
        ([FEW, FEW], FEW, {}, False),
        ([FEW, FEW], None, {}, True),
        ([Turn(5), Turn(5)], FEW, {}, False),
        ([FEW, FEW], Turn(5), {}, False),
    ],
)
def test_who_may_begin_beside_whom(
    running: list[Turn | None],
    turn: Turn | None,
    options: dict[str, bool],
    may_begin: bool,
) -> None:
    gate = Gate()
    for each in running:
        gate.begin(each)
    assert gate.may_begin(turn, **options) is may_begin
    for each in running:
        gate.end(each)
    assert gate.may_begin(ALONE)


# -- A model of processes that die ---------------------------------------------------


@dataclass
class Process:
    """One of those that share what they know of deaths."""

    gate: Gate = field(default_factory=Gate)
    held: dict[int, Turn | None] = field(default_factory=dict)
    running: dict[int, Turn | None] = field(default_factory=dict)


class Broker:
    """A broker that counts, with processes that die of some of its messages."""

    def __init__(
        self, count: int, killers: set[int], limit: int, slots: int, chance: Any
    ) -> None:
        self.queue = list(range(count))
        self.killers, self.limit, self.slots = killers, limit, slots
        self.chance: random.Random = chance
        self.deliveries = [0] * count
        self.runs = [0] * count
        self.dead: list[int] = []
        self.done: list[int] = []
        self.deaths: list[Death] = []

    def deliver(self, process: Process) -> None:
        number = self.queue.pop(self.chance.randrange(len(self.queue)))
        self.deliveries[number] += 1
        count = counted(self.deliveries[number], str(number), self.deaths)
        if count > self.limit:
            self.dead.append(number)
        elif has_died(str(number), self.deaths):
            process.held[number] = turn_of(count, self.slots, self.limit)
        else:
            process.held[number] = None

    def begin(self, process: Process, number: int) -> None:
        turn = process.held.pop(number)
        process.gate.begin(turn)
        process.running[number] = turn
        self.runs[number] += 1

    def end(self, process: Process, number: int) -> bool:
        """End a call; say whether it has killed its process."""
        if number in self.killers:
            ids = frozenset(map(str, process.running))
            self.deaths.append(Death(0.0, ids))
            self.queue += [*process.running, *process.held]
            return True
        process.gate.end(process.running.pop(number))
        self.done.append(number)
        return False


@given(
    count=st.integers(1, 40),
    limit=st.integers(2, 5),
    slots=st.integers(1, 10),
    processes=st.integers(1, 3),
    data=st.data(),
)
def test_those_that_kill_are_dead_at_their_limit_and_no_other_is(
    count: int, limit: int, slots: int, processes: int, data: st.DataObject
) -> None:
    """Whoever runs beside whom, and however many of them kill."""
    killers = data.draw(st.sets(st.integers(0, count - 1), max_size=3))
    chance = random.Random(data.draw(st.integers(0, 10_000)))  # noqa: S311
    broker = Broker(count, killers, limit, slots, chance)
    pool = [Process() for _ in range(processes)]
    while len(broker.done) + len(broker.dead) < count:
        index = chance.randrange(processes)
        process = pool[index]
        ready = [
            number
            for number, turn in process.held.items()
            if len(process.running) < slots and process.gate.may_begin(turn)
        ]
        held = len(process.held) + len(process.running)
        if ready and chance.random() < 0.6:
            broker.begin(process, chance.choice(ready))
        elif broker.queue and held < slots + 3 and chance.random() < 0.6:
            broker.deliver(process)
        elif process.running:
            number = chance.choice(list(process.running))
            if broker.end(process, number):
                pool[index] = Process()
    assert sorted(broker.dead) == sorted(killers)
    assert all(broker.runs[each] == limit for each in killers)


# -- Waiting --------------------------------------------------------------------------


class Bench:
    """Calls that wait for their turn, and lists of those that run and have waited."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.is_open = False
        self.turns = Turns(self.clock, lambda: self.is_open)
        self.running: list[str] = []
        self.waited: list[str] = []
        self._ends: dict[str, asyncio.Event] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def call(self, name: str, turn: Turn | None = None) -> None:
        self._ends[name] = asyncio.Event()
        self._tasks[name] = asyncio.create_task(self._call(name, turn))
        await self.settle()

    async def _call(self, name: str, turn: Turn | None) -> None:
        if await self.turns.enter(turn):
            self.waited.append(name)
        self.running.append(name)
        try:
            await self._ends[name].wait()
        finally:
            self.running.remove(name)
            self.turns.leave(turn)

    async def end(self, name: str) -> None:
        self._ends[name].set()
        await self.settle()

    async def cancel(self, name: str) -> None:
        self._tasks[name].cancel()
        await self.settle()

    async def settle(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)


async def test_one_that_is_to_be_alone_waits_for_those_before_and_not_behind_it() -> (
    None
):
    bench = Bench()
    assert not bench.turns.is_asked
    await bench.call("a")
    await bench.call("alone", ALONE)
    await bench.call("b")
    assert bench.running == ["a"]
    await bench.end("a")
    assert bench.running == ["alone"]
    await bench.end("alone")
    assert bench.running == ["b"]
    assert bench.waited == ["alone", "b"]
    await bench.end("b")
    await bench.call("last", ALONE)
    assert bench.turns.is_asked
    await bench.end("last")
    assert not bench.turns.is_asked
    assert bench.clock.armed == 0
    assert bench.turns.gate.calls == 0


@pytest.mark.parametrize("turn", [None, FEW])
async def test_it_begins_beside_what_goes_on_for_long(turn: Turn | None) -> None:
    """And is alone from then on, also when that has ended."""
    bench = Bench()
    await bench.call("long", turn)
    await bench.call("alone", ALONE)
    bench.clock.advance(30)
    await bench.settle()
    await bench.call("b")
    assert bench.running == ["long", "alone"]
    await bench.end("long")
    await bench.call("c")
    assert bench.running == ["alone"]
    await bench.end("alone")
    assert bench.running == ["b", "c"]


async def test_suspects_begin_in_the_order_they_came_and_others_between_them() -> None:
    bench = Bench()
    await bench.call("first", FEW)
    await bench.call("one", Turn(1))
    await bench.call("two", FEW)
    assert not bench.turns.is_asked
    await bench.call("a")
    assert bench.running == ["first", "a"]
    await bench.end("first")
    assert bench.running == ["a", "one"]
    await bench.end("one")
    assert bench.running == ["a", "two"]


@pytest.mark.parametrize("waits_before", [True, False])
async def test_what_a_call_waits_for_is_not_kept_from_running(
    waits_before: bool,
) -> None:
    """Neither where others wait for a result, nor where the one that is alone does."""
    bench = Bench()
    if waits_before:
        await bench.call("parent")
    await bench.call("alone", ALONE)
    await bench.call("child")
    assert bench.running == ["parent" if waits_before else "alone"]
    bench.is_open = True
    bench.turns.look()
    await bench.settle()
    assert "child" in bench.running


@pytest.mark.parametrize("cancelled", ["alone", "b"])
async def test_who_gives_up_holds_up_nobody(cancelled: str) -> None:
    bench = Bench()
    await bench.call("a")
    await bench.call("alone", ALONE)
    await bench.call("b")
    await bench.cancel(cancelled)
    await bench.end("a")
    [left] = {"alone", "b"} - {cancelled}
    assert bench.running == [left]
    await bench.end(left)
    assert bench.turns.gate.calls == 0
    assert bench.clock.armed == 0


@pytest.mark.parametrize("is_before", [True, False])
async def test_who_is_cancelled_as_it_may_begin_leaves_its_turn(
    is_before: bool,
) -> None:
    """Just before, or just after: it has not run, and others may."""
    bench = Bench()
    await bench.turns.enter(ALONE)
    for name in "bc":
        await bench.call(name, ALONE)
    if is_before:
        bench._tasks["b"].cancel()
    bench.turns.leave(ALONE)
    if not is_before:
        bench._tasks["b"].cancel()
    await bench.settle()
    assert bench.running == ["c"]
    await bench.end("c")
    assert bench.turns.gate.calls == 0
