"""The simulation that rules for the size of a batch are judged by."""

from __future__ import annotations

import pytest

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

#: Without noise: a call of n messages takes 1 + n seconds.
EXACT = (Cost(0.0, fixed=1.0, item=1.0),)


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
