"""The simulation that rules for the size of a batch are judged by."""

from __future__ import annotations

import heapq
import itertools
from functools import partial
from typing import TYPE_CHECKING

import pytest

from taskiq.batch import BatchConfig
from taskiq.receiver.batcher import Batch, Batcher, Group
from taskiq.receiver.states import BatchState
from taskiq.testing import ManualAlarm
from tests.support.batch_simulation import (
    Cost,
    Fixed,
    Trace,
    best,
    compare,
    grid,
    optimum,
    simulate,
    simulate_fixed,
    traces,
)

if TYPE_CHECKING:
    from collections.abc import Callable

#: Without noise: a call of n messages takes 1 + n seconds.
EXACT = (Cost(0.0, fixed=1.0, item=1.0),)


class Message:
    """A member of a batch of the real batcher."""

    weight = 0
    priority = 0.0
    sent_as = ""  # nobody looks for one
    batch: Batch[Message] | None = None

    def __init__(self, group: Group[Message]) -> None:
        self.group = group

    def joined(self, batch: Batch[Message], /) -> None:
        self.batch = batch

    moved = joined

    def waits(self) -> None:
        raise AssertionError("there is room for all")

    parks = waits


class Events:
    """A clock that goes from one alarm to the next."""

    def __init__(self) -> None:
        self._now = 0.0
        self._order = itertools.count()
        self._alarms: list[tuple[float, int, ManualAlarm]] = []

    def time(self) -> float:
        return self._now

    def call_at(self, when: float, callback: Callable[[], object], /) -> ManualAlarm:
        alarm = ManualAlarm(when, callback)
        heapq.heappush(self._alarms, (when, next(self._order), alarm))
        return alarm

    def ring_next(self) -> bool:
        if self._alarms:
            self._now, _, alarm = heapq.heappop(self._alarms)
            if alarm.is_armed:
                alarm.ring()
            return True
        return False


def run_in_batcher(trace: Trace, config: BatchConfig) -> list[tuple[int, float]]:
    """Do with the real batcher what `simulate` does: sizes of calls, and their starts.

    A call takes what the costs of the trace say, without noise.
    """
    events = Events()
    batcher: Batcher[Message] = Batcher(events, wake=lambda: None)

    def arrive() -> None:
        batcher.offer(Message(batcher.group("task", config, None)))

    def end(batch: Batch[Message]) -> None:
        batcher.call_ended(batch)
        for _ in batch.members:
            batch.release()

    calls: list[tuple[int, float]] = []
    for arrival in trace.arrivals:
        events.call_at(arrival, arrive)
    while events.ring_next():
        while (batch := batcher.take()) is not None:
            batch.move(BatchState.RUNNING)
            now, size = events.time(), len(batch.members)
            calls.append((size, now))
            cost = trace.cost(now)
            events.call_at(now + cost.fixed + cost.item * size, partial(end, batch))
    return calls


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize(("size", "timeout"), [(1, 0.0), (40, 0.02), (1000, 0.1)])
def test_the_simulation_does_what_the_batcher_does(
    size: int,
    timeout: float,
    slots: int,
) -> None:
    config = BatchConfig(size, timeout, concurrency=slots, max_buffered=10**6)
    for made in traces(0.02):
        trace = Trace(made.name, made.arrivals, made.costs, noise=0.0)
        run = simulate(trace, Fixed(size, timeout), slots)
        simulated = sorted((call.started, call.stop - call.first) for call in run.calls)
        real = run_in_batcher(trace, config)
        assert [size for _, size in simulated] == [size for size, _ in real]
        assert [start for start, _ in simulated] == pytest.approx([s for _, s in real])


def test_a_batch_leaves_when_it_is_full_or_its_time_is_over() -> None:
    trace = Trace("exact", [0.0, 1.0, 2.0, 40.0], costs=EXACT, noise=0.0)
    run = simulate(trace, Fixed(size=3, timeout=10.0))
    assert [(call.started, call.ended) for call in run.calls] == [(2, 6), (50, 52)]
    assert run.latencies == [4, 5, 6, 12]


def test_a_batch_that_is_due_fills_on_while_no_call_may_start() -> None:
    trace = Trace("exact", [0.0, 0.5, 1.0, 1.5, 1.9], costs=EXACT, noise=0.0)
    run = simulate(trace, Fixed(size=3, timeout=0.0))
    assert [(call.first, call.stop, call.started) for call in run.calls] == [
        (0, 1, 0),
        (1, 4, 2),
        (4, 5, 6),
    ]


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize(("size", "timeout"), [(1, 0.0), (40, 0.02), (1000, 0.1)])
def test_the_fast_way_for_fixed_pairs_does_the_same(
    size: int,
    timeout: float,
    slots: int,
) -> None:
    for trace in traces(0.02):
        slow = simulate(trace, Fixed(size, timeout), slots)
        fast = simulate_fixed(trace, size, timeout, slots)
        assert slow.latencies == pytest.approx(fast.latencies)
        assert len(slow.calls) == len(fast.calls)


def test_no_pair_needs_fewer_calls_than_the_optimum_to_be_never_late() -> None:
    trace = Trace("steady", traces(0.05)[1].arrivals, noise=0.0)
    pairs = grid(trace, 0.1, slots=100, sizes=(1000,))
    never_late = [
        pair
        for pair in pairs
        if simulate_fixed(trace, 1000, pair.timeout, 100).latencies[-1] <= 0.1
    ]
    assert optimum(trace, 0.1) <= best(never_late, 0.1).calls


def test_a_rule_is_held_against_pairs_that_may_be_as_late_as_it_is() -> None:
    trace = traces(0.05)[1]
    pairs = grid(trace, 0.1, sizes=(1000,))
    for pair in pairs:
        run = simulate_fixed(trace, pair.size, pair.timeout)
        cell = compare(run, pairs, 0.1)
        assert cell.reachable
        assert cell.best.p99 <= max(0.1, run.p99)
        assert cell.ratio >= 1
