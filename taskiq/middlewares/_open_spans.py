"""Spans that are open: what makes them current, and what ends each of them once.

No hook is called for a message whose execution is cancelled, or whose sending ends in a
`post_send` hook of somebody else. So an open span watches the asyncio task that opened
it, and ends with it at the latest.
"""

from __future__ import annotations

import asyncio
import time
import weakref
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import Status, StatusCode

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from opentelemetry.context import Context
    from opentelemetry.trace import Span

    from taskiq.message import TaskiqMessage

#: Where a context keeps the innermost open span of a message, and the open batch.
_INNERMOST: Final = otel_context.create_key("taskiq-open-span")
_BATCH: Final = otel_context.create_key("taskiq-open-batch")


class OpenSpan:
    """An open span of one message. As a context manager it makes the span current.

    :param base: the context the span is made current on top of.
    :param on_lost: called when the asyncio task that made the span current has ended
        before the span.
    :param is_publish: whether it is the span of the client.
    :param token: of what was attached before the span, to be detached after it.
    :ivar context: `base` with the span in it.
    :ivar retries: the count of retries when the span was opened.
    :ivar failure: an error that somebody may yet retry.
    :ivar is_buffered: whether the message waits for its batch.
    :ivar batch: the batch its message is in.
    :ivar outer: the open span that was current before.
    :ivar owner: the asyncio task that made it current.
    """

    __slots__ = (
        "_message",
        "_on_lost",
        "_own_token",
        "batch",
        "context",
        "failure",
        "is_buffered",
        "is_ended",
        "is_publish",
        "outer",
        "owner",
        "retries",
        "span",
        "task_id",
        "task_name",
        "token",
    )

    def __init__(
        self,
        span: Span,
        base: Context,
        message: TaskiqMessage,
        on_lost: Callable[[OpenSpan], None],
        *,
        is_publish: bool = False,
        token: Any = None,
    ) -> None:
        self.span = span
        self.context = trace.set_span_in_context(span, base)
        self.task_id = message.task_id
        self.task_name = message.task_name
        self.is_publish = is_publish
        self.retries = message.labels.get("_retries")
        self.failure: BaseException | None = None
        self.is_buffered = False
        self.batch: OpenBatch | None = None
        self.is_ended = False
        self.outer: OpenSpan | None = None
        self.owner: asyncio.Task[Any] | None = None
        self.token = token
        self._message = weakref.ref(message)
        self._on_lost = on_lost
        self._own_token: Any = None

    def __enter__(self) -> Span:
        self.outer = _innermost(self.context)
        self.owner = _current_task()
        if self.owner is not None:
            self.owner.add_done_callback(self._owner_ended)
        self._own_token = otel_context.attach(
            otel_context.set_value(_INNERMOST, self, self.context),
        )
        return self.span

    def __exit__(self, *exc_info: object) -> None:
        if self._own_token is not None:
            otel_context.detach(self._own_token)
        self._end()

    def abandon(self, why: str) -> None:
        """End the span as failed, wherever this is called."""
        self.span.set_status(Status(StatusCode.ERROR, why))
        self._end()

    def _end(self) -> None:
        if self.is_ended:
            return
        self.is_ended = True
        if self.owner is not None:
            self.owner.remove_done_callback(self._owner_ended)
        if self.batch is not None:
            self.batch.one_ended()
        self.span.end()

    def _owner_ended(self, owner: asyncio.Task[Any]) -> None:
        del owner
        self._on_lost(self)

    @property
    def is_failed_sending(self) -> bool:
        """Whether its message was given up: its sending is what keeps it alive."""
        return self.is_publish and self._message() is None


def find_open_span(task_id: str, *, is_publish: bool) -> OpenSpan | None:
    """Find the open span of a message that the running asyncio task has made current.

    It is found as well when another object has taken the place of the message.
    """
    owner = _current_task()
    span = _innermost(otel_context.get_current())
    while span is not None:
        is_asked_for = span.task_id == task_id and span.is_publish is is_publish
        if is_asked_for and span.owner is owner and not span.is_ended:
            return span
        span = span.outer
    return None


def leave_failed_sendings() -> None:
    """Leave the spans of sendings that have failed in the running asyncio task.

    Until then they are current, and what follows would become a part of them.
    """
    owner = _current_task()
    while (span := _innermost(otel_context.get_current())) is not None:
        if span.is_ended or span.owner is not owner or not span.is_failed_sending:
            return
        span.abandon("The message could not be sent")
        span.__exit__(None, None, None)


class OpenBatch:
    """The open span of a batch call.

    :param members: the open spans of its messages.
    :param on_lost: called for each of them that is still open when the asyncio task
        that entered the batch, and settles it, has ended.
    """

    __slots__ = (
        "_is_ended",
        "_on_lost",
        "_open",
        "_owner",
        "_started",
        "_token",
        "batch_id",
        "members",
        "span",
    )

    def __init__(
        self,
        batch_id: str,
        span: Span,
        members: Sequence[OpenSpan],
        on_lost: Callable[[OpenSpan], None],
    ) -> None:
        self.batch_id = batch_id
        self.span = span
        self.members = members
        self._on_lost = on_lost
        self._is_ended = False
        self._open = 1 + len(members)
        self._owner: asyncio.Task[Any] | None = None
        self._started = 0.0
        self._token: Any = None

    def enter(self) -> None:
        """Make the span current, apart from what happens to be current now."""
        context = trace.set_span_in_context(self.span, otel_context.Context())
        self._token = otel_context.attach(
            otel_context.set_value(_BATCH, self, context),
        )
        self._owner = _current_task()
        if self._owner is not None:
            self._owner.add_done_callback(self._owner_ended)
        for member in self.members:
            member.batch = self
        self._started = time.perf_counter()

    def leave(self) -> float:
        """End the span, and make current what was before it.

        :returns: the seconds since it was entered.
        """
        seconds = time.perf_counter() - self._started
        otel_context.detach(self._token)
        self._is_ended = True
        self.one_ended()
        self.span.end()
        return seconds

    def one_ended(self) -> None:
        """Count its spans down: there is nothing to watch for after the last one."""
        self._open -= 1
        if self._open == 0 and self._owner is not None:
            self._owner.remove_done_callback(self._owner_ended)

    def _owner_ended(self, owner: asyncio.Task[Any]) -> None:
        del owner
        if not self._is_ended:
            self.span.set_status(Status(StatusCode.ERROR, "The call was cancelled"))
            self.span.end()
        for member in self.members:
            if not member.is_ended:
                self._on_lost(member)


def current_batch(batch_id: str) -> OpenBatch | None:
    """Give the open batch, if the running asyncio task makes its call."""
    batch = otel_context.get_value(_BATCH)
    if isinstance(batch, OpenBatch) and batch.batch_id == batch_id:
        return batch
    return None


def _innermost(context: Context) -> OpenSpan | None:
    span = otel_context.get_value(_INNERMOST, context)
    return span if isinstance(span, OpenSpan) else None


def _current_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:  # no event loop runs
        return None
