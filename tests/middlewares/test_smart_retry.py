from __future__ import annotations

import random
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskiq import (
    NoResultError,
    ScheduledTask,
    ScheduleSource,
    TaskiqMessage,
    TaskiqScheduler,
)
from taskiq.kicker import AsyncKicker
from taskiq.middlewares import SmartRetryMiddleware
from taskiq.middlewares._retry import exponential_delay
from tests.middlewares.rounds import RetryBroker


class ListSource(ScheduleSource):
    """Keeps schedules in a list."""

    def __init__(self) -> None:
        self.schedules: list[ScheduledTask] = []

    async def get_schedules(self) -> list[ScheduledTask]:
        return self.schedules

    async def add_schedule(self, schedule: ScheduledTask) -> None:
        self.schedules.append(schedule)


def always_failing(broker: RetryBroker, **labels: Any) -> Any:
    async def fail(value: int = 0, *, unit: str = "") -> None:
        raise ValueError("failed")

    return broker.register_task(fail, "task", retry_on_error=True, **labels)


async def delays_of(middleware: SmartRetryMiddleware, **labels: Any) -> list[float]:
    """Run a failing task and its retries; what brokers are told to wait for each."""
    broker = RetryBroker(middleware)
    await always_failing(broker, **labels).kiq()
    await broker.run_all()
    return [float(text) for text in broker.sent_labels("delay")[1:] if text]


async def test_the_broker_is_told_to_wait_the_default_delay() -> None:
    assert await delays_of(SmartRetryMiddleware()) == [5, 5]


@pytest.mark.parametrize("label", [1.5, "1.5"])
async def test_the_delay_label_of_a_message_goes_before_the_default(label: Any) -> None:
    assert await delays_of(SmartRetryMiddleware(), delay=label) == [1.5, 1.5]


@pytest.mark.parametrize(
    ("delay", "label"), [(5, "5"), (5.0, "5"), ("5.0", "5"), (0, "0"), (1.5, "1.5")]
)
async def test_whole_seconds_are_written_as_an_int_which_some_brokers_insist_on(
    delay: Any, label: str
) -> None:
    broker = RetryBroker(SmartRetryMiddleware())
    await always_failing(broker).kicker().with_labels(delay=delay).kiq()
    await broker.run_all()

    assert broker.sent_labels("delay")[1:] == [label, label]


async def test_each_delay_is_twice_the_one_before_up_to_the_maximum() -> None:
    middleware = SmartRetryMiddleware(
        default_retry_count=7,
        default_delay=2,
        use_delay_exponent=True,
        max_delay_exponent=30,
    )

    assert await delays_of(middleware) == [2, 4, 8, 16, 30, 30]


async def test_delays_grow_from_the_delay_label_and_not_from_the_last_delay() -> None:
    middleware = SmartRetryMiddleware(default_retry_count=5, use_delay_exponent=True)

    assert await delays_of(middleware, delay=3) == [3, 6, 12, 24]


async def test_a_delay_over_the_maximum_is_capped_from_the_first_retry() -> None:
    middleware = SmartRetryMiddleware(default_delay=100, use_delay_exponent=True)

    assert await delays_of(middleware) == [60, 60]


async def test_jitter_does_not_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random, "random", lambda: 0.25)
    middleware = SmartRetryMiddleware(default_retry_count=4, use_jitter=True)

    assert await delays_of(middleware) == [5.25, 5.25, 5.25]


async def test_jitter_is_added_after_the_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random, "random", lambda: 0.25)
    middleware = SmartRetryMiddleware(
        default_retry_count=5,
        default_delay=2,
        use_jitter=True,
        use_delay_exponent=True,
        max_delay_exponent=6,
    )

    assert await delays_of(middleware) == [2.25, 4.25, 6.25, 6.25]


async def test_a_message_says_nothing_new_unless_its_delay_was_computed() -> None:
    broker = RetryBroker(SmartRetryMiddleware())
    await always_failing(broker).kiq()
    await broker.run_all()

    assert set(broker.sent[-1].labels) == {"retry_on_error", "_retries", "delay"}


@given(
    base=st.floats(0, 1e6),
    attempt=st.integers(1, 10**6),
    longest=st.floats(0, 1e9),
)
def test_no_delay_is_over_its_limit_or_under_the_one_before(
    base: float,
    attempt: int,
    longest: float,
) -> None:
    delay = exponential_delay(base, attempt, longest)

    assert 0 <= delay <= longest
    assert delay <= exponential_delay(base, attempt + 1, longest)


@given(base=st.integers(1, 1000), attempt=st.integers(1, 40))
def test_delays_double(base: int, attempt: int) -> None:
    delay = exponential_delay(base, attempt, longest=float("inf"))

    assert delay == base * 2 ** (attempt - 1)


async def test_with_a_source_a_retry_is_scheduled_and_not_sent() -> None:
    source = ListSource()
    broker = RetryBroker(SmartRetryMiddleware(schedule_source=source))
    task = always_failing(broker, delay=30)
    await task.kicker().with_task_id("id").kiq(7, unit="cm")

    before = datetime.now(timezone.utc)
    assert await broker.run_all() == 1
    after = datetime.now(timezone.utc)

    (schedule,) = source.schedules
    assert schedule.time is not None
    assert before <= schedule.time - timedelta(seconds=30) <= after
    assert (schedule.task_name, schedule.task_id) == ("task", "id")
    assert (schedule.args, schedule.kwargs) == ([7], {"unit": "cm"})
    assert schedule.labels == {
        "retry_on_error": "True",
        "delay": "30",
        "_retries": "1",
    }
    assert broker.backend.saved == []


async def test_scheduled_retries_go_on_until_the_limit_though_labels_are_text() -> None:
    delays: list[float] = []

    class Noting(SmartRetryMiddleware):
        async def on_send(
            self,
            kicker: AsyncKicker[Any, Any],
            message: TaskiqMessage,
            delay: float,
        ) -> None:
            delays.append(delay)
            await super().on_send(kicker, message, delay)

    source = ListSource()
    middleware = Noting(schedule_source=source, use_delay_exponent=True)
    broker = RetryBroker(middleware)
    scheduler = TaskiqScheduler(broker, [source])
    task = always_failing(broker, max_retries=4, delay=2)
    await task.kicker().with_task_id("id").kiq()

    runs = await broker.run_all()
    while source.schedules:
        await scheduler.on_ready(source, source.schedules.pop())
        runs += await broker.run_all()

    assert runs == 4
    assert delays == [2, 4, 8]
    assert broker.backend.saved == ["id"]


async def test_a_retry_that_cannot_be_scheduled_leaves_the_error_as_the_result(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class ReadOnly(ScheduleSource):
        async def get_schedules(self) -> list[ScheduledTask]:
            return []

    broker = RetryBroker(SmartRetryMiddleware(schedule_source=ReadOnly()))
    await always_failing(broker).kicker().with_task_id("id").kiq()
    await broker.run_all()

    assert isinstance(broker.backend.results["id"].error, ValueError)
    assert "Cannot send retry 1 of task task with ID id" in caplog.text


def test_anything_but_a_schedule_source_is_refused() -> None:
    with pytest.raises(TypeError, match="must be an instance of ScheduleSource"):
        SmartRetryMiddleware(schedule_source="redis://")  # type: ignore[arg-type]


async def test_how_long_and_how_to_send_can_be_overridden() -> None:
    class Linear(SmartRetryMiddleware):
        def make_delay(self, message: TaskiqMessage, retries: int) -> float:
            return 10.0 * retries

        async def on_send(
            self,
            kicker: AsyncKicker[Any, Any],
            message: TaskiqMessage,
            delay: float,
        ) -> None:
            await super().on_send(kicker.with_labels(queue="slow"), message, delay)

    broker = RetryBroker(Linear(default_retry_count=4))
    await always_failing(broker).kiq()
    await broker.run_all()

    assert broker.sent_labels("delay") == [None, "10", "20", "30"]
    assert broker.sent_labels("queue") == [None, "slow", "slow", "slow"]


async def test_a_retried_run_has_no_result_and_counts_as_an_error() -> None:
    results: list[Any] = []

    class Watching(SmartRetryMiddleware):
        async def post_execute(self, message: TaskiqMessage, result: Any) -> None:
            results.append((result.is_err, type(result.error)))

    broker = RetryBroker(Watching())
    await always_failing(broker).kiq()
    await broker.run_all()

    assert results == [(True, NoResultError), (True, NoResultError), (True, ValueError)]


async def test_each_message_of_a_batch_has_its_own_delay_and_count() -> None:
    broker = RetryBroker(
        SmartRetryMiddleware(default_retry_label=True, use_delay_exponent=True),
    )

    @broker.task(batch=True, batch_size=3, batch_timeout=0)
    async def fail(items: list[int]) -> None:
        raise ValueError("all of them")

    kickers = [fail.kicker().with_task_id(f"id{n}") for n in range(3)]
    await kickers[0].with_labels(delay=1).kiq(0)
    await kickers[1].with_labels(delay=7, _retries=1).kiq(1)
    await kickers[2].with_labels(max_retries=1).kiq(2)
    await broker.run_all()

    again = [
        (m.task_id, m.labels["_retries"], m.labels["delay"]) for m in broker.sent[3:]
    ]
    assert again == [("id0", "1", "1"), ("id1", "2", "14"), ("id0", "2", "2")]
    assert sorted(broker.backend.saved) == ["id0", "id1", "id2"]
