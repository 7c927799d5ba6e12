"""Rules that choose the size of a batch, and the picture of what they are worth."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.benchmarks.pacing import TARGETS, settled
from tests.support.batch_rules import ByMeanWait, Fit, Paced, Sketch
from tests.support.batch_simulation import (
    Cost,
    Rule,
    Trace,
    lone_messages,
    optimum,
    simulate,
    traces,
)

RULES = [Paced, Sketch, ByMeanWait]


@given(
    gaps=st.lists(st.sampled_from([0.0, 1e-5, 1e-3, 0.1, 3.0]), min_size=1),
    rule=st.sampled_from(RULES),
    target=st.sampled_from([0.001, 0.02, 0.5]),
    slots=st.sampled_from([1, 3]),
)
def test_no_message_is_dropped_or_left_behind(
    gaps: list[float],
    rule: Callable[[float], Rule],
    target: float,
    slots: int,
) -> None:
    arrivals = [sum(gaps[: number + 1]) for number in range(len(gaps))]
    run = simulate(Trace("any", arrivals), rule(target), slots)
    called = sorted((call.first, call.stop) for call in run.calls)
    assert [first for first, _ in called] == [0, *(stop for _, stop in called[:-1])]
    assert called[-1][1] == len(arrivals)


def test_a_message_that_comes_alone_does_not_wait() -> None:
    trace = lone_messages()
    for target in TARGETS:
        run = simulate(trace, Paced(target))
        assert [call.started for call in run.calls] == trace.arrivals


@pytest.mark.parametrize("target", TARGETS)
def test_the_target_is_held_with_hardly_more_calls_than_there_must_be(
    target: float,
) -> None:
    """At a steady rate, from the first call on."""
    steady = traces()[1]
    run = simulate(steady, Paced(target))
    assert run.p99 <= 1.1 * target
    assert len(run.calls) <= 1.1 * optimum(steady, target)


@pytest.mark.parametrize("target", TARGETS)
def test_sizes_follow_a_tenfold_rate_within_50_calls(target: float) -> None:
    assert settled(target) <= 50


def test_no_call_is_late_any_more_50_calls_after_costs_rose_tenfold() -> None:
    costs = [Cost(0.0), Cost(5.0, 0.05, 0.0005)]
    trace = Trace("dear", traces(0.6)[1].arrivals, costs=costs)
    run = simulate(trace, Paced(0.2), slots=2)
    dear = [call for call in run.calls if call.started > 5]
    latest = max(call.ended - trace.arrivals[call.first] for call in dear[50:])
    assert len(dear) > 60
    assert latest <= 1.1 * 0.2


def test_the_rule_as_proposed_makes_many_times_the_calls() -> None:
    steady = traces()[1]
    run = simulate(steady, Sketch(0.5))
    assert len(run.calls) > 10 * optimum(steady, 0.5)


def test_a_size_that_shrinks_when_a_target_is_missed_gets_too_small_for_the_load() -> (
    None
):
    """More and smaller calls take longer, so that the next target is missed, too."""
    run = simulate(traces()[1], Sketch(0.02))
    assert run.p99 > 5 * 0.02
    assert max(call.ended - call.started for call in run.calls) < 0.02


def test_the_fit_finds_the_line_that_calls_lie_on() -> None:
    fit = Fit()
    for size in (10, 100) * 20:
        fit.ended(size, 0.05 + 0.001 * size)
    assert fit.of(1000) == pytest.approx(1.05, rel=0.01)


def test_while_all_calls_had_the_same_size_the_time_is_that_of_their_items() -> None:
    fit = Fit()
    for _ in range(3):
        fit.ended(10, 0.05)
    assert fit.of(20) == pytest.approx(0.1)


def test_a_slow_call_counts_for_no_more_than_the_double() -> None:
    fit = Fit()
    for size in (10, 20) * 20:
        fit.ended(size, 0.01 * size)
    fit.ended(10, 1000.0)
    assert fit.of(10) < 0.15


def test_the_picture_is_drawn_from_the_table() -> None:
    path = Path(__file__).parents[1] / "docs" / "pacing.py"
    drawing = runpy.run_path(str(path))
    drawn = drawing["TARGET"].read_text(encoding="utf-8")
    assert drawn == drawing["draw"](), "run: python docs/pacing.py"
