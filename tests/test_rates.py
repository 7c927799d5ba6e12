"""Rates: what is one, and when the next call may start."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskiq.rates import LATENESS, Pace, read_interval


@pytest.mark.parametrize(
    ("rate", "seconds"),
    [("2/s", 0.5), ("100/m", 0.6), ("10/h", 360.0), ("1/m", 60.0)],
)
def test_a_rate_is_so_many_calls_per_second_minute_or_hour(
    rate: str,
    seconds: float,
) -> None:
    assert read_interval(rate) == seconds


@pytest.mark.parametrize(
    "rate",
    [
        "",
        "2",
        "2/d",
        "0/s",
        "-1/s",
        "1.5/s",
        "2 / s",
        "2/s ",
        "2/S",
        "/s",
        "٢/s",
        2,
        (),
    ],
)
def test_anything_else_is_none_and_the_error_says_what_is_allowed(rate: object) -> None:
    with pytest.raises(ValueError, match='"2/s", "100/m" or "10/h"'):
        read_interval(rate)


@given(
    st.sampled_from(["2/s", "100/s", "100/m", "10/h"]),
    st.lists(st.floats(0, 3), min_size=1, max_size=50),
)
def test_however_calls_come_n_intervals_have_n_of_them_and_one_that_was_late(
    rate: str,
    pauses: list[float],
) -> None:
    """Pauses are in intervals; a call that comes too early waits for its moment."""
    pace, interval = Pace(rate), read_interval(rate)
    now, starts = 0.0, list[float]()
    for pause in pauses:
        now += pause * interval
        now = max(now, pace.next_at)
        assert pace.is_due(now)
        pace.start(now)
        starts.append(now)
    for first, start in enumerate(starts):
        for calls, later in enumerate(starts[first:]):
            assert later - start >= calls * interval - LATENESS - 1e-6


@given(st.lists(st.floats(0, 0.9 * LATENESS), min_size=1, max_size=100))
def test_calls_that_are_a_little_late_do_not_make_the_others_late(
    delays: list[float],
) -> None:
    pace = Pace("2/s")
    pace.start(0.0)
    for number, delay in enumerate(delays, 1):
        assert pace.next_at == pytest.approx(number / 2)
        pace.start(pace.next_at + delay)


def test_who_has_been_idle_gets_no_burst() -> None:
    pace = Pace("2/s")
    moments = [0.0]
    pace.start(0.0)
    pace.start(100.0)
    for _ in range(3):
        moments.append(pace.next_at)
        pace.start(pace.next_at)
    assert moments == [0.0, 100.5, 101.0, 101.5]
    assert [b - a for a, b in pairwise(moments[1:])] == [0.5, 0.5]


def test_a_call_that_does_not_wait_is_counted_all_the_same() -> None:
    pace = Pace("1/m")
    pace.start(0.0)
    pace.start(1.0)
    assert not pace.is_due(119.9)
    assert pace.is_due(120.0)
