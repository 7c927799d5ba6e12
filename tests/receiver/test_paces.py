"""Rates across processes: workers that share a store, in virtual time."""

from __future__ import annotations

import asyncio
import itertools
import logging
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskiq.rates import EARLY, LATENESS, Request, Turns, store_of
from taskiq.receiver.paces import HORIZON, PATIENCE, RETRY_AFTER, SharedPace
from tests.support.rates import Turnstile
from tests.support.virtual_time import run_virtual
from tests.support.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable

_KINDS = ["plain", "batch"]


class Fleet:
    """Workers with one task each, which count its calls together.

    :param seconds: how long a call takes.
    :ivar starts: when each call began, and of which worker.
    """

    def __init__(
        self,
        kind: str,
        rate: str,
        seconds: float = 0,
        count: int = 2,
        store: Turnstile | None = None,
        **options: Any,
    ) -> None:
        self.store = store or Turnstile()
        self.workers = [Worker(**options) for _ in range(count)]
        self.starts: list[tuple[float, int]] = []
        self._kind, self._rate, self._seconds = kind, rate, seconds
        for number in range(count):
            self._register(number)

    def _register(self, number: int) -> None:
        broker = self.workers[number].broker.with_rate_store(self.store)

        async def work(item: Any) -> None:
            self.starts.append((asyncio.get_running_loop().time(), number))
            await asyncio.sleep(self._seconds)

        async def batch(items: list[int]) -> None:
            await work(items)

        if self._kind == "plain":
            broker.register_task(work, "limited", rate=self._rate)
        else:
            broker.register_task(
                batch,
                "limited",
                batch=True,
                batch_size=1,
                batch_timeout=0,
                batch_rate=self._rate,
            )

    async def send(self, count: int) -> None:
        for worker in self.workers:
            task: Any = worker.broker.find_task("limited")
            await worker.send_to(task, *range(count))

    async def run(self, seconds: float) -> None:
        listening = [worker.listen() for worker in self.workers]
        await asyncio.sleep(seconds)
        for worker in self.workers:
            worker.finish.set()
        await asyncio.gather(*listening)
        for worker in self.workers:
            assert worker.receiver.batch_statistics().is_idle

    def within(self, begin: float, end: float) -> int:
        return sum(begin <= moment < end - 1e-6 for moment, _ in self.starts)


@pytest.mark.parametrize("kind", _KINDS)
@pytest.mark.parametrize(
    ("rate", "calls"), [("2/s", 120), ("100/m", 100), ("7/m", 7), ("25/s", 1500)]
)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_in_a_minute_all_make_as_many_calls_as_the_rate_says(
    kind: str,
    rate: str,
    calls: int,
    count: int,
) -> None:
    fleet = Fleet(
        kind,
        rate,
        count=count,
        max_async_tasks=100,
        max_prefetch=2000,
        wait_tasks_timeout=0,
    )

    async def main() -> None:
        await fleet.send(calls)
        await fleet.run(60.5)

    run_virtual(main())
    begin = fleet.starts[0][0]
    assert fleet.within(begin, begin + 60) == pytest.approx(calls, rel=0.05)
    assert len({number for _, number in fleet.starts}) == count
    moments = [moment for moment, _ in fleet.starts]
    least = 1 / (calls / 60) - LATENESS
    assert all(b - a >= least - 1e-6 for a, b in itertools.pairwise(moments))


@pytest.mark.parametrize("kind", _KINDS)
@pytest.mark.parametrize(("rate", "most"), [("2/s", 1), ("100/s", 10)])
def test_a_call_costs_one_round_trip_at_most(kind: str, rate: str, most: int) -> None:
    """And none while it waits; of fast ones some share one."""
    fleet = Fleet(kind, rate, max_prefetch=100)

    async def main() -> None:
        await fleet.send(20)
        await fleet.run(21)

    run_virtual(main())
    assert len(fleet.starts) == 40
    assert sum(request.turns for request in fleet.store.requests) == 40
    assert {request.task_name for request in fleet.store.requests} == {"limited"}
    assert max(request.turns for request in fleet.store.requests) == most
    assert most * interval_of(rate) <= max(HORIZON, interval_of(rate)) + 1e-9


def interval_of(rate: str) -> float:
    return 1 / int(rate.removesuffix("/s"))


@pytest.mark.parametrize("kind", _KINDS)
@pytest.mark.parametrize("trouble", ["is_away", "hangs"])
def test_without_its_store_each_process_keeps_the_rate_and_says_so_once(
    kind: str,
    trouble: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    # It answers late enough for a call to start meanwhile.
    fleet = Fleet(kind, "2/s", max_prefetch=400, store=Turnstile(0.3))
    setattr(fleet.store, trouble, True)

    async def main() -> None:
        await fleet.send(300)
        listening = asyncio.ensure_future(fleet.run(150))
        await asyncio.sleep(PATIENCE + 60)
        setattr(fleet.store, trouble, False)
        await listening

    with caplog.at_level(logging.INFO):
        run_virtual(main())
    begin = fleet.starts[0][0]
    assert begin <= PATIENCE + 0.31
    for number in range(2):
        own = [moment for moment, of in fleet.starts if of == number]
        alone = [moment for moment in own if begin <= moment < begin + 59.9]
        assert len(alone) == pytest.approx(120, rel=0.05)
        assert all(b - a >= 0.5 - LATENESS for a, b in itertools.pairwise(own))
    back = PATIENCE + 60 + RETRY_AFTER + PATIENCE + 1
    assert fleet.within(back, back + 60) == pytest.approx(120, rel=0.05)
    said = [each.getMessage() for each in caplog.records if "across" in each.message]
    why = "no answer within 2 s" if trouble == "hangs" else "nobody is there"
    cannot = "Cannot count the calls of task limited across processes: "
    assert len([each for each in said if each.startswith(cannot) and why in each]) == 2
    assert len([each for each in said if each.endswith("again.")]) == 4
    assert len(fleet.starts) == 600


@pytest.mark.parametrize("kind", _KINDS)
def test_a_worker_that_dies_with_a_turn_takes_that_one_along(kind: str) -> None:
    store = Turnstile()
    dead = Fleet(kind, "1/s", count=1, store=store)
    living = Fleet(kind, "1/s", count=1, store=store, max_prefetch=20)

    async def main() -> None:
        await dead.send(2)
        await living.send(10)
        killed = dead.workers[0].listen()
        await asyncio.sleep(0.5)  # it has made a call, and has the next turn
        listening = asyncio.ensure_future(living.run(11))
        await asyncio.sleep(0.2)
        store.hangs = True  # nothing is given back
        killed.cancel()
        await asyncio.wait([killed])
        store.hangs = False
        await listening

    run_virtual(main())
    assert len(dead.starts) == 1
    first = living.starts[0][0]
    assert first == pytest.approx(dead.starts[0][0] + 2, abs=0.01)
    assert len(living.starts) == 10


@pytest.mark.parametrize("kind", _KINDS)
@pytest.mark.parametrize(("is_away", "next_at"), [(False, 60), (True, 120)])
def test_a_worker_that_stops_gives_its_turn_back_if_it_can(
    kind: str,
    is_away: bool,
    next_at: float,
) -> None:
    store = Turnstile()
    stopped = Fleet(kind, "1/m", count=1, store=store, wait_tasks_timeout=0)
    next_one = Fleet(kind, "1/m", count=1, store=store)

    async def main() -> None:
        await stopped.send(2)
        asyncio.get_running_loop().call_later(5, setattr, store, "is_away", is_away)
        await stopped.run(10)
        store.is_away = False
        await next_one.send(1)
        await next_one.run(121)

    run_virtual(main())
    moments = [moment for moment, _ in next_one.starts]
    assert moments == pytest.approx([next_at], abs=0.1)


@pytest.mark.parametrize("kind", _KINDS)
def test_who_listens_again_waits_for_no_answer_of_the_time_before(kind: str) -> None:
    fleet = Fleet(kind, "1/m", count=1, wait_tasks_timeout=0)
    fleet.store.hangs = True

    async def main() -> None:
        await fleet.send(1)
        await fleet.run(0.5)
        fleet.store.hangs = False
        [worker] = fleet.workers
        worker.finish.clear()
        await fleet.send(1)
        await fleet.run(1)

    run_virtual(main())
    assert len(fleet.store.requests) == 2
    assert [moment for moment, _ in fleet.starts] == pytest.approx([0.5], abs=0.01)


@pytest.mark.parametrize("kind", _KINDS)
def test_who_starts_long_after_its_turn_has_the_next_ones_wait(kind: str) -> None:
    """All slots of a worker are taken when its turn comes."""
    fleet = Fleet(kind, "1/s", max_async_tasks=1, max_prefetch=10)
    busy, other = fleet.workers

    @busy.broker.task("long")
    async def long(_: int) -> None:
        await asyncio.sleep(5.5)

    async def main() -> None:
        await busy.send_to(long, 7)
        listening = [worker.listen() for worker in fleet.workers]
        await asyncio.sleep(1)
        task: Any = busy.broker.find_task("limited")
        await busy.send_to(task, 0, 1, 2)
        await asyncio.sleep(5)
        task = other.broker.find_task("limited")
        await other.send_to(task, 0, 1, 2)
        await asyncio.sleep(10)
        for worker in fleet.workers:
            worker.finish.set()
        await asyncio.gather(*listening)

    run_virtual(main())
    moments = [moment for moment, _ in fleet.starts]
    assert moments[0] == pytest.approx(5.5)
    assert len(moments) == 6
    assert all(b - a >= 1 - LATENESS for a, b in itertools.pairwise(moments))


def test_a_store_comes_with_the_broker_or_with_its_result_backend() -> None:
    broker = Worker().broker
    assert store_of(broker) is None
    results = broker.result_backend.rate_store = Turnstile()
    assert store_of(broker) is results
    own = Turnstile()
    assert store_of(broker.with_rate_store(own)) is own


@given(st.lists(st.tuples(st.integers(1, 5), st.floats(0, 3)), min_size=1))
def test_turns_of_a_store_are_an_interval_apart(
    asked: list[tuple[int, float]],
) -> None:
    """The rule that every store keeps, of the one that tests have."""
    store = Turnstile(0)

    async def main() -> None:
        moments: list[float] = []
        for turns, pause in asked:
            await asyncio.sleep(pause)
            answer = await store.reserve(Request("task", 0.5, turns, None))
            first = asyncio.get_running_loop().time() + answer.wait
            assert answer.wait >= -LATENESS
            moments += [first + 0.5 * number for number in range(turns)]
        assert all(b - a >= 0.5 - 1e-6 for a, b in itertools.pairwise(moments))

    run_virtual(main())


class Desk:
    """Asks a store that answers when it is told to."""

    def __init__(self, rate: str) -> None:
        self.asked: list[Request] = []
        self.ended: list[Request] = []
        self.pace = SharedPace("task", rate, self._ask)

    def _ask(self, _: SharedPace, request: Request) -> Callable[[], object]:
        self.asked.append(request)
        return lambda: self.ended.append(request)


def test_a_turn_that_passed_while_somebody_waited_is_used_late() -> None:
    """As when all slots are taken when it comes."""
    desk = Desk("1/s")
    pace = desk.pace
    pace.want(0, 1)
    pace.answered(0, desk.asked[0], Turns(5, ""))
    assert not pace.is_due(5 - 2 * EARLY)
    assert pace.is_due(5 - EARLY)  # clocks are no finer than that
    pace.want(7, 1)
    assert pace.is_due(7)
    assert len(desk.asked) == 1
    pace.start(7)
    assert pace.give_back() is None


@pytest.mark.parametrize(("late", "left"), [(LATENESS, 9), (2 * LATENESS, 0)])
def test_who_starts_late_gives_up_the_turns_that_follow(late: float, left: int) -> None:
    """They come too soon after it. Up to `LATENESS` it is on time."""
    desk = Desk("100/s")
    pace = desk.pace
    pace.want(0, 10)
    pace.answered(0, desk.asked[0], Turns(0, ""))
    pace.start(late)
    given = pace.give_back()
    assert (given[0].turns if given else 0) == left


def test_the_store_is_told_of_a_call_that_had_no_turn() -> None:
    desk = Desk("1/s")
    pace = desk.pace
    pace.start(3)
    pace.want(4, 1)
    assert desk.asked == [Request("task", 1, 1, started=1)]


def test_a_store_that_failed_is_left_alone_for_a_while() -> None:
    desk = Desk("1/s")
    pace = desk.pace
    pace.want(0, 1)
    pace.failed(0, desk.asked[0], OSError("away"))
    pace.want(RETRY_AFTER - 0.1, 1)
    assert len(desk.asked) == 1
    pace.want(RETRY_AFTER, 1)
    assert len(desk.asked) == 2


@pytest.mark.parametrize(
    ("wait", "is_kept"), [(0.5, True), (0.5 - LATENESS, True), (0.4, False)]
)
def test_of_a_store_that_is_back_no_turn_is_sooner_than_the_pace_of_before(
    wait: float,
    is_kept: bool,
) -> None:
    """It knew nothing of the call that started meanwhile."""
    desk = Desk("1/s")
    pace = desk.pace
    pace.want(0, 1)
    pace.failed(0, desk.asked[0], OSError("away"))
    pace.want(RETRY_AFTER + 1, 1)
    pace.start(RETRY_AFTER + 1)
    pace.answered(RETRY_AFTER + 1.5, desk.asked[1], Turns(wait, ""))
    pace.want(RETRY_AFTER + 2, 1)
    assert pace.is_due(RETRY_AFTER + 2) is is_kept
    assert len(desk.asked) == (2 if is_kept else 3)


@pytest.mark.parametrize("turn", [0, 5])
def test_a_turn_that_passed_while_nobody_waited_is_used_by_nobody(turn: int) -> None:
    """Who comes after that asks for another one: it may be that of a process by now."""
    desk = Desk("1/s")
    pace = desk.pace
    pace.want(0, 1)
    pace.answered(0, desk.asked[0], Turns(turn, ""))
    pace.rest()  # it was aborted
    on_time = LATENESS if turn == 0 else turn + 0.04  # as exactly as can be added
    pace.want(on_time, 1)
    assert pace.is_due(on_time)
    pace.rest()
    pace.want(turn + 0.06, 1)
    assert not pace.is_due(turn + 0.06)
    assert len(desk.asked) == 2


def test_who_is_interrupted_while_it_asks_asks_again() -> None:
    """A stop ends what asks; who listens after it is not to wait for that answer."""
    desk = Desk("1/s")
    pace = desk.pace
    pace.want(0, 1)
    pace.interrupted(desk.asked[0])
    pace.want(1, 1)
    assert len(desk.asked) == 2
    pace.answered(1, desk.asked[1], Turns(0, ""))
    assert pace.is_due(1)


def test_an_answer_that_comes_too_late_is_not_used() -> None:
    desk = Desk("1/s")
    pace = desk.pace
    pace.want(0, 1)
    pace.want(PATIENCE - EARLY, 1)
    assert desk.ended == desk.asked
    assert pace.is_due(PATIENCE)  # this process keeps the rate by itself
    pace.answered(PATIENCE, desk.asked[0], Turns(7, ""))
    pace.failed(PATIENCE, desk.asked[0], OSError("away"))
    pace.interrupted(desk.asked[0])
    assert pace.is_due(PATIENCE)
    pace.start(PATIENCE)
    assert pace.next_at == PATIENCE + 1
