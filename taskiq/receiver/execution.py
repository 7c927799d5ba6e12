"""Calling the task function: the only place that runs a user's code for a message."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import logging
import sys
import time
from typing import TYPE_CHECKING, Any

import anyio

from taskiq.callables import is_coroutine_function
from taskiq.chunks import sent_id
from taskiq.context import BatchContext, Context
from taskiq.mistakes import with_public_names
from taskiq.outcome import Failed, Outcome, Succeeded
from taskiq.receiver.by_id import ById
from taskiq.receiver.containment import Steps, contain, first_step, take_own_cancel
from taskiq.receiver.diagnosis import describe
from taskiq.receiver.failures import log_failure
from taskiq.receiver.placing import read_timeout
from taskiq.receiver.tasks import known_cancels
from taskiq.state import TaskiqState

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable
    from concurrent.futures import Executor

    from taskiq_dependencies.ctx import AsyncResolveContext

    from taskiq.abc.broker import AsyncBroker
    from taskiq.receiver.params_parser import ParameterCasts
    from taskiq.receiver.prepared import PreparedTask

logger = logging.getLogger("taskiq.receiver.receiver")


def is_process_pool(executor: Executor | None) -> bool:
    """Tell whether an executor runs functions in processes of its own.

    Does not import what such pools need, `multiprocessing`: who has one has it loaded.
    """
    pools = sys.modules.get("concurrent.futures.process")
    return pools is not None and isinstance(executor, pools.ProcessPoolExecutor)


class Call:
    """One call of a task function.

    :param task: the task, prepared.
    :param target: what is called; the task's function, or what stands in for it.
    :param args: positional arguments.
    :param kwargs: keyword arguments; they win over dependencies of the same name.
    :param context: what the function is told about its messages.
    :param timeout: seconds the function may take, or text of a number; `None` for no
        limit. Dependencies are not limited.
    :param casts: how the arguments of its message are still to be cast, if they are.
    :ivar dependencies: what was opened for it, to be closed after it.
    :ivar teardown: what closing them failed with.
    """

    __slots__ = (
        "args",
        "casts",
        "context",
        "dependencies",
        "kwargs",
        "target",
        "task",
        "teardown",
        "timeout",
    )

    def __init__(
        self,
        task: PreparedTask,
        target: Callable[..., Any],
        args: list[Any],
        kwargs: dict[str, Any],
        context: Context,
        timeout: Any,
        casts: ParameterCasts | None = None,
    ) -> None:
        self.task = task
        self.target = target
        self.args = args
        self.kwargs = kwargs
        self.context = context
        self.timeout = timeout
        self.casts = casts
        self.dependencies: AsyncResolveContext | None = None
        self.teardown: Failed | None = None

    @property
    def is_async(self) -> bool:
        """Whether the target gives a coroutine."""
        if self.target is self.task.function:
            return self.task.is_async
        return is_coroutine_function(self.target)

    def sent_ids(self) -> list[str]:
        """List the ids that its messages were sent under."""
        return [sent_id(message) for message in self.context.all_messages]

    @property
    def label(self) -> str:
        """Name the call in the log."""
        if isinstance(self.context, BatchContext):
            return f"batch {self.context.batch_id} of task {self.task.name}"
        return describe(self.context.message)


class WaitingCalls:
    """The calls of one event loop that wait for something, and can be cancelled."""

    def __init__(self) -> None:
        self._steps: dict[Call, Steps] = {}
        # Once somebody has looked for one.
        self._by_id: ById[Call] | None = None

    def begin(self, call: Call, steps: Steps) -> None:
        """Note that a call waits, with the steps it still has to take."""
        self._steps[call] = steps
        if self._by_id is not None:
            self._by_id.add(call)

    def end(self, call: Call) -> None:
        """Note that it waits no more."""
        del self._steps[call]
        if self._by_id is not None:
            self._by_id.discard(call)

    def find(self, ids: Iterable[str]) -> list[tuple[Call, Steps]]:
        """List the calls for a message with one of these ids."""
        if self._by_id is None:
            self._by_id = ById(Call.sent_ids, self._steps)
        return [(call, self._steps[call]) for call in self._by_id.find(ids)]


class Execution:
    """Runs calls, each to an outcome: a failing function is an outcome, not a raise.

    :param executor: runs sync functions; `None` is the loop's own pool.
    :param propagate_exceptions: whether dependencies see the function's error.
    """

    def __init__(
        self,
        broker: AsyncBroker,
        executor: Executor | None,
        *,
        propagate_exceptions: bool,
    ) -> None:
        self._broker = broker
        self._executor = executor
        self._is_process_pool = is_process_pool(executor)
        self._propagate_exceptions = propagate_exceptions
        # Of event loops in which somebody may cancel one. Replaced and never changed:
        # other threads go through it.
        self._waiting: dict[asyncio.AbstractEventLoop, WaitingCalls] = {}

    def waiting_in(self, loop: asyncio.AbstractEventLoop) -> WaitingCalls:
        """Keep, from now on, the calls of a loop that wait for something."""
        waiting = WaitingCalls()
        self._waiting = {
            other: known
            for other, known in self._waiting.items()
            if not other.is_closed()
        } | {loop: waiting}
        return waiting

    async def run(self, call: Call) -> tuple[Outcome, float]:
        """Resolve the dependencies of a call, make it, and close them.

        :returns: what became of it, and the seconds it took without the closing.
        :raises asyncio.CancelledError: when the worker cancelled the call.
        """
        started = time.perf_counter()
        returned = first_step(self._work, call)
        if returned.__class__ is Steps:
            returned = await self._finish(call, returned)
        seconds = time.perf_counter() - started
        if known_cancels(asyncio.current_task()):
            returned = await take_own_cancel() or returned
        failed: Failed | None = None
        if returned.__class__ is Failed:
            failed = returned
            self._tell_failure(call, returned.error)
        if call.dependencies is not None:
            error = None if failed is None else failed.error
            call.teardown = await self._close_dependencies(call, error)
            # Work that was not committed must not be reported as done.
            failed = failed or call.teardown
        return failed or Succeeded(returned), seconds

    async def _finish(self, call: Call, steps: Steps) -> Any:
        """Wait for a call, among those that somebody may cancel."""
        waiting = self._waiting.get(asyncio.get_running_loop())
        if waiting is not None:
            waiting.begin(call, steps)
        try:
            close = functools.partial(self._close_dependencies, call)
            return await steps.finish(on_end=close)
        finally:
            if waiting is not None:
                waiting.end(call)

    def _tell_failure(self, call: Call, error: BaseException) -> None:
        with_public_names(error)
        if not isinstance(call.context, BatchContext):
            # Of a batch it depends on its other calls what there is to say.
            failed = [call.context.message]
            log_failure(self._broker, call.label, failed, error)

    def forget(self, context: Context) -> None:
        """Keep nothing of a call that is over: every item of a batch, otherwise."""
        shared = self._broker.custom_dependency_context
        if shared.get(Context) is context:
            del shared[Context]

    def _work(self, call: Call) -> Coroutine[Any, Any, Any]:
        """Tell the world which message runs, and give what its call comes down to.

        For most of them it is the function itself.
        """
        task, context, broker = call.task, call.context, self._broker
        if call.casts is not None:
            call.casts.apply(call.args, call.kwargs, task.name)
        shared = broker.custom_dependency_context
        shared[Context] = context
        shared[TaskiqState] = broker.state
        if task.dependencies is not None:
            call.dependencies = self._open_dependencies(call)
        elif call.timeout is None and task.is_async and call.target is task.function:
            args, kwargs = call.args, call.kwargs
            # A call by name copies its dict.
            coroutine: Coroutine[Any, Any, Any] = (
                call.target(*args, **kwargs) if kwargs else call.target(*args)
            )
            return coroutine
        return self._resolve_and_call(call)

    def _open_dependencies(self, call: Call) -> AsyncResolveContext:
        """Prepare to resolve what a call depends on."""
        graph = call.task.graph_for(self._broker.dependency_overrides)
        # A copy: what is resolved later must not see another message's context.
        own = self._broker.custom_dependency_context.copy()
        own[Context] = call.context  # whatever another thread has told meanwhile
        if isinstance(call.context, BatchContext):
            own[BatchContext] = call.context
        return graph.async_ctx(own)

    async def _resolve_and_call(self, call: Call) -> Any:
        if call.dependencies is not None:
            resolved = await call.dependencies.resolve_kwargs()
            call.kwargs = {**resolved, **call.kwargs}
        seconds = read_timeout(call.timeout)
        if seconds is None:
            return await self._invoke(call)
        if not call.is_async:
            logger.warning(
                "Timeouts for sync tasks don't work in python well: %s goes on in "
                "its thread or process after %s seconds.",
                call.label,
                seconds,
            )
        return await _limited(self._invoke(call), seconds)

    async def _invoke(self, call: Call) -> Any:
        if call.is_async:
            return await call.target(*call.args, **call.kwargs)
        returned = await self._in_pool(call)
        # A sync wrapper around an async function gives a coroutine to be run here.
        return await returned if inspect.isawaitable(returned) else returned

    def _in_pool(self, call: Call) -> Awaitable[Any]:
        function = functools.partial(_call, call.target, *call.args, **call.kwargs)
        if not self._is_process_pool:
            function = functools.partial(contextvars.copy_context().run, function)
        loop = asyncio.get_running_loop()
        return loop.run_in_executor(self._executor, function)

    async def _close_dependencies(
        self,
        call: Call,
        error: BaseException | None,
    ) -> Failed | None:
        """Run what dependencies do at the end.

        :param error: what the call failed with.
        :returns: what that fails with.
        """
        if call.dependencies is None:
            return None
        seen = error if self._propagate_exceptions else None
        kind, trace = (None, None) if seen is None else (type(seen), seen.__traceback__)
        close = call.dependencies.close
        failure = await contain(close, kind, seen, trace)
        if not isinstance(failure, Failed):
            return None
        logger.error(
            "A dependency of %s failed at its end.",
            call.label,
            exc_info=failure.error,
        )
        return failure


def _call(target: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Call a sync function in its thread or process.

    :raises RuntimeError: when it raises what no future can hold. With `StopIteration`
        the call would never end; an async function does the same by itself (PEP 479).
        `GeneratorExit` would close whoever waits for the call.
    """
    try:
        return target(*args, **kwargs)
    except (StopIteration, GeneratorExit) as exc:
        raise RuntimeError(f"the task raised {type(exc).__name__}") from exc


if sys.version_info >= (3, 11):

    async def _limited(invocation: Coroutine[Any, Any, Any], seconds: float) -> Any:
        async with asyncio.timeout(seconds):
            return await invocation

else:  # pragma: no cover - Python 3.10

    async def _limited(invocation: Coroutine[Any, Any, Any], seconds: float) -> Any:
        with anyio.fail_after(seconds):
            return await invocation
