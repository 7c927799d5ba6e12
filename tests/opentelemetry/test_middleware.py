"""Traces and metrics of plain tasks."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import importlib
import os
import pickle
import sys
from typing import TYPE_CHECKING, Annotated, Any
from unittest import mock

import psutil  # type: ignore[import-untyped] # it comes without type hints
import pytest
from opentelemetry import baggage, trace
from opentelemetry import context as otel_context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import SpanKind, StatusCode

import taskiq
from taskiq import (
    BrokerMessage,
    Context,
    InMemoryBroker,
    SendManyError,
    SendTaskError,
    TaskiqDepends,
    TaskiqMessage,
    TaskiqMiddleware,
    TaskiqResult,
)
from taskiq.middlewares import SimpleRetryMiddleware, SmartRetryMiddleware
from taskiq.middlewares import opentelemetry_middleware as module
from taskiq.middlewares.opentelemetry_middleware import (
    CTX_KEY,
    TASKIQ_CONTEXT_ATTRIBUTES,
    OpenTelemetryMiddleware,
    attach_context,
    detach_context,
    retrieve_context,
    set_attributes_from_context,
)
from taskiq.receiver import Receiver
from tests.opentelemetry.telemetry import (
    Telemetry,
    context_of,
    current_name,
    is_child,
    trace_of,
)
from tests.support.brokers import QueueBroker
from tests.support.recorders import RecordingBackend

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan


def message_of(task_name: str = "t", **labels: Any) -> TaskiqMessage:
    return TaskiqMessage(
        task_id="id",
        task_name=task_name,
        labels=labels,
        args=[],
        kwargs={},
    )


def result_of(error: BaseException | None = None) -> TaskiqResult[Any]:
    return TaskiqResult(
        is_err=error is not None,
        return_value=None,
        execution_time=0.5,
        error=error,
    )


def attributes_of(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


async def work(broker: QueueBroker, **options: Any) -> None:
    """Run what was sent, until nothing is left."""
    broker.end()
    receiver = Receiver(broker, run_startup=False, max_async_tasks=10, **options)
    await receiver.listen(asyncio.Event())


# -- Helpers ----------------------------------------------------------------------


class Forbidding:
    """Looks like a message, and allows no attribute beside those it has."""

    def __init__(self) -> None:
        object.__setattr__(self, "task_id", "id")

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(name)


@pytest.mark.parametrize("message", [message_of(), Forbidding()])
def test_a_message_keeps_its_two_spans_apart(message: Any) -> None:
    sent = (mock.Mock(), mock.MagicMock(), None)
    executed = (mock.Mock(), mock.MagicMock(), object())
    attach_context(message, sent[0], sent[1], sent[2], is_publish=True)
    attach_context(message, executed[0], executed[1], executed[2])
    assert retrieve_context(message, is_publish=True) == sent
    assert retrieve_context(message) == executed
    assert getattr(message, CTX_KEY) == {("id", True): sent, ("id", False): executed}
    detach_context(message)
    assert retrieve_context(message) is None
    assert retrieve_context(message, is_publish=True) == sent


def test_no_message_keeps_no_span_and_an_absent_span_is_no_error() -> None:
    nothing: Any = None
    attach_context(None, mock.Mock(), mock.Mock(), None)
    detach_context(nothing)
    assert retrieve_context(nothing) is None
    message = message_of()
    detach_context(message)
    assert retrieve_context(message) is None
    attach_context(message, mock.Mock(), mock.Mock(), None)
    detach_context(message, is_publish=True)
    assert retrieve_context(message) is not None


def test_a_message_with_an_open_span_can_be_copied_and_pickled(
    telemetry: Telemetry,
) -> None:
    middleware = telemetry.middleware()
    message = middleware.pre_send(message_of())
    copied = message.model_copy(deep=True)
    assert copy.deepcopy(message).model_dump() == message.model_dump()
    assert pickle.loads(pickle.dumps(message)).labels == message.labels  # noqa: S301
    middleware.post_send(copied)
    assert telemetry.span("send/t").end_time is not None


def test_only_listed_labels_with_a_value_become_attributes(
    telemetry: Telemetry,
) -> None:
    labels = {
        "_retries": 0,
        "delay": "0",
        "max_retries": 3,
        "retry_on_error": False,
        "timeout": None,
        "X-Taskiq-requeue": "1",
        "secret": "no",
    }
    assert set(labels) - {"secret"} == set(TASKIQ_CONTEXT_ATTRIBUTES)
    with telemetry.tracer.start_as_current_span("s") as span:
        set_attributes_from_context(span, labels)
    assert attributes_of(telemetry.span("s")) == {
        "taskiq._retries": 0,
        "taskiq.delay": "0",
        "taskiq.max_retries": 3,
        "taskiq.retry_on_error": False,
        "taskiq.X-Taskiq-requeue": "1",
    }


def test_the_text_0_of_retries_is_no_attribute(telemetry: Telemetry) -> None:
    with telemetry.tracer.start_as_current_span("s") as span:
        set_attributes_from_context(span, {"_retries": "0"})
    assert attributes_of(telemetry.span("s")) == {}


def test_a_span_that_does_not_record_gets_no_attributes() -> None:
    span = mock.Mock()
    span.is_recording.return_value = False
    set_attributes_from_context(span, {"delay": 1})
    span.set_attribute.assert_not_called()


def test_hooks_look_the_helpers_up_when_they_are_called(
    telemetry: Telemetry,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    span, activation = mock.Mock(), mock.MagicMock()
    stored = mock.Mock(return_value=(span, activation, None))
    detached = mock.Mock()
    monkeypatch.setattr(module, "retrieve_context", stored)
    monkeypatch.setattr(module, "detach_context", detached)
    middleware, message, error = telemetry.middleware(), message_of(), ValueError("e")
    middleware.on_error(message, result_of(error), error)
    span.record_exception.assert_called_once_with(error)
    middleware.post_execute(message, result_of(error))
    middleware.post_send(message)
    assert activation.__exit__.call_args_list == [mock.call(None, None, None)] * 2
    assert detached.call_args_list == [
        mock.call(message),
        mock.call(message, is_publish=True),
    ]


# -- Spans ------------------------------------------------------------------------


async def test_a_task_has_a_span_where_it_is_sent_and_one_where_it_is_executed(
    telemetry: Telemetry,
) -> None:
    broker = QueueBroker().with_middlewares(telemetry.middleware())

    @broker.task(task_name="t", timeout=3, color="red")
    async def t() -> str | None:
        return current_name()

    sent = await t.kiq()
    backend = RecordingBackend()
    await work(broker.with_result_backend(backend))

    client, worker = telemetry.span("send/t"), telemetry.span("execute/t")
    assert client.kind is SpanKind.PRODUCER
    assert client.parent is None
    assert attributes_of(client) == {
        "taskiq.action": "send",
        "messaging.message.id": sent.task_id,
        "taskiq.task_name": "t",
        "taskiq.timeout": "3",
    }
    assert worker.kind is SpanKind.CONSUMER
    assert is_child(worker, client)
    assert attributes_of(worker) == {
        "taskiq.action": "execute",
        "taskiq.task_name": "t",
        "taskiq.timeout": 3,
    }
    for span in (client, worker):
        assert span.status.status_code is StatusCode.UNSET
        assert span.events == ()
    assert backend.results[sent.task_id].return_value == "execute/t"


async def test_the_span_of_a_sending_covers_the_kick(telemetry: Telemetry) -> None:
    class NamingBroker(QueueBroker):
        name: str | None = None

        async def kick(self, message: BrokerMessage) -> None:
            self.name = current_name()

    broker = NamingBroker().with_middlewares(telemetry.middleware())

    @broker.task(task_name="t")
    async def t() -> None: ...

    with telemetry.tracer.start_as_current_span("request"):
        await t.kiq()
        assert current_name() == "request"
    assert broker.name == "send/t"
    assert is_child(telemetry.span("send/t"), telemetry.span("request"))


async def test_a_task_run_in_place_is_inside_of_its_sending(
    telemetry: Telemetry,
) -> None:
    broker = InMemoryBroker(await_inplace=True)
    broker.add_middlewares(telemetry.middleware())

    @broker.task(task_name="inner")
    async def inner() -> None: ...

    @broker.task(task_name="outer")
    async def outer() -> None:
        await inner.kiq()
        assert current_name() == "execute/outer"

    await outer.kiq()
    assert [span.name for span in telemetry.ended] == [
        "execute/inner",
        "send/inner",
        "execute/outer",
        "send/outer",
    ]
    assert is_child(telemetry.span("send/inner"), telemetry.span("execute/outer"))


async def test_baggage_of_the_sender_is_seen_by_the_task(telemetry: Telemetry) -> None:
    broker = QueueBroker().with_middlewares(telemetry.middleware())
    seen = []

    @broker.task(task_name="t")
    async def t() -> None:
        seen.append(baggage.get_baggage("tenant"))

    token = otel_context.attach(baggage.set_baggage("tenant", "acme"))
    await t.kiq()
    otel_context.detach(token)
    await work(broker)
    assert seen == ["acme"]


def test_without_anything_propagated_the_parent_is_what_is_current(
    telemetry: Telemetry,
) -> None:
    middleware, message = telemetry.middleware(), message_of()
    with telemetry.tracer.start_as_current_span("poll"):
        middleware.pre_execute(message)
        stored = retrieve_context(message)
        assert stored is not None
        assert stored[2] is None
        middleware.post_execute(message, result_of())
        assert current_name() == "poll"
    assert is_child(telemetry.span("execute/t"), telemetry.span("poll"))


async def test_a_failed_task_is_an_error_span_with_the_exception(
    telemetry: Telemetry,
) -> None:
    broker = QueueBroker().with_middlewares(telemetry.middleware())

    @broker.task(task_name="t")
    async def t() -> None:
        raise ValueError("broken")

    await t.kiq()
    await work(broker)
    span = telemetry.span("execute/t")
    assert_failed(span, "broken")
    event, _ = span.events
    details = dict(event.attributes or {})
    assert details["exception.type"] == "ValueError"
    assert details["exception.message"] == "broken"
    assert "raise ValueError" in str(details["exception.stacktrace"])
    assert telemetry.span("send/t").status.status_code is StatusCode.UNSET


def test_tracer_and_meter_name_the_module_and_the_version(telemetry: Telemetry) -> None:
    middleware = telemetry.middleware()
    middleware.post_send(middleware.pre_send(message_of()))
    scope = telemetry.span("send/t").instrumentation_scope
    assert scope is not None
    assert scope.name == "taskiq.middlewares.opentelemetry_middleware"
    assert scope.version == taskiq.__version__
    assert scope.schema_url == "https://opentelemetry.io/schemas/1.11.0"


def test_a_given_tracer_and_meter_are_used(telemetry: Telemetry) -> None:
    middleware = OpenTelemetryMiddleware(
        tracer=telemetry.tracer,
        meter=telemetry.meter_provider.get_meter("mine"),
    )
    middleware.post_send(middleware.pre_send(message_of()))
    assert telemetry.span("send/t").instrumentation_scope is not None
    assert telemetry.total("tasks_sent") == 1


# -- Retries ----------------------------------------------------------------------


def events_of(span: ReadableSpan) -> list[str]:
    """Name its events, but for those that tell how a message ends."""
    return [event.name for event in span.events if event.name != "taskiq.ending"]


def assert_failed(span: ReadableSpan, text: str) -> None:
    assert span.status.status_code is StatusCode.ERROR
    assert span.status.description == text
    assert events_of(span) == ["exception"]
    assert "taskiq.retry.reason" not in attributes_of(span)


def assert_retried(span: ReadableSpan, reason: str) -> None:
    assert span.status.status_code is StatusCode.UNSET
    assert events_of(span) == []
    assert attributes_of(span)["taskiq.retry.reason"] == reason


@pytest.mark.parametrize("no_result_on_retry", [True, False])
@pytest.mark.parametrize("is_traced_first", [True, False])
async def test_only_the_last_failed_run_is_an_error_span(
    telemetry: Telemetry,
    is_traced_first: bool,
    no_result_on_retry: bool,
) -> None:
    retrying = SimpleRetryMiddleware(
        default_retry_label=True,
        no_result_on_retry=no_result_on_retry,
    )
    middlewares = [telemetry.middleware(), retrying]
    broker = InMemoryBroker().with_middlewares(
        *(middlewares if is_traced_first else reversed(middlewares)),
    )
    runs = 0

    @broker.task(task_name="t")
    async def t() -> None:
        nonlocal runs
        runs += 1
        raise ValueError(f"run {runs}")

    await t.kiq()
    await broker.wait_all()
    first, second, third = telemetry.spans("execute/t")
    assert_retried(first, "run 1")
    assert_retried(second, "run 2")
    assert_failed(third, "run 3")
    assert len({trace_of(span) for span in telemetry.ended}) == 1


async def test_a_run_whose_retry_could_not_be_sent_is_an_error_span(
    telemetry: Telemetry,
) -> None:
    class OnceBroker(QueueBroker):
        async def kick(self, message: BrokerMessage) -> None:
            if self.delivered:
                raise ConnectionError("away")
            await super().kick(message)

    broker = OnceBroker().with_middlewares(
        telemetry.middleware(),
        SmartRetryMiddleware(default_retry_label=True),
    )

    @broker.task(task_name="t")
    async def t() -> None:
        raise ValueError("broken")

    await t.kiq()
    await work(broker)
    assert_failed(telemetry.span("execute/t"), "broken")


@pytest.mark.parametrize(
    ("labels", "is_retried"),
    [
        ({}, False),
        ({"retry_on_error": True}, True),
        ({"retry_on_error": "TRUE"}, True),
        ({"retry_on_error": "False"}, False),
        ({"retry_on_error": True, "max_retries": "2", "_retries": "0"}, True),
        ({"retry_on_error": True, "max_retries": "2", "_retries": "1"}, False),
        ({"retry_on_error": True, "max_retries": "many"}, False),
    ],
)
def test_without_a_known_retry_middleware_the_labels_tell_whether_it_is_retried(
    telemetry: Telemetry,
    labels: dict[str, Any],
    is_retried: bool,
) -> None:
    middleware, error = telemetry.middleware(), ValueError("broken")
    message = middleware.pre_execute(message_of(**labels))
    middleware.on_error(message, result_of(error), error)
    middleware.post_execute(message, result_of(error))
    check = assert_retried if is_retried else assert_failed
    check(telemetry.span("execute/t"), "broken")


async def test_a_requeued_message_keeps_its_trace(telemetry: Telemetry) -> None:
    broker = InMemoryBroker().with_middlewares(telemetry.middleware())

    @broker.task(task_name="t")
    async def t(context: Annotated[Context, TaskiqDepends()]) -> None:
        if "X-Taskiq-requeue" not in context.message.labels:
            await context.requeue()

    no_context: Any = t.kiq
    await no_context()
    await broker.wait_all()
    _, second = telemetry.spans("execute/t")
    assert is_child(second, telemetry.span("send/t"))
    assert attributes_of(second)["taskiq.X-Taskiq-requeue"] == "1"


# -- Spans that nothing would end ----------------------------------------------------


class Replacing(TaskiqMiddleware):
    """Puts new objects into the place of messages."""

    def pre_send(self, message: TaskiqMessage) -> TaskiqMessage:
        return TaskiqMessage(**message.model_dump())

    def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
        return TaskiqMessage(**message.model_dump())


@pytest.mark.parametrize("is_replaced_after", [True, False])
async def test_a_span_ends_when_the_message_object_was_replaced(
    telemetry: Telemetry,
    is_replaced_after: bool,
) -> None:
    middlewares = [telemetry.middleware(), Replacing()]
    broker = InMemoryBroker(await_inplace=True).with_middlewares(
        *(middlewares if is_replaced_after else reversed(middlewares)),
    )

    @broker.task(task_name="t")
    async def t() -> None:
        raise ValueError("broken")

    await t.kiq()
    assert_failed(telemetry.span("execute/t"), "broken")
    assert is_child(telemetry.span("execute/t"), telemetry.span("send/t"))
    assert telemetry.total("tasks_sent") == 1
    assert telemetry.total("worker_active_tasks") == 0


async def test_a_replaced_message_is_found_behind_a_sending_that_failed(
    telemetry: Telemetry,
) -> None:
    broker = AwayBroker().with_middlewares(telemetry.middleware(), Replacing())

    @broker.task(task_name="t")
    async def t() -> None:
        broker.is_away = True
        with contextlib.suppress(SendTaskError):
            await t.kiq()

    broker.is_away = False
    await t.kiq()
    await work(broker)
    assert telemetry.span("execute/t").status.status_code is StatusCode.UNSET
    assert telemetry.total("worker_active_tasks") == 0


async def test_a_span_is_not_found_from_another_asyncio_task(
    telemetry: Telemetry,
    caplog: pytest.LogCaptureFixture,
) -> None:
    middleware, message = telemetry.middleware(), message_of()
    middleware.pre_execute(message)

    async def execute_another_one_of_that_id() -> None:
        middleware.post_execute(message_of(), result_of())

    await asyncio.create_task(execute_another_one_of_that_id())
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert telemetry.ended == []
    middleware.post_execute(message, result_of())
    assert telemetry.span("execute/t").end_time is not None


async def test_an_execution_that_was_refused_does_not_end_its_sending(
    telemetry: Telemetry,
) -> None:
    class Refusing(TaskiqMiddleware):
        def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
            raise PermissionError

    broker = InMemoryBroker(await_inplace=True)
    broker.add_middlewares(Refusing(), telemetry.middleware())

    @broker.task(task_name="t")
    async def t() -> None: ...

    await t.kiq()
    assert [span.name for span in telemetry.ended] == ["send/t"]
    assert telemetry.total("tasks_sent") == 1
    assert telemetry.points("worker_active_tasks") == []


class AwayBroker(QueueBroker):
    """Cannot send anything as long as it is away."""

    is_away = True

    async def kick(self, message: BrokerMessage) -> None:
        if self.is_away:
            raise ConnectionError("away")
        await super().kick(message)


def assert_not_sent(span: ReadableSpan) -> None:
    assert_failed(span, "away")


async def test_a_failed_sending_ends_before_the_next_one_and_is_not_its_parent(
    telemetry: Telemetry,
) -> None:
    broker = AwayBroker().with_middlewares(telemetry.middleware())

    @broker.task(task_name="t")
    async def t() -> None: ...

    async def send_until_it_works() -> None:
        with telemetry.tracer.start_as_current_span("request"):
            for is_away in (True, True, False):
                broker.is_away = is_away
                with contextlib.suppress(SendTaskError):
                    await t.kiq()
            assert current_name() == "request"

    await asyncio.create_task(send_until_it_works())
    first, second, third = telemetry.spans("send/t")
    assert_not_sent(first)
    assert_not_sent(second)
    assert third.status.status_code is StatusCode.UNSET
    request = telemetry.span("request")
    assert all(is_child(span, request) for span in (first, second, third))
    assert telemetry.total("tasks_sent") == 1


async def test_each_of_many_sendings_has_a_span_that_ends_before_the_others_are_told(
    telemetry: Telemetry,
) -> None:
    broker = QueueBroker().with_middlewares(telemetry.middleware())

    @broker.task(task_name="t")
    async def t(item: object) -> None: ...

    with telemetry.tracer.start_as_current_span("request"):
        with pytest.raises(SendManyError) as caught:
            await t.kiq_many([1, object(), 3])
        assert current_name() == "request"
        spans = telemetry.spans("send/t")

    assert caught.value.unsent == [1]
    request = telemetry.span("request")
    assert len(spans) == 3
    assert all(is_child(span, request) for span in spans)
    assert_failed(spans[1], "Object of type object is not JSON serializable")
    sent = [broker.formatter.loads(each.message) for each in broker.take_all()]
    assert [message.labels["traceparent"].split("-")[2] for message in sent] == [
        f"{context_of(span).span_id:016x}" for span in (spans[0], spans[2])
    ]
    assert telemetry.total("tasks_sent") == 2


async def test_a_failed_sending_ends_with_its_error_and_is_current_no_more(
    telemetry: Telemetry,
) -> None:
    broker = AwayBroker().with_middlewares(telemetry.middleware())

    @broker.task(task_name="t")
    async def t(value: object = None) -> None: ...

    with telemetry.tracer.start_as_current_span("request"):
        with pytest.raises(SendTaskError):
            await t.kiq()
        assert current_name() == "request"
        with pytest.raises(SendTaskError):
            await t.kiq(object())
        assert current_name() == "request"
        away, unsendable = telemetry.spans("send/t")
    assert_not_sent(away)
    assert unsendable.status.status_code is StatusCode.ERROR
    assert telemetry.points("tasks_sent") == []


class FailingAfterwards(TaskiqMiddleware):
    """Raises when the message has left."""

    def post_send(self, message: TaskiqMessage) -> None:
        raise PermissionError


async def test_a_sending_that_nobody_ended_ends_before_the_next_one(
    telemetry: Telemetry,
) -> None:
    broker = QueueBroker().with_middlewares(
        telemetry.middleware(),
        FailingAfterwards(),
    )

    @broker.task(task_name="t")
    async def t() -> None: ...

    async def send_twice() -> None:
        for _ in range(2):
            with contextlib.suppress(PermissionError):
                await t.kiq()

    with telemetry.tracer.start_as_current_span("request"):
        await asyncio.wait([asyncio.create_task(send_twice())])
    first, second = telemetry.spans("send/t")
    request = telemetry.span("request")
    for span in (first, second):
        assert span.status.description == "The message could not be sent"
        assert is_child(span, request)


async def test_a_failed_sending_in_a_task_leaves_the_span_of_the_task_alone(
    telemetry: Telemetry,
) -> None:
    broker = AwayBroker().with_middlewares(telemetry.middleware())

    @broker.task(task_name="t")
    async def t() -> None:
        broker.is_away = True
        with contextlib.suppress(SendTaskError):
            await t.kiq()

    broker.is_away = False
    await t.kiq()
    await work(broker)
    _, failed = telemetry.spans("send/t")
    assert_not_sent(failed)
    execution = telemetry.span("execute/t")
    assert execution.status.status_code is StatusCode.UNSET
    assert is_child(failed, execution)


async def test_a_nested_sending_does_not_end_the_one_around_it(
    telemetry: Telemetry,
) -> None:
    class Auditing(TaskiqMiddleware):
        async def pre_send(self, message: TaskiqMessage) -> TaskiqMessage:
            if message.task_name == "t":
                await audit.kiq()
            return message

    broker = QueueBroker().with_middlewares(telemetry.middleware(), Auditing())

    @broker.task(task_name="t")
    async def t() -> None: ...

    @broker.task(task_name="audit")
    async def audit() -> None: ...

    await t.kiq()
    assert is_child(telemetry.span("send/audit"), telemetry.span("send/t"))
    assert telemetry.span("send/t").status.status_code is StatusCode.UNSET


async def test_a_cancelled_execution_ends_its_span_and_is_not_active_any_more(
    telemetry: Telemetry,
) -> None:
    broker = QueueBroker().with_middlewares(telemetry.middleware())
    is_running = asyncio.Event()

    @broker.task(task_name="t")
    async def t() -> None:
        is_running.set()
        await asyncio.Event().wait()

    await t.kiq()
    receiver = Receiver(broker, run_startup=False, max_async_tasks=1)
    listening = asyncio.create_task(receiver.listen(asyncio.Event()))
    await is_running.wait()
    assert telemetry.total("worker_active_tasks") == 1
    listening.cancel()
    await asyncio.wait([listening])
    span = telemetry.span("execute/t")
    assert span.status.status_code is StatusCode.ERROR
    assert span.status.description == "The execution did not come to its end"
    assert telemetry.total("worker_active_tasks") == 0


def test_a_result_without_an_open_span_is_a_warning(
    telemetry: Telemetry,
    caplog: pytest.LogCaptureFixture,
) -> None:
    middleware, error = telemetry.middleware(), ValueError()
    middleware.on_error(message_of(), result_of(error), error)
    middleware.post_execute(message_of(), result_of(error))
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("taskiq.opentelemetry", "WARNING")
    assert "task t with ID id" in record.getMessage()
    assert telemetry.total("task_errors") == 1
    assert telemetry.points("worker_active_tasks") == []


def test_a_sending_without_an_open_span_is_not_counted(
    telemetry: Telemetry,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("DEBUG", "taskiq.opentelemetry")
    telemetry.middleware().post_send(message_of())
    assert {record.levelname for record in caplog.records} == {"DEBUG"}
    assert telemetry.points("tasks_sent") == []


# -- Metrics ----------------------------------------------------------------------


async def test_tasks_are_counted_and_timed_by_name(telemetry: Telemetry) -> None:
    broker = QueueBroker().with_middlewares(telemetry.middleware())

    @broker.task(task_name="good")
    async def good() -> None: ...

    @broker.task(task_name="bad", retry_on_error=True)
    async def bad() -> None:
        raise ValueError

    for task in (good, good, bad):
        await task.kiq()
    await work(broker)
    assert telemetry.points("tasks_sent") == [
        ({"task_name": "good"}, 2),
        ({"task_name": "bad"}, 1),
    ]
    assert telemetry.points("task_success") == [({"task_name": "good"}, 2)]
    assert telemetry.points("task_errors") == [
        ({"task_name": "bad", "retry_error": True}, 1),
    ]
    for name in ("task_execution_time", "task_wait_time"):
        counts = {
            point["task_name"]: count for point, (count, _) in telemetry.points(name)
        }
        assert counts == {"good": 2, "bad": 1}
    assert {value for _, value in telemetry.points("worker_active_tasks")} == {0}


async def test_metrics_have_the_names_and_units_of_old(telemetry: Telemetry) -> None:
    broker = InMemoryBroker(await_inplace=True)
    broker.is_worker_process = True
    broker.add_middlewares(telemetry.middleware())

    @broker.task(task_name="t")
    async def t(is_good: bool) -> None:
        assert is_good

    await t.kiq(True)
    await t.kiq(False)
    assert {metric.name: metric.unit for metric in telemetry.metrics()} == {
        "tasks_sent": "1",
        "task_errors": "1",
        "task_success": "1",
        "task_execution_time": "s",
        "task_wait_time": "s",
        "worker_active_tasks": "1",
        "worker_cpu_utilization": "%",
        "worker_memory_utilization": "By",
    }


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ({"_taskiq_queue_time": 10.0}, [(1, 2.5)]),
        ({"_taskiq_queue_time": "10.0"}, [(1, 2.5)]),
        ({"_taskiq_queue_time": 20.0}, [(1, 0.0)]),
        ({"_taskiq_queue_time": "soon"}, []),
        ({"_taskiq_queue_time": [10.0]}, []),
        ({}, []),
    ],
)
def test_a_time_that_cannot_be_read_keeps_no_result_from_being_saved(
    telemetry: Telemetry,
    labels: dict[str, Any],
    expected: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(f"{module.__name__}.time.time", lambda: 12.5)
    middleware = telemetry.middleware()
    message = middleware.pre_execute(message_of(**labels))
    middleware.post_execute(message, result_of())
    assert [value for _, value in telemetry.points("task_wait_time")] == expected


async def test_a_retry_whose_time_labels_are_text_is_saved_and_acknowledged(
    telemetry: Telemetry,
) -> None:
    backend = RecordingBackend()
    broker = QueueBroker().with_middlewares(telemetry.middleware())

    @broker.task(task_name="t")
    async def t() -> int:
        return 1

    scheduled = t.kicker().with_labels(
        _taskiq_queue_time="1.5",
        _taskiq_broker_receive_time="2.5",
    )
    sent = await scheduled.kiq()
    await work(broker.with_result_backend(backend))
    assert backend.results[sent.task_id].return_value == 1
    assert broker.acked == [sent.task_id]
    ((count, _),) = [value for _, value in telemetry.points("task_wait_time")]
    assert count == 1


def test_gauges_report_only_for_a_worker_process(telemetry: Telemetry) -> None:
    middleware = telemetry.middleware()
    gauges = ("worker_cpu_utilization", "worker_memory_utilization")

    def reported() -> list[str]:
        return [name for name in gauges if telemetry.points(name)]

    broker = InMemoryBroker()
    assert reported() == []
    middleware.set_broker(broker)
    assert reported() == []
    broker.is_worker_process = True
    assert reported() == list(gauges)
    assert telemetry.total("worker_memory_utilization") > 0
    no_broker: Any = None
    middleware.set_broker(no_broker)
    assert reported() == []


def test_gauges_measure_the_process_they_report_from(telemetry: Telemetry) -> None:
    middleware, broker = telemetry.middleware(), InMemoryBroker()
    broker.is_worker_process = True
    middleware.set_broker(broker)
    middleware._process = psutil.Process(os.getppid())  # as in a forked child
    assert telemetry.total("worker_memory_utilization") > 0
    assert middleware._process.pid == os.getpid()


# -- Optional libraries -------------------------------------------------------------


@pytest.mark.parametrize("missing", ["opentelemetry.trace", "psutil"])
def test_a_missing_library_is_an_import_error_that_names_the_extra(
    missing: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, module.__name__)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=r"taskiq\[opentelemetry\]"):
        importlib.import_module(module.__name__)


def test_a_middleware_without_providers_uses_the_global_ones(
    monkeypatch: pytest.MonkeyPatch,
    telemetry: Telemetry,
) -> None:
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: telemetry.tracer_provider)
    assert isinstance(telemetry.tracer_provider, TracerProvider)
    middleware = OpenTelemetryMiddleware(meter_provider=telemetry.meter_provider)
    middleware.post_send(middleware.pre_send(message_of()))
    assert telemetry.span("send/t").end_time is not None


@pytest.mark.parametrize(
    ("keywords", "endings", "deliveries"),
    [
        (
            {"max_deliveries": 2, "on_failure": "requeue"},
            ["given_back", "dead_lettered"],
            [1, 2],
        ),
        ({}, ["acknowledged"], [None]),
        (
            {"retry_on_error": True, "max_retries": 2},
            ["sent_again", "acknowledged"],
            [None] * 2,
        ),
    ],
)
@pytest.mark.parametrize("is_batch", [False, True])
async def test_a_span_tells_how_its_message_ends(
    keywords: dict[str, Any],
    endings: list[str],
    deliveries: list[int | None],
    is_batch: bool,
    telemetry: Telemetry,
) -> None:
    middlewares = (SimpleRetryMiddleware(), telemetry.middleware())
    broker = InMemoryBroker().with_middlewares(*middlewares)

    async def failing(numbers: Any) -> None:
        raise ValueError(numbers)

    if is_batch:
        keywords = {**keywords, "batch": True, "batch_size": 1}
    task: Any = broker.register_task(failing, "t", **keywords)
    await task.kiq(1)
    await broker.wait_all()
    told = [
        dict(event.attributes or {})
        for span in telemetry.spans("execute/t")
        for event in span.events
        if event.name == "taskiq.ending"
    ]
    assert [each["taskiq.ending"] for each in told] == endings
    assert [each.get("taskiq.deliveries") for each in told] == deliveries


# -- What a message says of its trace ------------------------------------------------

#: What is no text, or none that anybody could encode.
MALFORMED: list[Any] = [5, None, True, 1.5, [1], ["a"], {"a": 1}, "\ud800"]


@pytest.mark.parametrize("malformed", MALFORMED, ids=repr)
@pytest.mark.parametrize("label", ["traceparent", "tracestate", "baggage", "other"])
async def test_what_is_malformed_of_a_trace_is_left_out(
    label: str, malformed: Any, telemetry: Telemetry
) -> None:
    """The message runs, in the trace that the rest says."""
    broker = QueueBroker().with_middlewares(telemetry.middleware())
    broker.result_backend = backend = RecordingBackend()

    @broker.task(task_name="t")
    async def t() -> None: ...

    parent = f"00-{'1' * 32}-{'2' * 16}-01"
    message = message_of(**{"traceparent": parent, label: malformed})
    await Receiver(broker).callback(broker.formatter.dumps(message).message)
    assert not backend.results["id"].is_err
    trace_id = context_of(telemetry.span("execute/t")).trace_id
    assert (trace_id == int("1" * 32, 16)) is (label != "traceparent")


async def test_a_propagator_that_raises_costs_no_message_its_run(
    telemetry: Telemetry,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(module, "extract", mock.Mock(side_effect=KeyError("key")))
    telemetry.middleware().pre_execute(message_of())
    assert "Cannot read the trace of a message from its labels" in caplog.text
