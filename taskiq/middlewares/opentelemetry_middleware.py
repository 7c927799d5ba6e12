"""Traces and metrics with OpenTelemetry: of sendings, executions and batches.

A message has two spans in one trace, ``send/<task>`` at its client and
``execute/<task>`` at its worker. A batch has a span of its own, ``batch/<task>``. It
belongs to none of its messages more than to the others, so it begins a trace of its own
and is linked with the execution of each, in both directions.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

from taskiq.abc.middleware import TaskiqMiddleware
from taskiq.batch import BatchConfig
from taskiq.chunks import INDEX_LABEL, sent_id
from taskiq.exceptions import NoResultError
from taskiq.middlewares._retry import RetryMiddleware, attempt_of, is_enabled

try:
    import psutil  # type: ignore[import-untyped] # it comes without type hints
    from opentelemetry import context as otel_context
    from opentelemetry.context import Context
    from opentelemetry.metrics import Observation, get_meter
    from opentelemetry.propagate import extract, inject
    from opentelemetry.trace import Link, SpanKind, Status, StatusCode, get_tracer
except ImportError as exc:
    raise ImportError(
        "OpenTelemetryMiddleware needs opentelemetry and psutil, "
        "use: pip install taskiq[opentelemetry]",
    ) from exc

from taskiq.middlewares._open_spans import (
    OpenBatch,
    OpenSpan,
    current_batch,
    find_open_span,
    leave_failed_sendings,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider
    from opentelemetry.trace import Span, Tracer, TracerProvider

    from taskiq.batch import BatchInfo
    from taskiq.message import TaskiqMessage
    from taskiq.policies import Ending
    from taskiq.result import TaskiqResult

    _Stored: TypeAlias = tuple[Span, AbstractContextManager[Span], Any]

logger = logging.getLogger("taskiq.opentelemetry")

#: The attribute of a message that keeps its open spans.
CTX_KEY = "__otel_task_span"

#: Labels that become attributes of spans.
TASKIQ_CONTEXT_ATTRIBUTES = [
    "_retries",
    "delay",
    "max_retries",
    "retry_on_error",
    "timeout",
    "X-Taskiq-requeue",
]

_SCHEMA_URL: Final = "https://opentelemetry.io/schemas/1.11.0"

_QUEUE_TIME_LABEL: Final = "_taskiq_queue_time"
_RECEIVE_TIME_LABEL: Final = "_taskiq_broker_receive_time"

#: Boundaries of histograms of seconds, as the semantic conventions for messaging
#: advise: the default ones suit milliseconds.
_SECONDS: Final = (
    *(0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0),
)


def set_attributes_from_context(span: Span, context: dict[str, Any]) -> None:
    """Copy the labels named in `TASKIQ_CONTEXT_ATTRIBUTES` to a span.

    :param context: the labels of a message.
    """
    if not span.is_recording():
        return
    for name in TASKIQ_CONTEXT_ATTRIBUTES:
        value = context.get(name)
        is_first_run = name == "_retries" and value == "0"
        if value is not None and not is_first_run:
            span.set_attribute(f"taskiq.{name}", value)


def _extracted(labels: Mapping[str, Any]) -> Context:
    """Read the trace that a message came with; what is malformed is left out.

    Labels may be anything, and propagators take what they are given for text.
    """
    carrier = {name: each for name, each in labels.items() if _is_text(each)}
    try:
        return extract(carrier)
    except Exception as exc:  # noqa: BLE001 - of a propagator, which anybody may write
        logger.warning("Cannot read the trace of a message from its labels: %r", exc)
        return Context()


def _is_text(value: object) -> bool:
    """Whether it is a text without lone surrogates."""
    if not isinstance(value, str):
        return False
    return value.isascii() or value == value.encode(errors="ignore").decode()


def attach_context(
    message: TaskiqMessage | None,
    span: Span,
    activation: AbstractContextManager[Span],
    token: object | None,
    is_publish: bool = False,
) -> None:
    """Keep an open span with its message.

    :param message: `None` keeps it nowhere.
    :param activation: ends the span when it is left.
    :param token: what was attached for the span, to be detached after it.
    :param is_publish: whether it is the span of the client.
    """
    if message is None:
        return
    spans = _spans_of(message)
    if spans is None:
        spans = _SpansOfMessage()
        # The message forbids attributes that it does not declare.
        object.__setattr__(message, CTX_KEY, spans)
    spans[message.task_id, is_publish] = (span, activation, token)


def detach_context(message: TaskiqMessage, is_publish: bool = False) -> None:
    """Forget what `attach_context` keeps with a message, if there is something."""
    spans = _spans_of(message)
    if spans is not None:
        spans.pop((message.task_id, is_publish), None)


def retrieve_context(
    message: TaskiqMessage,
    is_publish: bool = False,
) -> _Stored | None:
    """Give what `attach_context` keeps with a message.

    :returns: span, activation and token; `None` when there is no open span.
    """
    spans = _spans_of(message)
    return None if spans is None else spans.get((message.task_id, is_publish))


def _spans_of(message: TaskiqMessage) -> dict[tuple[str, bool], _Stored] | None:
    spans = getattr(message, CTX_KEY, None)
    if isinstance(spans, dict):
        return cast("dict[tuple[str, bool], _Stored]", spans)
    return None


class _SpansOfMessage(dict[tuple[str, bool], "_Stored"]):
    """Is left behind when its message is copied or pickled: open spans cannot be."""

    def __reduce__(self) -> tuple[type[_SpansOfMessage], tuple[()]]:
        return _SpansOfMessage, ()


class OpenTelemetryMiddleware(TaskiqMiddleware):
    """Traces tasks across clients and workers, and counts and times them.

    :param tracer_provider: where spans go, the global one by default.
    :param meter_provider: where metrics go, the global one by default.
    :param tracer: used instead of one of `tracer_provider`.
    :param meter: used instead of one of `meter_provider`.
    """

    def __init__(
        self,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        tracer: Tracer | None = None,
        meter: Meter | None = None,
    ) -> None:
        super().__init__()
        ours = version("taskiq")
        self._tracer = tracer or get_tracer(
            __name__,
            ours,
            tracer_provider,
            _SCHEMA_URL,
        )
        meter = meter or get_meter(__name__, ours, meter_provider, _SCHEMA_URL)
        self._count_tasks(meter)
        self._measure_process(meter)
        self._measure_batches(meter)
        self._process = psutil.Process()
        # Executions of batch tasks: their hooks run in asyncio tasks of their own, so
        # no context leads from one to the other.
        self._members: dict[tuple[str, str], OpenSpan] = {}

    def _count_tasks(self, meter: Meter) -> None:
        """Create what says how tasks fare."""
        count = partial(meter.create_counter, unit="1")
        time = partial(meter.create_histogram, unit="s")
        self.n_tasks_sent_counter = count("tasks_sent", description="Tasks sent")
        self.n_errors_counter = count(
            "task_errors", description="Executions that failed"
        )
        self.n_success_counter = count(
            "task_success", description="Executions that succeeded"
        )
        self.execution_time_hist = time(
            "task_execution_time", description="How long the function of a task ran"
        )
        self.task_wait_time = time(
            "task_wait_time",
            description="Time from the sending of a task to its reception",
        )
        self.number_of_broker_active_tasks = meter.create_up_down_counter(
            "worker_active_tasks",
            unit="1",
            description="Tasks received and not yet executed",
        )

    def _measure_process(self, meter: Meter) -> None:
        """Create what says what the worker process takes."""
        gauge = meter.create_observable_gauge
        self.worker_cpu_utilization = gauge(
            "worker_cpu_utilization",
            callbacks=[self._observe_cpu],
            unit="%",
            description="Processor time used by the worker process",
        )
        self.worker_memory_utilization = gauge(
            "worker_memory_utilization",
            callbacks=[self._observe_memory],
            unit="By",
            description="Resident memory of the worker process",
        )

    def _measure_batches(self, meter: Meter) -> None:
        """Create what says how batches fare."""
        count = partial(meter.create_counter, unit="1")
        time = partial(
            meter.create_histogram,
            unit="s",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )
        self.batch_size = meter.create_histogram(
            "taskiq_batch_size", unit="1", description="Messages in one batch"
        )
        self.batch_wait_time = time(
            "taskiq_batch_wait",
            description="How long the first message of a batch waited for its call",
        )
        self.batch_run_time = time(
            "taskiq_batch_run",
            description="Time from the start of a batch to its results",
        )
        self.batch_flushes = count(
            "taskiq_batch_flushes", description="Batches by the reason they left for"
        )
        self.batch_buffered = meter.create_up_down_counter(
            "taskiq_batch_buffered",
            unit="1",
            description="Messages received that wait for their batch to start",
        )
        self.batch_isolation_calls = count(
            "taskiq_batch_isolation_calls",
            description=(
                "Calls beyond the first that it took to find what failed a batch"
            ),
        )
        self.batch_open_groups = meter.create_observable_gauge(
            "taskiq_batch_open_groups",
            callbacks=[self._observe_open_groups],
            unit="1",
            description="Batches that take more messages",
        )

    # -- Sending ------------------------------------------------------------------

    def pre_send(self, message: TaskiqMessage) -> TaskiqMessage:
        """Open the span of a sending, and tell the worker about it in the labels.

        :returns: the message.
        """
        logger.debug("pre_send task_id=%s", message.task_id)
        leave_failed_sendings()
        # A member that is retried goes on in its own trace, not in that of its batch.
        retried = self._members.get(_key(message))
        base = otel_context.get_current() if retried is None else retried.context
        span = self._tracer.start_span(
            f"send/{message.task_name}",
            context=base,
            kind=SpanKind.PRODUCER,
        )
        if span.is_recording():
            span.set_attribute("taskiq.action", "send")
            span.set_attribute("messaging.message.id", message.task_id)
            span.set_attribute("taskiq.task_name", message.task_name)
            set_attributes_from_context(span, message.labels)
        activation = OpenSpan(span, base, message, _lose_sending, is_publish=True)
        activation.__enter__()
        attach_context(message, span, activation, None, is_publish=True)
        inject(message.labels)
        message.labels[_QUEUE_TIME_LABEL] = time.time()
        return message

    def post_send(self, message: TaskiqMessage) -> None:
        """End the span of a sending."""
        logger.debug("post_send task_id=%s", message.task_id)
        stored = self._stored(message, is_publish=True)
        if stored is None:
            logger.debug("No open span for the sending of %s.", message.task_id)
            return
        self.n_tasks_sent_counter.add(1, {"task_name": message.task_name})
        _, activation, _ = stored
        activation.__exit__(None, None, None)
        detach_context(message, is_publish=True)

    def on_send_error(self, message: TaskiqMessage, exception: BaseException) -> None:
        """End the span of a sending that failed, with its error."""
        stored = self._stored(message, is_publish=True)
        if stored is None:
            return
        span, activation, _ = stored
        # What a `SendTaskError` says is less than what it was raised from.
        _record_failure(span, exception.__cause__ or exception, is_retried=False)
        activation.__exit__(None, None, None)
        detach_context(message, is_publish=True)

    # -- Executing ----------------------------------------------------------------

    def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
        """Open the span of an execution, in the trace of the sending.

        It is current while a plain task runs. While a batch runs, the span of the
        batch is.

        :returns: the message.
        """
        logger.debug("pre_execute task_id=%s", message.task_id)
        message.labels[_RECEIVE_TIME_LABEL] = time.time()
        is_member = self._is_for_batch(message)
        extracted = _extracted(message.labels)
        token = None
        if extracted and not is_member:
            token = otel_context.attach(extracted)
        base = extracted or otel_context.get_current()
        span = self._tracer.start_span(
            f"execute/{message.task_name}",
            context=base,
            kind=SpanKind.CONSUMER,
        )
        activation = OpenSpan(span, base, message, self._lose_execution, token=token)
        if is_member:
            self._members[_key(message)] = activation
            activation.is_buffered = True
            self.batch_buffered.add(1, {"task_name": message.task_name})
        else:
            activation.__enter__()
        attach_context(message, span, activation, token)
        self.number_of_broker_active_tasks.add(1, {"task_name": message.task_name})
        return message

    def on_error(
        self,
        message: TaskiqMessage,
        result: TaskiqResult[Any],
        exception: BaseException,
    ) -> None:
        """Tell the span of an execution what went wrong."""
        del result
        stored = self._stored(message)
        if stored is None:
            return
        span, activation, _ = stored
        if not span.is_recording():
            return
        if self._retry_middlewares and isinstance(activation, OpenSpan):
            # Whether it is retried shows when the hooks of all middlewares have run.
            activation.failure = exception
        else:
            _record_failure(span, exception, is_retried=_may_be_retried(message))

    def on_ending(self, message: TaskiqMessage | None, ending: Ending) -> None:
        """Tell the span of an execution what becomes of its message, which failed."""
        stored = None if message is None else self._stored(message)
        if stored is None:
            return
        told: dict[str, str | int] = {
            "taskiq.ending": ending.action.value,
            "taskiq.reason": ending.reason.value,
        }
        if ending.deliveries is not None:
            told["taskiq.deliveries"] = ending.deliveries
        stored[0].add_event("taskiq.ending", attributes=told)

    def post_execute(self, message: TaskiqMessage, result: TaskiqResult[Any]) -> None:
        """End the span of an execution, and count and time it."""
        logger.debug("post_execute task_id=%s", message.task_id)
        self._measure(message, result)
        stored = self._stored(message)
        if stored is None:
            logger.warning(
                "No open span for the execution of task %s with ID %s.",
                message.task_name,
                message.task_id,
            )
            return
        span, activation, token = stored
        if isinstance(activation, OpenSpan):
            if activation.is_ended:
                return
            if activation.failure is not None:
                is_retried = self._is_retried(activation, message, result)
                _record_failure(span, activation.failure, is_retried=is_retried)
            self._forget_member(activation)
        if span.is_recording():
            span.set_attribute("taskiq.action", "execute")
            set_attributes_from_context(span, message.labels)
            span.set_attribute("taskiq.task_name", message.task_name)
        self.number_of_broker_active_tasks.add(-1, {"task_name": message.task_name})
        activation.__exit__(None, None, None)
        detach_context(message)
        if token is not None:
            otel_context.detach(token)

    def _measure(self, message: TaskiqMessage, result: TaskiqResult[Any]) -> None:
        labels = message.labels
        attributes = {"task_name": message.task_name}
        if result.is_err:
            is_retry = is_enabled(labels, default=False)
            self.n_errors_counter.add(1, {**attributes, "retry_error": is_retry})
        else:
            self.n_success_counter.add(1, attributes)
        self.execution_time_hist.record(result.execution_time, attributes)
        queued_at = _as_seconds(labels.get(_QUEUE_TIME_LABEL))
        received_at = _as_seconds(labels.get(_RECEIVE_TIME_LABEL))
        if queued_at is not None and received_at is not None:
            # Two machines may disagree about the time.
            self.task_wait_time.record(max(received_at - queued_at, 0.0), attributes)

    def _stored(
        self,
        message: TaskiqMessage,
        *,
        is_publish: bool = False,
    ) -> _Stored | None:
        """Find the open span of a message, also of one that took its place."""
        stored = retrieve_context(message, is_publish=is_publish)
        if stored is not None:
            return stored
        found = find_open_span(sent_id(message), is_publish=is_publish)
        if found is None and not is_publish:
            found = self._members.get(_key(message))
        return None if found is None else (found.span, found, found.token)

    def _lose_execution(self, execution: OpenSpan) -> None:
        """End the span of an execution that no hook will be called for any more."""
        self._forget_member(execution)
        self.number_of_broker_active_tasks.add(-1, {"task_name": execution.task_name})
        execution.abandon("The execution did not come to its end")

    # -- Retries ------------------------------------------------------------------

    @property
    def _retry_middlewares(self) -> list[RetryMiddleware]:
        broker: Any = self.broker
        if broker is None:
            return []
        return [
            each for each in broker.middlewares if isinstance(each, RetryMiddleware)
        ]

    def _is_retried(
        self,
        execution: OpenSpan,
        message: TaskiqMessage,
        result: TaskiqResult[Any],
    ) -> bool:
        """Whether a failed message was sent again, after all `on_error` hooks."""
        if isinstance(result.error, NoResultError):
            return not isinstance(execution.failure, NoResultError)
        # Without a trace in the result there is still the count in the labels.
        is_counted = message.labels.get("_retries") != execution.retries
        return is_counted and not all(
            middleware.no_result_on_retry for middleware in self._retry_middlewares
        )

    # -- Batches ------------------------------------------------------------------

    def on_batch_start(self, batch: BatchInfo) -> None:
        """Open the span of a batch call, current in the function of the task."""
        members = self._open_members(batch.messages)
        size = len(batch.messages)
        span = self._tracer.start_span(
            f"batch/{batch.task_name}",
            context=otel_context.Context(),
            kind=SpanKind.CONSUMER,
            attributes={
                "taskiq.action": "batch",
                "taskiq.task_name": batch.task_name,
                "taskiq.batch.id": batch.batch_id,
                "taskiq.batch.size": size,
                "taskiq.batch.flush_reason": batch.flush_reason.value,
                "taskiq.batch.waited": batch.waited,
                "messaging.batch.message_count": size,
            },
            links=[_link_to(member) for member in members],
        )
        for member in members:
            member.span.set_attribute("taskiq.batch.id", batch.batch_id)
            member.span.add_link(span.get_span_context())
            self._leave_buffer(member)
        # A chunk is not over with the batches that its items are in.
        alone = [each for each in batch.messages if INDEX_LABEL not in each.labels]
        if len(alone) < size:
            members = self._open_members(alone)
        OpenBatch(batch.batch_id, span, members, self._lose_execution).enter()
        attributes = {"task_name": batch.task_name}
        self.batch_size.record(size, attributes)
        self.batch_wait_time.record(batch.waited, attributes)
        self.batch_flushes.add(1, {**attributes, "reason": batch.flush_reason.value})

    def on_batch_end(
        self,
        batch: BatchInfo,
        results: Sequence[TaskiqResult[Any]],
    ) -> None:
        """End the span of a batch call. It failed if all of its messages did."""
        opened = current_batch(batch.batch_id)
        if opened is None:
            return
        errors = [
            result.error
            for result in results
            if result.error is not None and not isinstance(result.error, NoResultError)
        ]
        opened.span.set_attribute("taskiq.batch.failed", len(errors))
        if len(errors) == len(results):
            _record_failure(opened.span, errors[0], is_retried=False)
        attributes = {"task_name": batch.task_name}
        if batch.isolation_calls:
            opened.span.set_attribute(
                "taskiq.batch.isolation_calls",
                batch.isolation_calls,
            )
            self.batch_isolation_calls.add(batch.isolation_calls, attributes)
        seconds = opened.leave()
        self.batch_run_time.record(seconds, attributes)

    def shutdown(self) -> None:
        """End the spans of messages that were left for redelivery in a buffer."""
        for member in list(self._members.values()):
            self._lose_execution(member)

    def retire(self) -> None:
        """End what is open and fall silent: no hook will be called any more."""
        self.shutdown()
        # The gauges cannot be unregistered. Without a broker they report nothing.
        self.broker = None  # type: ignore[assignment] # as before `set_broker`

    def _open_members(self, messages: Sequence[TaskiqMessage]) -> list[OpenSpan]:
        stored = [self._stored(message) for message in messages]
        activations = [each[1] for each in stored if each is not None]
        # Items of one chunk share its span.
        members = {
            id(each): each
            for each in activations
            if isinstance(each, OpenSpan) and not each.is_ended
        }
        return list(members.values())

    def _is_for_batch(self, message: TaskiqMessage) -> bool:
        broker: Any = self.broker
        task = None if broker is None else broker.find_task(message.task_name)
        return self._has_batches(task)

    @staticmethod
    def _has_batches(task: Any) -> bool:
        return isinstance(getattr(task, "batch", None), BatchConfig)

    def _leave_buffer(self, member: OpenSpan) -> None:
        if member.is_buffered:
            member.is_buffered = False
            self.batch_buffered.add(-1, {"task_name": member.task_name})

    def _forget_member(self, execution: OpenSpan) -> None:
        self._leave_buffer(execution)
        key = (execution.task_name, execution.task_id)
        if self._members.get(key) is execution:
            del self._members[key]

    # -- What is looked at when metrics are collected -------------------------------

    def _observe_cpu(self, options: CallbackOptions) -> Iterator[Observation]:
        del options
        if self._is_in_worker:
            yield Observation(self._own_process().cpu_percent())

    def _observe_memory(self, options: CallbackOptions) -> Iterator[Observation]:
        del options
        if self._is_in_worker:
            yield Observation(self._own_process().memory_info().rss)

    def _observe_open_groups(self, options: CallbackOptions) -> Iterator[Observation]:
        del options
        broker: Any = self.broker
        if broker is None or broker.batch_statistics is None:
            return  # nothing is received here
        if any(self._has_batches(task) for task in broker.get_all_tasks().values()):
            yield Observation(broker.batch_statistics().open_groups)

    @property
    def _is_in_worker(self) -> bool:
        broker: Any = self.broker
        return broker is not None and broker.is_worker_process

    def _own_process(self) -> psutil.Process:
        if self._process.pid != os.getpid():  # forked since
            self._process = psutil.Process()
        return self._process


def _key(message: TaskiqMessage) -> tuple[str, str]:
    return message.task_name, sent_id(message)


def _link_to(member: OpenSpan) -> Link:
    return Link(
        member.span.get_span_context(),
        attributes={"messaging.message.id": member.task_id},
    )


def _lose_sending(sending: OpenSpan) -> None:
    sending.abandon("The message could not be sent")


def _record_failure(span: Span, error: BaseException, *, is_retried: bool) -> None:
    if is_retried:
        span.set_attribute("taskiq.retry.reason", str(error))
    else:
        span.record_exception(error)
        span.set_status(Status(StatusCode.ERROR, str(error)))


def _may_be_retried(message: TaskiqMessage) -> bool:
    """Whether a failed message asks for one more run, going by its labels alone."""
    labels = message.labels
    if not is_enabled(labels, default=False):
        return False
    try:
        return attempt_of(labels, default_limit=sys.maxsize).may_retry
    except ValueError:  # whoever retries cannot read them either
        return False


def _as_seconds(label: Any) -> float | None:
    """Read a time out of a label. A retry that was scheduled has it as text."""
    try:
        return None if label is None else float(label)
    except (TypeError, ValueError):
        return None
