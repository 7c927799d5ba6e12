"""What a process ran is known after its death, and to all processes beside it."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import struct
from typing import TYPE_CHECKING, Any

import pytest

from taskiq.aborts import InMemoryAborts
from taskiq.acks import AckableMessage
from taskiq.brokers.inmemory_broker import InMemoryBroker
from taskiq.exceptions import TaskAbortedError
from taskiq.receiver import Receiver, casualties
from taskiq.receiver.casualties import (
    REMEMBERED,
    Call,
    Death,
    Deaths,
    RunningCalls,
    Shared,
    share,
    shared,
)
from taskiq.receiver.deliveries import Deliveries
from taskiq.receiver.turns import Turn
from tests.support.brokers import message_bytes
from tests.support.virtual_time import virtual

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

FIRST, SECOND = Call("t", ["1", "2"]), Call("u", ['3 "\n\u00fc\ud800'])


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def _die(running: RunningCalls) -> None:
    running.begin(*FIRST)
    running.end(running.begin("t", ["over"]))
    running.begin(*SECOND)
    os._exit(3)


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_what_a_process_was_running_is_read_after_its_death(method: str) -> None:
    context: Any = multiprocessing.get_context(method)
    running = RunningCalls()
    process = context.Process(target=_die, args=(running,))
    process.start()
    process.join(60)
    assert process.exitcode == 3
    assert sorted(running.read() or ()) == [FIRST, SECOND]


def test_more_than_there_is_room_for_is_not_known_until_it_has_ended() -> None:
    running = RunningCalls()
    many = ["x" * 300, "y"]
    for count, ids in ((2000, ["1"]), (100, many)):
        begun = [running.begin("t", ids) for each in range(count)]
        assert running.read() is None
        for each in begun[:-1]:
            running.end(each)
        assert running.read() is None
        running.end(begun[-1])
        assert running.read() == []
    large = running.begin("t", ["x" * 20_000])
    assert running.read() is None
    running.end(large)
    assert running.read() == []
    odd = running.begin("t", ["a\0b"])
    assert running.read() is None
    running.end(odd)
    assert running.read() == []


#: Most bytes of a call, with 4 for their number, and of which 2 are its task's here.
SMALL, LARGE = 256, 16 * 1024


@pytest.mark.parametrize(
    "sizes",
    [
        {LARGE: 32, SMALL: 1000},
        {SMALL + 1: 32, SMALL - 1: 1000},
        {SMALL + 4: 32, 10: 1000},
        {SMALL: 1032},
    ],
)
def test_there_is_room_for_a_thousand_small_calls_and_32_others(
    sizes: dict[int, int],
) -> None:
    """And again when they have ended, whether something was left out or not."""
    running = RunningCalls()
    calls = [
        Call("t", [f"{number:0{size - 6}}"])
        for size, count in sizes.items()
        for number in range(count)
    ]
    for each in (calls, [SECOND], calls):
        begun = [running.begin(*call) for call in each]
        assert sorted(running.read() or ()) == sorted(each)
        if each is calls:
            assert running.begin(*FIRST) is None
            assert running.read() is None
            running.end(None)
        assert sorted(running.read() or ()) == sorted(each)
        for slot in begun:
            running.end(slot)
        assert running.read() == []


def test_calls_of_one_message_are_told_together() -> None:
    calls = [Call("p", ["1"]), FIRST, Call("p", ["2"]), Call("q", ["3"])]
    assert casualties.together(calls) == [
        FIRST,
        Call("p", ["1", "2"]),
        Call("q", ["3"]),
    ]


def _reader(deaths: Deaths, clock: Clock) -> Deaths:
    """Give what another process has: the same memory, and nothing else."""
    other = Deaths(clock)
    vars(other)["_memory"] = vars(deaths)["_memory"]
    return other


def test_deaths_are_known_to_all_processes_for_an_hour() -> None:
    clock = Clock()
    deaths = Deaths(clock)
    other = _reader(deaths, clock)
    assert other.recent() == []
    deaths.note([FIRST, SECOND])
    clock.now += REMEMBERED / 2
    deaths.note(None)
    assert [each.ids for each in other.recent()] == [
        frozenset({"1", "2", SECOND.ids[0]}),
        None,
    ]
    clock.now += REMEMBERED / 2
    assert [each.ids for each in other.recent()] == [None]
    deaths.note([])
    assert [each.ids for each in other.recent()] == [None, frozenset()]


class Memory(bytearray):
    """What several processes see; something may happen while it is read."""

    happens: Callable[[], None] | None = None

    def __getitem__(self, place: Any) -> Any:
        told = super().__getitem__(place)
        if self.happens is not None:
            happens, self.happens = self.happens, None
            happens()
        return told


def test_what_is_written_while_it_is_read_is_known_the_next_time() -> None:
    deaths = Deaths(Clock())
    memory = Memory(len(vars(deaths)["_memory"]))
    vars(deaths)["_memory"] = memory
    other = _reader(deaths, Clock())
    deaths.note([FIRST])
    memory.happens = lambda: deaths.note([SECOND])
    assert other.recent() == []
    assert other.recent() == deaths.recent()
    assert len(other.recent()) == 2


def test_nothing_is_read_while_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither by who knows what was before, nor by who has never looked."""
    deaths = Deaths(Clock())
    deaths.note([FIRST])
    other = _reader(deaths, Clock())
    before = other.recent()
    write = struct.pack_into
    seen: list[list[Death]] = []

    def look(*told: Any) -> None:
        seen.extend((other.recent(), _reader(deaths, Clock()).recent()))

    def slowly(*told: Any) -> None:
        look()
        write(*told)
        look()

    monkeypatch.setattr(struct, "pack_into", slowly)
    deaths.note([SECOND])
    assert seen == [before, [], before, []]
    assert len(before) == 1
    assert len(other.recent()) == 2


def test_the_oldest_deaths_go_where_there_is_no_room() -> None:
    deaths = Deaths(Clock())
    for each in range(100):
        deaths.note([Call("t", [f"{each}-{number}" for number in range(1000)])])
    known = _reader(deaths, Clock()).recent()
    assert 10 < len(known) < 100
    for number, death in enumerate(reversed(known)):
        assert f"{99 - number}-0" in (death.ids or ())


@pytest.mark.parametrize("too_many", [0, 1])
def test_a_death_of_which_there_is_too_much_to_tell_is_not_known(
    too_many: int,
) -> None:
    deaths = Deaths(Clock())
    room = len(vars(deaths)["_memory"]) - 8 - len('[[1000.0, [""]]]')
    deaths.note([Call("t", ["x" * (room + too_many)])])
    assert len(_reader(deaths, Clock()).recent()) == 1 - too_many


class Redelivering(InMemoryBroker):
    """Delivers each message for the sixth time."""

    def equip_message(self, message: bytes | AckableMessage) -> Any:
        return message

    async def listen(self) -> AsyncGenerator[Any, None]:
        task: Any = self.find_task("double")
        for number in range(4):
            sent = task.kicker().with_task_id(str(number))._prepare_message(number)
            data = self.formatter.dumps(sent).message
            yield AckableMessage(data=data, ack=lambda: None, deliveries=6)


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> Shared:
    own = Shared(RunningCalls(), Deaths())
    monkeypatch.setattr(casualties, "_own", None)
    share(own)
    return own


async def test_what_only_waited_in_dead_processes_is_no_suspect(own: Shared) -> None:
    """Of six deliveries five ended with a death: 3 ran each time, 2 three times."""
    for number in range(5):
        ids = ["3", "2"] if number < 3 else ["3"]
        own.deaths.note([Call("double", ids)])
    broker = Redelivering()
    calls: list[list[int]] = []

    @broker.task("double", batch=True, batch_size=8, batch_timeout=60, max_deliveries=5)
    async def double(numbers: list[int]) -> list[int]:
        ids = [str(each) for each in numbers]
        assert own.running.read() == [Call("double", ids)]
        calls.append(numbers)
        return numbers

    await Receiver(broker, run_startup=False).listen(asyncio.Event())
    assert shared() is own
    assert calls == [[0, 1], [2]]
    assert own.running.read() == []
    results: Any = broker.result_backend
    assert results.results["3"].is_err


async def test_the_same_of_a_plain_task_whose_suspects_run_ever_fewer_at_once(
    own: Shared, caplog: pytest.LogCaptureFixture
) -> None:
    """1 only waited, 0 and 2 ran once and five times: 3 is over, with or without."""
    for number in range(5):
        ids = ["3", "2"] if number < 4 else ["3", "0"]
        own.deaths.note([Call("double", [each]) for each in ids])
    broker = Redelivering()
    running: list[int] = []
    most: list[list[int]] = []

    @broker.task("double", max_deliveries=5)
    async def double(number: int) -> None:
        running.append(number)
        most.append(sorted(running))
        noted = {each for call in own.running.read() or () for each in call.ids}
        assert {str(each) for each in running} <= noted
        for _ in range(20):
            await asyncio.sleep(0)
        running.remove(number)

    await Receiver(broker, run_startup=False).listen(asyncio.Event())
    assert own.running.read() == []
    assert [2] in most
    assert max(most, key=len) == [0, 1]
    results: Any = broker.result_backend
    errors = {
        key: str(each.error) for key, each in results.results.items() if each.error
    }
    assert errors == {"3": "The message was delivered 6 times, 5 are allowed"}
    [told] = [each for each in caplog.messages if "Runs alone" in each]
    assert "6 times" in told
    assert told.endswith("task double with ID 2.")


ALONE, IN_TURN = Turn(1, is_alone=True), Turn(1)


@pytest.mark.parametrize(
    ("counts", "ran", "unknown", "limit", "parts", "named"),
    [
        # Nothing has died.
        ([1, 1], [], 0, None, {"01": None}, ""),
        # Another delivery of its id has: the first of this one is not a suspect.
        ([1, 2], ["0"], 0, None, {"01": None}, ""),
        # It is known that it only waited.
        ([1, 1, 2], ["0", "1"], 0, None, {"012": None}, ""),
        # Twice it may have run, thrice, and the last time; each has room for fewer.
        ([2, 2, 1], [], 0, None, {"2": None, "01": None}, ""),
        ([2, 1, 1], [], 0, None, {"12": None, "0": None}, "0"),
        ([3, 1], [], 0, None, {"1": None, "0": IN_TURN}, "0"),
        ([3, 1], [], 2, 9, {"1": None, "0": IN_TURN}, "0"),
        ([3, 1], [], 2, 3, {"1": None, "0": IN_TURN}, "0"),
        # It is known that it ran, and may run again, or not.
        ([3, 1], ["0", "0"], 0, 9, {"1": None, "0": IN_TURN}, "0"),
        ([3, 1], ["0", "0"], 0, 3, {"1": None, "0": ALONE}, "0"),
        ([2, 1], ["0"], 0, 2, {"1": None, "0": ALONE}, "0"),
    ],
)
async def test_who_shares_a_call_with_whom_and_runs_beside_what(
    own: Shared,
    counts: list[int],
    ran: list[str],
    unknown: int,
    limit: int | None,
    parts: dict[str, Turn | None],
    named: str,
) -> None:
    """And which suspects are named, as they have a call to themselves."""
    for task_id in ran:
        own.deaths.note([Call("double", [task_id])])
    for _ in range(unknown):
        own.deaths.note(None)
    assert await _parted(counts, limit) == (parts, dict.fromkeys(named, counts[0]))


async def test_without_a_main_process_nobody_is_known_to_have_died(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(casualties, "_own", None)
    assert await _parted([3, 1], limit=3) == ({"1": None, "0": IN_TURN}, {"0": 3})


async def _parted(
    counts: list[int], limit: int | None
) -> tuple[dict[str, Turn | None], dict[str, int]]:
    """Part messages of so many deliveries each, which are counted from 0."""
    broker = Redelivering()

    @broker.task("double", batch=True, batch_size=8, max_deliveries=limit)
    async def double(numbers: list[int]) -> None: ...

    runtime = Receiver(broker).runtime
    members = [
        runtime.delivery(
            AckableMessage(
                data=message_bytes(double, task_id=str(number)),
                ack=lambda: None,
                deliveries=count,
            )
        )
        for number, count in enumerate(counts)
    ]
    turns, named = {}, {}
    for run in await Deliveries(broker).runs(members, 8):
        for part in run:
            ids = "".join(each.message.task_id for each in part.members)
            turns[ids] = part.turn
            if part.deliveries:
                named[ids] = part.deliveries
    return turns, named


async def test_what_is_aborted_while_it_waits_for_its_turn_never_runs(
    own: Shared,
) -> None:
    """0 and 1 ran in each of five processes that died: each runs alone."""
    for _ in range(5):
        own.deaths.note([Call("double", ["0", "1"])])
    broker = Redelivering()
    store = InMemoryAborts()
    broker.with_abort_store(store)
    runs: list[int] = []

    @broker.task("double", max_deliveries=6)
    async def double(number: int) -> None:
        runs.append(number)
        if number == 0:
            for _ in range(20):
                await asyncio.sleep(0)
            for task_id in "12":
                await store.mark(task_id)

    await Receiver(broker, run_startup=False).listen(asyncio.Event())
    assert runs == [0, 3]
    results: Any = broker.result_backend
    errors = {key: type(each.error) for key, each in results.results.items()}
    nothing = type(None)
    aborted = TaskAbortedError
    assert errors == {"0": nothing, "1": aborted, "2": aborted, "3": nothing}


@pytest.mark.parametrize(
    ("comes_at", "seconds"), [(0, 0), (0.2, 0.2), (0.98, 1), (None, 1)]
)
@virtual
async def test_news_of_a_death_is_waited_for_where_it_may_excuse(
    own: Shared, comes_at: float | None, seconds: float
) -> None:
    """RabbitMQ delivers again before the main process has noted who died.

    For a second: a message may have seen so many deliveries without any death.
    """
    broker = Redelivering()
    ran: list[int] = []

    @broker.task("double", max_deliveries=5)
    async def double(number: int) -> None:
        ran.append(number)

    loop = asyncio.get_running_loop()
    if comes_at is not None:
        for _ in range(4):
            own.deaths.note([])
        loop.call_at(comes_at, own.deaths.note, [])
    await Receiver(broker, run_startup=False).listen(asyncio.Event())
    assert loop.time() == pytest.approx(seconds, abs=0.01)
    is_excused = comes_at is not None and comes_at < 1
    assert sorted(ran) == ([0, 1, 2, 3] if is_excused else [])
    results: Any = broker.result_backend
    assert all(each.is_err is not is_excused for each in results.results.values())
    assert len(results.results) == 4


async def test_what_began_before_a_limited_task_was_known_is_waited_for(
    own: Shared,
) -> None:
    """Should it kill the process, the one that is to run alone must not be dead."""
    own.deaths.note([Call("last", ["2"])])
    broker = InMemoryBroker()
    receiver = Receiver(broker, run_startup=False)
    running: list[str] = []
    began, ends = asyncio.Event(), asyncio.Event()

    @broker.task("long")
    async def long() -> None:
        running.append("long")
        began.set()
        await ends.wait()
        running.remove("long")

    def deliver(task: Any, task_id: str) -> asyncio.Task[None]:
        sent = task.kicker().with_task_id(task_id)._prepare_message()
        data = broker.formatter.dumps(sent).message
        raw = AckableMessage(data=data, ack=lambda: None, deliveries=2)
        return asyncio.create_task(receiver.callback(raw))

    first = deliver(long, "1")
    await began.wait()

    @broker.task("last", max_deliveries=2)
    async def last() -> list[str]:
        return list(running)

    second = deliver(last, "2")
    for _ in range(20):
        await asyncio.sleep(0)
    ends.set()
    await asyncio.gather(first, second)
    result = await broker.result_backend.get_result("2")
    assert result.return_value == []
    assert receiver.runtime.turns.gate.calls == 0
