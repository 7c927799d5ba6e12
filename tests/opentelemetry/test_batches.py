"""Traces and metrics of batches."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry import baggage
from opentelemetry import context as otel_context
from opentelemetry.trace import SpanKind, StatusCode

from taskiq import (
    AsyncBroker,
    AsyncTaskiqDecoratedTask,
    InMemoryBroker,
    NoResultError,
    TaskiqMessage,
    TaskiqMiddleware,
    TaskiqResult,
)
from taskiq.batch import BatchInfo, FlushReason
from taskiq.middlewares import SimpleRetryMiddleware
from taskiq.middlewares.opentelemetry_middleware import OpenTelemetryMiddleware
from taskiq.receiver import Receiver
from tests.opentelemetry.telemetry import (
    Telemetry,
    context_of,
    current_name,
    is_child,
    linked_spans,
    trace_of,
)
from tests.support.brokers import QueueBroker, message_bytes
from tests.support.virtual_time import run_virtual

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

_Task = AsyncTaskiqDecoratedTask[[int], Any]


def message_of(task_name: str) -> TaskiqMessage:
    return TaskiqMessage(
        task_id="id",
        task_name=task_name,
        labels={},
        args=[0],
        kwargs={},
    )


def result_of() -> TaskiqResult[Any]:
    return TaskiqResult(is_err=False, return_value=None, execution_time=0)


async def work(broker: QueueBroker, **options: Any) -> None:
    """Run what was sent, until nothing is left."""
    broker.end()
    options = {"max_async_tasks": 10, **options}
    await Receiver(broker, run_startup=False, **options).listen(asyncio.Event())


async def send_each_in_a_trace(
    telemetry: Telemetry,
    task: _Task,
    items: range,
) -> None:
    """Send items from requests of their own, under the ids "0", "1" and so on."""
    for item in items:
        with telemetry.tracer.start_as_current_span(f"request/{item}"):
            await task.kicker().with_task_id(str(item)).kiq(item)


def executions(telemetry: Telemetry, task_name: str = "t") -> list[ReadableSpan]:
    """The spans of the members, in the order of their items."""
    started = {
        context_of(span).span_id: span
        for span in telemetry.spans(f"execute/{task_name}")
    }
    return [
        started[link.context.span_id]
        for link in telemetry.span(f"batch/{task_name}").links
    ]


def even_ones_of(
    broker: AsyncBroker,
    batch_size: int | None = None,
    batch_timeout: float | None = None,
) -> _Task:
    """Register a batch task that fails for odd items."""

    @broker.task(
        task_name="t",
        batch=True,
        batch_size=batch_size,
        batch_timeout=batch_timeout,
    )
    async def t(items: list[int]) -> list[int | Exception]:
        return [item if item % 2 == 0 else ValueError(f"odd {item}") for item in items]

    return t


def none_of(broker: AsyncBroker) -> _Task:
    """Register a batch task whose calls fail."""

    @broker.task(task_name="t", batch=True)
    async def t(items: list[int]) -> None:
        raise ValueError("broken")

    return t


@pytest.mark.parametrize("is_in_process", [True, False])
async def test_a_batch_has_one_span_that_is_linked_with_every_member_in_its_own_trace(
    telemetry: Telemetry,
    is_in_process: bool,
) -> None:
    broker = InMemoryBroker() if is_in_process else QueueBroker()
    broker.add_middlewares(telemetry.middleware())
    task = even_ones_of(broker, batch_size=4)
    await send_each_in_a_trace(telemetry, task, range(4))
    if isinstance(broker, InMemoryBroker):
        await broker.wait_all()
    else:
        await work(broker)

    batch = telemetry.span("batch/t")
    assert batch.kind is SpanKind.CONSUMER
    assert batch.parent is None
    members = executions(telemetry)
    assert len(members) == 4
    for number, member in enumerate(members):
        request = telemetry.span(f"request/{number}")
        sending = next(
            span for span in telemetry.spans("send/t") if is_child(span, request)
        )
        assert is_child(member, sending)
        assert linked_spans(member) == {context_of(batch).span_id}
    assert len({trace_of(span) for span in [batch, *members]}) == 5


def test_the_span_of_a_batch_says_what_is_called_and_why_now(
    telemetry: Telemetry,
) -> None:
    async def main() -> None:
        broker = InMemoryBroker().with_middlewares(telemetry.middleware())
        task = even_ones_of(broker, batch_timeout=2)
        handle = await task.kiq(0)
        await task.kiq(1)
        await handle.wait_result(check_interval=0.5)

    run_virtual(main())
    attributes = dict(telemetry.span("batch/t").attributes or {})
    batch_id = attributes.pop("taskiq.batch.id")
    assert attributes.pop("taskiq.batch.waited") == pytest.approx(2)
    assert attributes == {
        "taskiq.action": "batch",
        "taskiq.task_name": "t",
        "taskiq.batch.size": 2,
        "taskiq.batch.flush_reason": "timeout",
        "taskiq.batch.failed": 1,
        "messaging.batch.message_count": 2,
    }
    for member in executions(telemetry):
        assert (member.attributes or {})["taskiq.batch.id"] == batch_id


async def test_the_span_of_a_member_lasts_from_its_admission_to_its_own_end(
    telemetry: Telemetry,
) -> None:
    broker = QueueBroker().with_middlewares(telemetry.middleware())
    await send_each_in_a_trace(telemetry, even_ones_of(broker), range(2))
    await work(broker)
    batch = telemetry.span("batch/t")
    assert batch.start_time is not None
    assert batch.end_time is not None
    for member in executions(telemetry):
        assert member.start_time is not None
        assert member.end_time is not None
        assert member.start_time < batch.start_time
        assert member.end_time > batch.end_time


async def test_an_error_in_one_member_does_not_mark_its_neighbours(
    telemetry: Telemetry,
) -> None:
    broker = QueueBroker().with_middlewares(telemetry.middleware())
    await send_each_in_a_trace(telemetry, even_ones_of(broker), range(3))
    await work(broker)
    first, second, third = executions(telemetry)
    assert second.status.status_code is StatusCode.ERROR
    assert second.status.description == "odd 1"
    assert [event.name for event in second.events] == ["exception", "taskiq.ending"]
    for span in (first, third, telemetry.span("batch/t")):
        assert span.status.status_code is StatusCode.UNSET
        assert span.events == ()


async def test_a_batch_whose_call_failed_is_an_error_span(telemetry: Telemetry) -> None:
    broker = QueueBroker().with_middlewares(telemetry.middleware())
    await send_each_in_a_trace(telemetry, none_of(broker), range(2))
    await work(broker)
    batch = telemetry.span("batch/t")
    for span in (batch, *executions(telemetry)):
        assert span.status.status_code is StatusCode.ERROR
        assert span.status.description == "broken"
        told = ["exception"] if span is batch else ["exception", "taskiq.ending"]
        assert [event.name for event in span.events] == told


async def test_a_batch_that_wants_no_results_has_not_failed(
    telemetry: Telemetry,
) -> None:
    broker = QueueBroker().with_middlewares(telemetry.middleware())

    @broker.task(task_name="t", batch=True)
    async def t(items: list[int]) -> None:
        raise NoResultError

    await t.kiq(1)
    await work(broker)
    assert telemetry.span("batch/t").status.status_code is StatusCode.UNSET


async def test_the_span_of_the_batch_is_current_in_an_async_function(
    telemetry: Telemetry,
) -> None:
    broker = QueueBroker().with_middlewares(telemetry.middleware())

    @broker.task(task_name="later")
    async def later() -> None: ...

    @broker.task(task_name="t", batch=True)
    async def t(items: list[int]) -> None:
        await later.kiq()
        assert current_name() == "batch/t"

    await t.kiq(0)
    await t.kiq(1)
    await work(broker)
    batch = telemetry.span("batch/t")
    assert batch.status.status_code is StatusCode.UNSET
    assert is_child(telemetry.span("send/later"), batch)


async def test_the_span_of_the_batch_is_current_in_a_sync_function(
    telemetry: Telemetry,
) -> None:
    broker = QueueBroker().with_middlewares(telemetry.middleware())

    @broker.task(task_name="t", batch=True)
    def t(items: list[int]) -> None:
        assert current_name() == "batch/t"

    await t.kiq(0)
    await work(broker)
    assert telemetry.span("batch/t").status.status_code is StatusCode.UNSET


async def test_nothing_of_one_sender_is_seen_by_a_batch(telemetry: Telemetry) -> None:
    broker = InMemoryBroker().with_middlewares(telemetry.middleware())
    seen = []

    @broker.task(task_name="t", batch=True, batch_size=2)
    async def t(items: list[int]) -> None:
        seen.append(baggage.get_all())

    for tenant in ("a", "b"):
        token = otel_context.attach(baggage.set_baggage("tenant", tenant))
        await t.kiq(1)
        otel_context.detach(token)
    await broker.wait_all()
    assert seen == [{}]


async def test_a_member_sent_again_goes_on_in_its_own_trace(
    telemetry: Telemetry,
) -> None:
    broker = InMemoryBroker().with_middlewares(
        telemetry.middleware(),
        SimpleRetryMiddleware(default_retry_label=True, default_retry_count=2),
    )
    task = even_ones_of(broker, batch_size=2)
    await send_each_in_a_trace(telemetry, task, range(2))
    await broker.wait_all()
    _, sending, sending_again = telemetry.spans("send/t")
    _, run, last_run = telemetry.spans("execute/t")
    assert is_child(run, sending)
    assert is_child(sending_again, run)
    assert is_child(last_run, sending_again)
    assert run.status.status_code is StatusCode.UNSET
    assert (run.attributes or {})["taskiq.retry.reason"] == "odd 1"
    assert last_run.status.status_code is StatusCode.ERROR


async def test_a_message_that_fits_in_no_batch_fails_in_a_span_without_a_batch(
    telemetry: Telemetry,
) -> None:
    broker = QueueBroker().with_middlewares(telemetry.middleware())
    wrong: Any = even_ones_of(broker)
    await wrong.kiq("no number")
    await work(broker)
    span = telemetry.span("execute/t")
    assert span.status.status_code is StatusCode.ERROR
    assert span.links == ()
    assert telemetry.spans("batch/t") == []
    assert telemetry.total("taskiq_batch_buffered") == 0
    assert telemetry.total("worker_active_tasks") == 0


class Replacing(TaskiqMiddleware):
    """Puts new objects into the place of messages."""

    def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
        return TaskiqMessage(**message.model_dump())


async def test_the_span_of_a_member_ends_when_its_message_object_was_replaced(
    telemetry: Telemetry,
) -> None:
    broker = QueueBroker().with_middlewares(telemetry.middleware(), Replacing())
    await send_each_in_a_trace(telemetry, even_ones_of(broker), range(2))
    await work(broker)
    first, second = executions(telemetry)
    assert first.status.status_code is StatusCode.UNSET
    assert second.status.status_code is StatusCode.ERROR
    assert telemetry.total("worker_active_tasks") == 0


async def test_one_message_delivered_twice_has_two_spans(telemetry: Telemetry) -> None:
    broker = QueueBroker().with_middlewares(telemetry.middleware())
    task = even_ones_of(broker)
    for _ in range(2):
        await task.kicker().with_task_id("same").kiq(0)
    await work(broker)
    assert len(executions(telemetry)) == 2
    assert telemetry.total("worker_active_tasks") == 0


async def test_a_batch_run_in_place_is_inside_of_its_sending(
    telemetry: Telemetry,
) -> None:
    broker = InMemoryBroker(await_inplace=True)
    broker.add_middlewares(telemetry.middleware())
    await even_ones_of(broker).kiq(0)
    assert [span.name for span in telemetry.ended] == ["batch/t", "execute/t", "send/t"]
    (member,) = executions(telemetry)
    assert is_child(member, telemetry.span("send/t"))


async def test_plain_tasks_beside_batches_have_no_batch(telemetry: Telemetry) -> None:
    broker = QueueBroker().with_middlewares(telemetry.middleware())

    @broker.task(task_name="plain")
    async def plain() -> None:
        assert current_name() == "execute/plain"

    await even_ones_of(broker).kiq(0)
    await plain.kiq()
    await work(broker)
    span = telemetry.span("execute/plain")
    assert span.status.status_code is StatusCode.UNSET
    assert "taskiq.batch.id" not in (span.attributes or {})


# -- What does not come to its end -----------------------------------------------------


def assert_lost(span: ReadableSpan, text: str) -> None:
    assert span.status.status_code is StatusCode.ERROR
    assert span.status.description == text
    assert span.end_time is not None


async def test_a_cancelled_batch_ends_its_span_and_those_of_its_members(
    telemetry: Telemetry,
) -> None:
    broker = QueueBroker().with_middlewares(telemetry.middleware())
    is_running = asyncio.Event()

    @broker.task(task_name="t", batch=True, batch_size=2)
    async def t(items: list[int]) -> None:
        is_running.set()
        await asyncio.Event().wait()

    await send_each_in_a_trace(telemetry, t, range(2))
    receiver = Receiver(broker, run_startup=False, max_async_tasks=1)
    listening = asyncio.create_task(receiver.listen(asyncio.Event()))
    await is_running.wait()
    assert telemetry.total("worker_active_tasks") == 2
    listening.cancel()
    await asyncio.wait([listening])
    assert_lost(telemetry.span("batch/t"), "The call was cancelled")
    members = executions(telemetry)
    assert len(members) == 2
    for member in members:
        assert_lost(member, "The execution did not come to its end")
    assert telemetry.total("worker_active_tasks") == 0
    assert telemetry.total("taskiq_batch_buffered") == 0


def test_a_member_given_up_while_its_call_runs_ends_with_the_batch(
    telemetry: Telemetry,
) -> None:
    async def main() -> None:
        broker = InMemoryBroker().with_middlewares(telemetry.middleware())
        is_running, may_end = asyncio.Event(), asyncio.Event()

        @broker.task(task_name="t", batch=True, batch_size=2)
        async def t(items: list[int]) -> None:
            is_running.set()
            await may_end.wait()

        given_up, other = [
            asyncio.create_task(
                broker.receiver.callback(message_bytes(t, item, task_id=str(item))),
            )
            for item in range(2)
        ]
        await is_running.wait()
        given_up.cancel()
        await asyncio.wait([given_up])
        may_end.set()
        await other
        await broker.wait_all()

    run_virtual(main())
    assert telemetry.span("batch/t").status.status_code is StatusCode.UNSET
    first, second = executions(telemetry)
    assert_lost(first, "The execution did not come to its end")
    assert second.status.status_code is StatusCode.UNSET
    assert telemetry.total("worker_active_tasks") == 0


async def test_an_asyncio_task_that_runs_batches_in_place_is_not_watched_after_them(
    telemetry: Telemetry,
) -> None:
    broker = InMemoryBroker(await_inplace=True)
    broker.add_middlewares(telemetry.middleware())
    task = even_ones_of(broker)

    async def send() -> None:
        await task.kiq(0)
        running: Any = asyncio.current_task()
        watchers.extend(running._callbacks or ())

    watchers: list[Any] = []
    sending = asyncio.create_task(send())
    await asyncio.wait([sending])
    assert telemetry.span("batch/t").end_time is not None
    assert [each for each in watchers if "OpenBatch" in repr(each)] == []
    assert [each for each in watchers if "OpenSpan" in repr(each)] == []


class Arrivals(TaskiqMiddleware):
    """Tells when two messages have arrived."""

    def __init__(self) -> None:
        super().__init__()
        self.are_complete = asyncio.Event()
        self._count = 0

    def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
        self._count += 1
        if self._count == 2:
            self.are_complete.set()
        return message


async def test_members_left_in_a_buffer_end_when_the_broker_shuts_down(
    telemetry: Telemetry,
) -> None:
    arrivals = Arrivals()
    broker = QueueBroker().with_middlewares(telemetry.middleware(), arrivals)
    await send_each_in_a_trace(telemetry, even_ones_of(broker), range(2))
    receiver = Receiver(broker, run_startup=False, max_async_tasks=1)
    listening = asyncio.create_task(receiver.listen(asyncio.Event()))
    await arrivals.are_complete.wait()
    assert telemetry.total("taskiq_batch_buffered") == 2
    listening.cancel()
    await asyncio.wait([listening])
    assert telemetry.spans("execute/t") == []
    await broker.shutdown()
    left = telemetry.spans("execute/t")
    assert len(left) == 2
    for span in left:
        assert_lost(span, "The execution did not come to its end")
    assert telemetry.total("worker_active_tasks") == 0
    assert telemetry.total("taskiq_batch_buffered") == 0


def test_a_span_that_was_given_up_is_not_ended_again(telemetry: Telemetry) -> None:
    middleware = telemetry.middleware()
    broker = InMemoryBroker().with_middlewares(middleware)
    even_ones_of(broker)
    message = middleware.pre_execute(message_of("t"))
    middleware.shutdown()
    batch = BatchInfo("id", "t", [message], FlushReason.SIZE, 0)
    middleware.on_batch_start(batch)
    middleware.on_batch_end(batch, [result_of()])
    middleware.post_execute(message, result_of())
    assert telemetry.span("batch/t").links == ()
    assert_lost(telemetry.span("execute/t"), "The execution did not come to its end")
    assert telemetry.total("worker_active_tasks") == 0
    assert telemetry.total("task_success") == 1


def test_the_end_of_one_delivery_does_not_forget_another_one_of_that_message(
    telemetry: Telemetry,
) -> None:
    middleware = telemetry.middleware()
    broker = InMemoryBroker().with_middlewares(middleware)
    even_ones_of(broker)
    first, _ = [middleware.pre_execute(message_of("t")) for _ in range(2)]
    middleware.post_execute(first, result_of())
    assert len(telemetry.spans("execute/t")) == 1
    middleware.shutdown()
    assert len(telemetry.spans("execute/t")) == 2


def test_a_batch_that_was_not_seen_to_start_does_not_end_another_one(
    telemetry: Telemetry,
) -> None:
    def info(batch_id: str) -> BatchInfo:
        return BatchInfo(batch_id, "t", [message_of("t")], FlushReason.SIZE, 0)

    middleware = telemetry.middleware()
    middleware.on_batch_end(info("unseen"), [result_of()])
    middleware.on_batch_start(info("seen"))
    middleware.on_batch_end(info("unseen"), [result_of()])
    assert telemetry.ended == []
    middleware.on_batch_end(info("seen"), [result_of()])
    assert telemetry.span("batch/t").end_time is not None


# -- Metrics ----------------------------------------------------------------------


def test_batches_are_counted_and_timed_by_task_and_by_reason_and_never_by_key(
    telemetry: Telemetry,
) -> None:
    async def main() -> None:
        broker = InMemoryBroker().with_middlewares(telemetry.middleware())

        @broker.task(task_name="t", batch=True, batch_size=3, batch_timeout=2)
        async def t(items: list[int], tenant: str) -> None:
            await asyncio.sleep(4)

        handles = [await t.kiq(item, "a") for item in range(3)]
        handles.append(await t.kiq(3, "b"))
        for handle in handles:
            await handle.wait_result(check_interval=0.5)
        await broker.wait_all()

    run_virtual(main())
    by_task = {"task_name": "t"}
    assert telemetry.points("taskiq_batch_size") == [(by_task, (2, 4))]
    ((_, (count, seconds)),) = telemetry.points("taskiq_batch_wait")
    assert (count, seconds) == (2, pytest.approx(2))
    ((_, (count, _)),) = telemetry.points("taskiq_batch_run")
    assert count == 2
    assert telemetry.points("taskiq_batch_flushes") == [
        ({**by_task, "reason": "size"}, 1),
        ({**by_task, "reason": "timeout"}, 1),
    ]
    assert telemetry.points("taskiq_batch_buffered") == [(by_task, 0)]
    assert telemetry.points("task_success") == [(by_task, 4)]
    units = {
        metric.name: metric.unit
        for metric in telemetry.metrics()
        if "batch" in metric.name
    }
    assert units == {
        "taskiq_batch_size": "1",
        "taskiq_batch_wait": "s",
        "taskiq_batch_run": "s",
        "taskiq_batch_flushes": "1",
        "taskiq_batch_buffered": "1",
        "taskiq_batch_open_groups": "1",
    }


def keyed_of(broker: AsyncBroker) -> _Task:
    """Register a batch task that isolates item 5, with a key for each pair of items."""

    @broker.task(
        task_name="t",
        batch=True,
        batch_timeout=2,
        batch_key=lambda item: item // 2,
        batch_isolate_errors=True,
    )
    async def t(items: list[int]) -> list[int]:
        if 5 in items:
            raise ValueError("five")
        return items

    return t


def test_open_groups_and_isolation_calls_are_told_without_a_series_per_key(
    telemetry: Telemetry,
) -> None:
    async def main() -> None:
        broker = InMemoryBroker().with_middlewares(telemetry.middleware())
        task = keyed_of(broker)
        assert telemetry.total("taskiq_batch_open_groups") == 0
        for item in range(20):
            await task.kiq(item)
        await asyncio.sleep(1)
        assert telemetry.total("taskiq_batch_open_groups") == 10
        await asyncio.sleep(2)
        await broker.wait_all()

    run_virtual(main())
    by_task = {"task_name": "t"}
    assert telemetry.points("taskiq_batch_open_groups") == [({}, 0)]
    # Items 4 and 5 share a call: each of them is called once more.
    assert telemetry.points("taskiq_batch_isolation_calls") == [(by_task, 2)]
    assert telemetry.metric("taskiq_batch_isolation_calls").unit == "1"
    isolated = [
        attributes["taskiq.batch.isolation_calls"]
        for span in telemetry.spans("batch/t")
        if "taskiq.batch.isolation_calls" in (attributes := dict(span.attributes or {}))
    ]
    assert isolated == [2]
    allowed = [{}, by_task, {**by_task, "reason": "timeout"}]
    for metric in telemetry.metrics():
        if "batch" in metric.name:
            ((attributes, _),) = telemetry.points(metric.name)
            assert attributes in allowed


async def test_open_groups_are_told_to_a_reader_in_another_thread(
    telemetry: Telemetry,
) -> None:
    broker = InMemoryBroker().with_middlewares(telemetry.middleware())
    task = keyed_of(broker)
    await task.kiq(1)
    await asyncio.wait(broker._running_tasks)
    total = await asyncio.to_thread(telemetry.total, "taskiq_batch_open_groups")
    assert total == 1
    await broker.wait_all()


async def test_a_process_that_only_sends_tells_nothing_about_groups(
    telemetry: Telemetry,
) -> None:
    broker = QueueBroker().with_middlewares(telemetry.middleware())
    await keyed_of(broker).kiq(1)
    assert telemetry.points("taskiq_batch_open_groups") == []


async def test_each_client_finds_the_status_of_its_own_message_in_its_own_trace(
    telemetry: Telemetry,
) -> None:
    broker = QueueBroker().with_middlewares(telemetry.middleware())
    await send_each_in_a_trace(telemetry, keyed_of(broker), range(4, 8))
    await work(broker)
    for item in range(4, 8):
        request = telemetry.span(f"request/{item}")
        (sending,) = (s for s in telemetry.spans("send/t") if is_child(s, request))
        (run,) = (s for s in telemetry.spans("execute/t") if is_child(s, sending))
        failed = run.status.status_code is StatusCode.ERROR
        assert (failed, run.status.description) == (
            (True, "five") if item == 5 else (False, None)
        )
        ((link,),) = ([each.context.span_id] for each in run.links)
        (batch,) = (
            span
            for span in telemetry.spans("batch/t")
            if context_of(span).span_id == link
        )
        assert context_of(run).span_id in linked_spans(batch)


async def test_the_run_time_of_a_batch_is_the_time_between_its_hooks(
    telemetry: Telemetry,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr(
        "taskiq.middlewares._open_spans.time.perf_counter",
        lambda: now,
    )
    broker = QueueBroker().with_middlewares(telemetry.middleware())

    @broker.task(task_name="t", batch=True)
    async def t(items: list[int]) -> None:
        nonlocal now
        now += 7

    await t.kiq(0)
    await work(broker)
    assert telemetry.points("taskiq_batch_run") == [({"task_name": "t"}, (1, 7.0))]


async def test_a_middleware_without_telemetry_costs_no_result(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Neither tracer nor meter need to be set up for tasks to run."""
    caplog.set_level(logging.WARNING)
    broker = InMemoryBroker().with_middlewares(OpenTelemetryMiddleware())
    handle = await even_ones_of(broker).kiq(2)
    await broker.wait_all()
    assert (await handle.get_result()).return_value == 2
    assert caplog.records == []


async def test_a_chunk_has_one_span_which_each_of_its_batches_is_linked_to(
    telemetry: Telemetry,
) -> None:
    broker = QueueBroker().with_middlewares(telemetry.middleware())
    t: Any = even_ones_of(broker, batch_size=2)
    with telemetry.tracer.start_as_current_span("request"):
        await t.kiq_chunk([0, 1, 2, 3])
    await work(broker)
    execution = telemetry.span("execute/t")
    batches = telemetry.spans("batch/t")
    assert len(batches) == 2
    for batch in batches:
        assert [link.context.span_id for link in batch.links] == [
            context_of(execution).span_id,
        ]
        assert batch.attributes is not None
        assert batch.attributes["taskiq.batch.size"] == 2
        assert batch.attributes["taskiq.batch.failed"] == 1
    assert trace_of(execution) == trace_of(telemetry.span("request"))
    assert execution.status.status_code is not StatusCode.ERROR
