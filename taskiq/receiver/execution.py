"""Calling the task function: the only place that runs a user's code for a message."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import logging
import math
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio

from taskiq.callables import is_coroutine_function
from taskiq.context import BatchContext, Context
from taskiq.exceptions import NoResultError
from taskiq.outcome import Failed, Outcome, Succeeded
from taskiq.receiver.cancellation import is_from_outside
from taskiq.state import TaskiqState

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Sequence
    from concurrent.futures import Executor

    from taskiq_dependencies.ctx import AsyncResolveContext

    from taskiq.abc.broker import AsyncBroker
    from taskiq.receiver.prepared import PreparedTask

logger = logging.getLogger("taskiq.receiver.receiver")


def is_process_pool(executor: Executor | None) -> bool:
    """Tell whether an executor runs functions in processes of its own.

    Does not import what such pools need, `multiprocessing`: who has one has it loaded.
    """
    pools = sys.modules.get("concurrent.futures.process")
    return pools is not None and isinstance(executor, pools.ProcessPoolExecutor)


@dataclass(slots=True)
class Call:
    """One call of a task function.

    :ivar task: the task, prepared.
    :ivar target: what is called; the task's function, or what stands in for it.
    :ivar args: positional arguments.
    :ivar kwargs: keyword arguments; they win over dependencies of the same name.
    :ivar context: what the function is told about its messages.
    :ivar timeout: seconds the function may take, or text of a number; `None` for no
        limit. Dependencies are not limited.
    """

    task: PreparedTask
    target: Callable[..., Any]
    args: Sequence[Any]
    kwargs: dict[str, Any]
    context: Context
    timeout: Any

    @property
    def is_async(self) -> bool:
        """Whether the target gives a coroutine."""
        if self.target is self.task.function:
            return self.task.is_async
        return is_coroutine_function(self.target)

    @property
    def label(self) -> str:
        """Name the call in the log."""
        if isinstance(self.context, BatchContext):
            return f"batch {self.context.batch_id} of task {self.task.name}"
        return f"task {self.task.name} with ID {self.context.message.task_id}"


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

    async def run(self, call: Call) -> tuple[Outcome, float]:
        """Resolve the dependencies of a call, make it, and close them.

        To be awaited under `guarded`.

        :returns: what became of it, and the seconds it took without the closing.
        :raises asyncio.CancelledError: when the worker cancelled the call.
        """
        started = time.perf_counter()
        dependencies = None
        outcome: Outcome
        try:
            dependencies = self._open_dependencies(call)
            outcome = Succeeded(await self._work(call, dependencies))
        except GeneratorExit:
            raise  # the loop is gone: there is nothing left to await with
        except BaseException as exc:
            if isinstance(exc, asyncio.CancelledError) and is_from_outside(exc):
                if dependencies is not None:
                    await self._close_dependencies(call, dependencies, Failed(exc))
                raise
            outcome = Failed(exc)
            _log_failure(call, exc)
        seconds = time.perf_counter() - started
        if dependencies is not None:
            outcome = await self._close_dependencies(call, dependencies, outcome)
        return outcome, seconds

    def _open_dependencies(self, call: Call) -> AsyncResolveContext | None:
        """Tell the world which message runs, and prepare to resolve for this one."""
        broker = self._broker
        shared = broker.custom_dependency_context
        shared[Context] = call.context
        shared[TaskiqState] = broker.state
        graph = call.task.graph_for(broker.dependency_overrides)
        if graph is None:
            return None
        # A copy: what is resolved later must not see another message's context.
        own = shared.copy()
        if isinstance(call.context, BatchContext):
            own[BatchContext] = call.context
        return graph.async_ctx(own)

    def _work(
        self,
        call: Call,
        dependencies: AsyncResolveContext | None,
    ) -> Coroutine[Any, Any, Any]:
        """Give what a call comes down to: for most of them, the function itself."""
        if dependencies is None and call.timeout is None and call.is_async:
            coroutine: Coroutine[Any, Any, Any] = call.target(*call.args, **call.kwargs)
            return coroutine
        return self._resolve_and_call(call, dependencies)

    async def _resolve_and_call(
        self,
        call: Call,
        dependencies: AsyncResolveContext | None,
    ) -> Any:
        if dependencies is not None:
            resolved = await dependencies.resolve_kwargs()
            call.kwargs = {**resolved, **call.kwargs}
        if call.timeout is None:
            return await self._invoke(call)
        seconds = _seconds(call.timeout)
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
        dependencies: AsyncResolveContext,
        outcome: Outcome,
    ) -> Outcome:
        """Run what dependencies do at the end.

        A teardown that fails after a success fails the call: work that was not
        committed must not be reported as done.
        """
        error = outcome.error if isinstance(outcome, Failed) else None
        seen = error if self._propagate_exceptions else None
        try:
            if seen is None:
                await dependencies.close(None, None, None)
            else:
                await dependencies.close(type(seen), seen, seen.__traceback__)
        except GeneratorExit:
            raise  # as in `run`
        except BaseException as exc:
            if isinstance(exc, asyncio.CancelledError) and is_from_outside(exc):
                raise
            logger.exception("A dependency of %s failed at its end.", call.label)
            return outcome if error is not None else Failed(exc)
        return outcome


def _call(target: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Call a sync function in its thread or process.

    :raises RuntimeError: when it raises `StopIteration`, which no future can hold: the
        call would never end. An async function does the same by itself (PEP 479).
    """
    try:
        return target(*args, **kwargs)
    except StopIteration as exc:
        raise RuntimeError("the task raised StopIteration") from exc


def _seconds(label: Any) -> float:
    """Read a `timeout` label.

    :raises ValueError: when it is no number.
    """
    seconds = float(label)
    if math.isnan(seconds):
        raise ValueError(f"timeout must be a number of seconds, got {label!r}")
    return seconds


def _log_failure(call: Call, error: BaseException) -> None:
    if isinstance(error, NoResultError):
        logger.warning("%s asked for no result: none is set.", call.label)
    else:
        logger.error(
            "Exception found while executing %s: %s",
            call.label,
            error,
            exc_info=error,
        )


if sys.version_info >= (3, 11):

    async def _limited(invocation: Coroutine[Any, Any, Any], seconds: float) -> Any:
        async with asyncio.timeout(seconds):
            return await invocation

else:  # pragma: no cover - Python 3.10

    async def _limited(invocation: Coroutine[Any, Any, Any], seconds: float) -> Any:
        with anyio.fail_after(seconds):
            return await invocation
