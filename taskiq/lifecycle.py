"""Starting a broker, and opening its connections again without starting it twice.

A broker's own `startup` does two things: it opens connections and declares what it
reads from, and it calls the base's `startup`, which runs the application's handlers,
middlewares and result backend. After an outage the first is needed again, the second
would be wrong: hooks of the application run once. So while a broker is *reconnected*
the base does nothing that it has done already, and the broker's own `shutdown` and
`startup` do the rest, whatever they are.
"""

from __future__ import annotations

import asyncio
import itertools
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol

from taskiq.outage import Outage
from taskiq.utils import maybe_awaitable

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator, Iterable

# Not an attribute of the broker: the application may shut it down at the same time,
# and that has to be done. Not of one broker: it may start others.
_is_reconnecting: ContextVar[bool] = ContextVar("is_reconnecting", default=False)


class Service(Protocol):
    """What is started with a broker and stopped with it: its result backend."""

    async def startup(self) -> None:
        """Open connections."""

    async def shutdown(self) -> None:
        """Close them."""


class Lifecycle:
    """How far the start of a broker has come, its connections apart.

    :ivar is_started: whether `startup` came to its end, and no `shutdown` began since.
    :ivar hook_error: what a handler or a middleware raised in the latest `startup`.
    :ivar outage: what is known of a server that is away.
    """

    def __init__(self) -> None:
        self.outage = Outage()
        self.is_started = False
        self.hook_error: Exception | None = None
        self._done = 0

    async def start(
        self,
        hooks: Iterable[Callable[[], Any]],
        results: Callable[[], Service],
    ) -> None:
        """Run the application's hooks, then start the result backend.

        What a reconnection finds done is not done again.
        """
        if not _is_reconnecting.get():
            self._forget()
        if self.is_started:
            return
        self.hook_error = None
        for hook in itertools.islice(hooks, self._done, None):
            try:
                await maybe_awaitable(hook())
            except Exception as exc:
                self.hook_error = exc
                raise
            self._done += 1
        await results().startup()
        self.is_started = True

    async def stop(
        self,
        hooks: Iterable[Callable[[], Any]],
        results: Callable[[], Service],
    ) -> None:
        """Run the application's hooks, then stop the result backend.

        Nothing is done in a reconnection.
        """
        if _is_reconnecting.get():
            return
        self._forget()
        for hook in hooks:
            await maybe_awaitable(hook())
        await results().shutdown()

    def _forget(self) -> None:
        self.is_started = False
        self._done = 0


@contextmanager
def reconnecting() -> Generator[None, None, None]:
    """Let `startup` and `shutdown` of brokers do no more than connect and close."""
    token = _is_reconnecting.set(True)
    try:
        yield
    finally:
        _is_reconnecting.reset(token)


async def ended_within(
    seconds: float,
    work: Coroutine[Any, Any, Any],
) -> asyncio.Future[Any] | None:
    """Wait for `work`, and no longer than this.

    :returns: what came of it, to be asked; `None` if it was given up and cancelled.
    """
    # Not `wait_for`: it waits on for a coroutine that does not let itself be cancelled.
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task}, timeout=seconds)
        return task if task.done() else None
    finally:
        task.cancel()
