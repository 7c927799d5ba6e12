"""How long a listener that fails waits before it is started again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskiq.receiver.restart import RestartDelays

FIRST, LONGEST, HEALTHY = 0.1, 30.0, 60.0

short_runs = st.floats(0, HEALTHY, exclude_max=True)


@pytest.fixture
def without_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "taskiq.receiver.restart.random.uniform",
        lambda _low, high: high,
    )


@pytest.mark.usefixtures("without_jitter")
def test_delays_double_from_a_tenth_of_a_second_to_half_a_minute() -> None:
    delays = RestartDelays()

    seen = [delays.after_failure(ran_for=1) for _ in range(12)]

    doubled = [FIRST * 2**power for power in range(9)]
    assert seen == pytest.approx([*doubled, LONGEST, LONGEST, LONGEST])


@pytest.mark.usefixtures("without_jitter")
def test_a_minute_of_health_begins_the_delays_anew() -> None:
    delays = RestartDelays()
    for _ in range(5):
        delays.after_failure(ran_for=0)

    almost = delays.after_failure(ran_for=HEALTHY - 0.001)
    healthy = delays.after_failure(ran_for=HEALTHY)
    next_one = delays.after_failure(ran_for=0)

    assert almost == pytest.approx(FIRST * 2**5)
    assert healthy == pytest.approx(FIRST)
    assert next_one == pytest.approx(FIRST * 2)


@given(st.lists(short_runs, max_size=30))
def test_jitter_shortens_a_delay_by_half_at_most(runs: list[float]) -> None:
    delays = RestartDelays()

    for failures, ran_for in enumerate(runs):
        longest = min(FIRST * 2**failures, LONGEST)
        assert longest / 2 <= delays.after_failure(ran_for) <= longest


def test_two_workers_that_fail_together_come_back_apart() -> None:
    one, other = RestartDelays(), RestartDelays()

    moments = [
        [sum(delays.after_failure(0) for _ in range(10)) for _ in range(10)]
        for delays in (one, other)
    ]

    assert moments[0] != moments[1]


def test_a_listener_may_fail_for_ever() -> None:
    delays = RestartDelays()

    seen = [delays.after_failure(0) for _ in range(5000)]

    assert max(seen) <= LONGEST
    assert min(seen[10:]) >= LONGEST / 2
