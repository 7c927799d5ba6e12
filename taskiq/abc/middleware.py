"""Hooks around sending and executing tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

    from taskiq.abc.broker import AsyncBroker
    from taskiq.batch import BatchInfo
    from taskiq.dead_letters.letter import DeadLetter
    from taskiq.message import TaskiqMessage
    from taskiq.policies import Ending
    from taskiq.result import TaskiqResult


class TaskiqMiddleware:
    """Base of middlewares; each hook does nothing and may be overridden sync or async.

    Hooks are looked up on the class, so a hook patched onto an instance is not called.
    """

    #: Set when the middleware is added to a broker.
    broker: AsyncBroker

    def __init__(self) -> None:
        self.broker = None  # type: ignore[assignment] # hooks only run once it is set

    def set_broker(self, broker: AsyncBroker) -> None:
        """Take the broker this middleware was added to.

        :param broker: the broker.
        """
        self.broker = broker

    def startup(self) -> Coroutine[Any, Any, None] | None:
        """Prepare the middleware, when the broker starts."""

    def shutdown(self) -> Coroutine[Any, Any, None] | None:
        """Release what the middleware holds, when the broker shuts down."""

    def pre_send(
        self,
        message: TaskiqMessage,
    ) -> TaskiqMessage | Coroutine[Any, Any, TaskiqMessage]:
        """See a message before the client sends it.

        :param message: the message.
        :returns: the message to send: this one, changed or not, or another.
        """
        return message

    def post_send(self, message: TaskiqMessage) -> Coroutine[Any, Any, None] | None:
        """See a message after the client sent it.

        :param message: the message as it was sent.
        """

    def on_send_error(
        self,
        message: TaskiqMessage,
        exception: BaseException,
    ) -> Coroutine[Any, Any, None] | None:
        """See a message that was not sent; `post_send` is not called for it.

        :param message: the message, as the last `pre_send` hook that succeeded made it.
        :param exception: what `kiq` raises; its cause says why. With
            `asyncio.CancelledError` the message may have left all the same.
        """

    def pre_execute(
        self,
        message: TaskiqMessage,
    ) -> TaskiqMessage | Coroutine[Any, Any, TaskiqMessage]:
        """See a message before the worker executes its task.

        :param message: the message with parsed labels.
        :returns: the message to execute: this one, changed or not, or another.
        """
        return message

    def post_execute(
        self,
        message: TaskiqMessage,
        result: TaskiqResult[Any],
    ) -> Coroutine[Any, Any, None] | None:
        """See a result before it is stored.

        :param message: the executed message.
        :param result: its result, which may be changed.
        """

    def post_save(
        self,
        message: TaskiqMessage,
        result: TaskiqResult[Any],
    ) -> Coroutine[Any, Any, None] | None:
        """See a result after it was stored; not called if it was not.

        :param message: the executed message.
        :param result: its result.
        """

    def on_error(
        self,
        message: TaskiqMessage,
        result: TaskiqResult[Any],
        exception: BaseException,
    ) -> Coroutine[Any, Any, None] | None:
        """See the error of a failed task, before `post_execute`.

        :param message: the executed message.
        :param result: its result, which may be changed.
        :param exception: what went wrong.
        """

    def on_ending(
        self,
        message: TaskiqMessage | None,
        ending: Ending,
    ) -> Coroutine[Any, Any, None] | None:
        """See what becomes of a message that failed, before `post_execute`.

        :param message: the message; `None` if it cannot be read.
        :param ending: what becomes of it, and why.
        """

    def on_dead_letter(self, letter: DeadLetter) -> Coroutine[Any, Any, None] | None:
        """See a dead letter, after it is in the dead queue if the broker has one.

        :param letter: the original bytes, and why they are dead.
        """

    def on_batch_start(self, batch: BatchInfo) -> Coroutine[Any, Any, None] | None:
        """See a batch before the worker calls the task's function with it.

        :param batch: what is called, with which messages and why now.
        """

    def on_batch_end(
        self,
        batch: BatchInfo,
        results: Sequence[TaskiqResult[Any]],
    ) -> Coroutine[Any, Any, None] | None:
        """See the results of a batch.

        :param batch: the same as in `on_batch_start`.
        :param results: one result per message, in the order of `batch.messages`.
        """
