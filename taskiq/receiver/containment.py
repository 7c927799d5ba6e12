"""What user code raises: the one place that handles it, by one policy.

Functions of a task, hooks, formatters, result backends and brokers are user code here.
Whatever it raises, `BaseException` included, becomes the `Failed` outcome of the
message it ran for and stops nobody else, with these exceptions: an interruption of a
synchronous step (Ctrl-C comes there), and the end of the asyncio task itself, by a
cancellation from outside or by closing its coroutine.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from types import CoroutineType
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, cast

from taskiq.outcome import Failed
from taskiq.receiver.tasks import (
    CANCELS_ARE_COUNTED,
    cancel_requests,
    forget_cancel_request,
    known_cancels,
)

if TYPE_CHECKING:
    import contextvars
    from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence

    from taskiq.abc.middleware import TaskiqMiddleware

logger = logging.getLogger("taskiq.receiver.receiver")

_T = TypeVar("_T")

_ENDED: Final = object()


def attempt(function: Callable[..., _T], *args: Any) -> _T | Failed:
    """Call a synchronous function; what it raises is its outcome.

    :raises KeyboardInterrupt: for whoever runs this to stop.
    """
    try:
        return function(*args)
    except KeyboardInterrupt:
        raise
    except BaseException as exc:  # noqa: BLE001 - the policy of this module
        return Failed(exc)


def first_step(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function, and take the first step of what it gives: mostly the last one.

    Every called, saved and acknowledged message comes by here. What ends without
    waiting for anything costs no coroutine, no timer and no look at the asyncio task.

    :returns: what it gives in the end, what it failed with as a `Failed`, or `Steps`
        that are still to be taken, by `Steps.finish`.
    """
    try:
        work: Any = function(*args)
        if work.__class__ is not CoroutineType:
            work = _await(work)
        try:
            waited_for = work.send(None)
        except StopIteration as done:
            return done.value
    except BaseException as exc:
        if _is_end_of_task(exc):
            raise
        return Failed(exc)
    return Steps(work, waited_for)


def start(function: Callable[..., Any], *args: Any) -> Any:
    """Take the first step of what gives nothing: in two thirds of `first_step`'s time.

    :returns: as `first_step`, with `None` for whatever it gives.
    """
    try:
        work: Any = function(*args)
        if work.__class__ is not CoroutineType:
            work = _await(work)
        # Unlike `send`, this raises nothing when that was all.
        waited_for = next(work.__await__(), _ENDED)
        if waited_for is _ENDED:
            return None
    except BaseException as exc:
        if _is_end_of_task(exc):
            raise
        return Failed(exc)
    return Steps(work, waited_for)


def _is_end_of_task(error: BaseException) -> bool:
    """Tell whether what a first step raised is no affair of what was called."""
    steps = Steps(None, None)
    if steps.is_ended_by(error):
        return True
    steps.forget_cancels()
    return False


async def contain(
    function: Callable[..., Awaitable[_T]],
    *args: Any,
    seconds: float | None = None,
) -> _T | Failed:
    """Await what a function gives; what either raises is the outcome.

    A function that cancels its own asyncio task fails like one that raises. Who cancels
    the task while it waits ends it.

    :param seconds: what takes longer is cancelled, and fails with a `TimeoutError`;
        `None` is no limit.
    :raises asyncio.CancelledError: when the asyncio task is cancelled from outside.
    """
    outcome: Any = first_step(function, *args)
    if outcome.__class__ is Steps:
        outcome = await outcome.finish(seconds)
    elif known_cancels(_running_task()):
        outcome = await take_own_cancel() or outcome
    return cast("_T | Failed", outcome)


async def take_own_cancel() -> Failed | None:
    """Take the cancellation that a function left to the task it has run in.

    For who has to know: it is raised with whatever waits next otherwise.
    """
    steps = Steps(None, None)
    return await steps.absorb_own_cancel(None) if steps.own_cancels else None


async def run_hooks(
    middlewares: Sequence[TaskiqMiddleware],
    hook: str,
    subject: object,
    *args: Any,
    ends_with_failure: bool = False,
) -> Failed | None:
    """Run one hook of middlewares; one that fails does not stop the next.

    :param subject: names in the log what the hook ran for, by its `str`.
    :param args: what each hook is called with.
    :param ends_with_failure: whether one that fails stops the next all the same.
    :returns: the last failure, which is logged already.
    """
    failure: Failed | None = None
    for middleware in middlewares:
        outcome = await call_hook(middleware, hook, *args)
        if isinstance(outcome, Failed):
            failure = outcome
            logger.error(
                "The %s hook of %s failed for %s.",
                hook,
                type(middleware).__name__,
                subject,
                exc_info=outcome.error,
            )
            if ends_with_failure:
                break
    return failure


async def call_hook(
    middleware: TaskiqMiddleware,
    hook: str,
    *args: Any,
) -> Any:
    """Call one hook of one middleware.

    :returns: what it returns, or what it failed with.
    """
    return await contain(_call_hook, middleware, hook, args)


async def _call_hook(
    middleware: TaskiqMiddleware,
    hook: str,
    args: tuple[Any, ...],
) -> Any:
    returned = getattr(middleware, hook)(*args)
    return await returned if inspect.isawaitable(returned) else returned


class Steps:
    """Takes the steps of a coroutine, and notices when they cancel their own task.

    :param work: the coroutine; its first step has been taken.
    :param waited_for: what that one gave: what the task is to wait for.
    :ivar own_cancels: how often the steps have cancelled the task they run in.
    :ivar is_overdue: whether the task was cancelled as the steps take too long.
    :ivar reason: what the steps fail with, whatever they make of their cancellation.
    """

    __slots__ = (
        "_waited_for",
        "_work",
        "is_overdue",
        "own_cancels",
        "reason",
        "task",
    )

    def __init__(self, work: Any, waited_for: Any) -> None:
        self.task = _running_task()
        self._work = work
        self._waited_for = waited_for
        self.is_overdue = False
        self.reason: BaseException | None = None
        # Nobody else could do so before the first step was over.
        self.own_cancels = known_cancels(self.task)

    def __await__(self) -> Generator[Any, Any, Any]:
        work, waited_for = self._work, self._waited_for
        while True:
            step: Callable[..., Any] = work.send
            value: Any = None
            try:
                value = yield waited_for
            except GeneratorExit:
                work.close()  # unless it was thrown away before this
                raise
            except BaseException as exc:  # noqa: BLE001 - it is for the coroutine
                step, value = work.throw, exc
            before = cancel_requests(self.task)
            try:
                waited_for = step(value)
            except StopIteration as done:
                return done.value
            finally:
                after = cancel_requests(self.task)
                if after != before:
                    self._count_cancels(after - before, after)

    def _count_cancels(self, more: int, after: int) -> None:
        """Count what a step did: it may withdraw one of its own, or of a timer's.

        :param more: how many more cancellations there are than before it.
        :param after: how many there are.
        """
        if more > 0:
            self.own_cancels += more
        else:
            # `asyncio.timeout` and `TaskGroup` withdraw theirs, which no step has made.
            self.own_cancels = min(self.own_cancels, after)

    async def finish(
        self,
        seconds: float | None = None,
        on_end: Callable[[BaseException], Awaitable[Any]] | None = None,
    ) -> Any:
        """Take all of them.

        :param seconds: what takes longer is cancelled, and fails with a `TimeoutError`;
            `None` is no limit.
        :param on_end: awaited with the cancellation before it is raised.
        :returns: what they give in the end, or a `Failed`.
        :raises asyncio.CancelledError: when the asyncio task is cancelled from outside.
        """
        try:
            value = await (self if seconds is None else _limited(self, seconds))
        except BaseException as exc:
            if self.is_ended_by(exc):
                if on_end is not None and not isinstance(exc, GeneratorExit):
                    await on_end(exc)
                raise
            self.forget_cancels()
            return Failed(self.reason or exc)
        if self.own_cancels:
            return await self.absorb_own_cancel(value)
        self.forget_cancels()
        return value

    def interrupt(self) -> None:
        """Cancel what takes too long."""
        self.is_overdue = True
        if self.task is not None:
            self.task.cancel()

    def interrupt_for(self, reason: BaseException) -> None:
        """Cancel what runs, as if it had done so itself; its task goes on.

        :param reason: what it fails with.
        """
        assert self.task is not None  # noqa: S101 - what waits does so in one
        self.reason = reason
        self.own_cancels += 1
        self.task.cancel()

    def is_ended_by(self, error: BaseException) -> bool:
        """Whether an error is the end of the task, and none of what runs in it."""
        if isinstance(error, asyncio.CancelledError):
            return cancel_requests(self.task) > self.own_cancels
        # Its coroutine is closed, by whoever cleans up after a loop that is gone.
        return isinstance(error, GeneratorExit) and _running_task() is not self.task

    def forget_cancels(self) -> None:
        """Let the task go on as if nobody had cancelled it.

        The steps have ended, in spite of those from outside: whatever comes next would
        take these for its own.
        """
        for _ in range(known_cancels(self.task)):
            forget_cancel_request(self.task)

    async def absorb_own_cancel(self, value: Any) -> Any:
        """Take the cancellation that what has ended leaves to its task.

        :param value: what it has given.
        :returns: what it failed with, or the value, where Python does not know whether
            it has withdrawn its cancellations, and none of them is left.
        """
        is_left = CANCELS_ARE_COUNTED
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError as exc:
            is_left = True
            if self.is_ended_by(exc):
                raise
        self.forget_cancels()
        if self.reason is None and not is_left:  # pragma: no cover - Python 3.10
            return value
        own = asyncio.CancelledError("it cancelled its own asyncio task")
        return Failed(self.reason or own)


async def _limited(steps: Steps, seconds: float) -> Any:
    alarm = asyncio.get_running_loop().call_later(seconds, steps.interrupt)
    try:
        return await steps
    except asyncio.CancelledError as exc:
        if not steps.is_overdue:
            raise
        steps.is_overdue = False
        forget_cancel_request(steps.task)
        # By somebody else as well, meanwhile. Python 3.10 does not know that of a task
        # which was not begun here: then it was the limit.
        if known_cancels(steps.task) > steps.own_cancels:
            raise
        raise TimeoutError(f"no end within {seconds:g} s") from exc
    finally:
        alarm.cancel()
        if steps.is_overdue:  # it ended in spite of its cancellation
            forget_cancel_request(steps.task)


async def _await(given: Any) -> Any:
    return await given if inspect.isawaitable(given) else given


def _running_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:  # no event loop runs
        return None


async def in_context(
    context: contextvars.Context | None,
    work: Coroutine[Any, Any, _T],
) -> _T:
    """Await `work`, each step of it in `context`.

    Unlike a task of its own it leaves in that very context what it sets there, so that
    the next thing that runs there finds it, and can reset it.

    :param context: `None` for the one that is there.
    """
    if context is None:
        return await work
    return await _InContext(context, work)


class _InContext(Generic[_T]):
    __slots__ = ("_context", "_work")

    def __init__(
        self,
        context: contextvars.Context,
        work: Coroutine[Any, Any, _T],
    ) -> None:
        self._context = context
        self._work = work

    def __await__(self) -> Generator[Any, Any, _T]:
        run, work = self._context.run, self._work
        step: Callable[..., Any] = work.send
        value: Any = None
        while True:
            try:
                waited_for = run(step, value)
            except StopIteration as done:
                return cast("_T", done.value)
            try:
                value = yield waited_for
                step = work.send
            except GeneratorExit:
                run(work.close)  # unless it was thrown away before this
                raise
            except BaseException as exc:  # noqa: BLE001 - it is for the coroutine
                step, value = work.throw, exc
