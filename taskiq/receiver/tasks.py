"""The asyncio tasks of one event loop's messages: beginning, waiting, cancelling."""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import logging
import sys
from collections import deque
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence

logger = logging.getLogger("taskiq.receiver.receiver")

_T = TypeVar("_T")
_Item = TypeVar("_Item")
_Subject = TypeVar("_Subject", bound="Subject")

#: Seconds a cancelled task has for its cleanup before it is left behind.
CANCEL_GRACE: Final = 5.0

#: Asyncio tasks of messages that are sent in this process which wait for their first
#: step: what is sent beyond them is begun in turn. Thousands that wait would be so much
#: work for the garbage collector that it took half of the time.
UNSTARTED: Final = 100

#: Messages that are taken through one step at the same time. Clients make a connection
#: for each acknowledgement that is under way: with 32 of them Redis streams are drained
#: an eighth more slowly on a fast network; with 8 there is more to wait for on a slow
#: one.
AT_ONCE: Final = 16

#: Seconds after which nobody waits any more for whom a step takes longer.
PROMPT: Final = 1.0

#: Periods of `PROMPT` after which somebody else does what a helper does not come to.
_STUCK: Final = 15
_NEVER: Final = float("inf")

#: The message or batch this code works for, also in asyncio tasks that it has begun.
_working_for: contextvars.ContextVar[Subject | None] = contextvars.ContextVar(
    "taskiq_working_for",
    default=None,
)


class Subject(Protocol):
    """What an asyncio task works for: a message or a batch. Its `str` is for logs."""

    @property
    def broker(self) -> object:
        """Whose it is."""
        ...

    @property
    def is_batched(self) -> bool:
        """Whether it is of a batch task."""
        ...

    @property
    def is_over(self) -> bool:
        """Whether nothing more comes of it."""
        ...

    def leave(self) -> None:
        """Give up what is not done of it; more than once is no harm."""


class Tasks:
    """Strong references to what was begun in one event loop, until each has ended.

    :param loop: the loop.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        # What each works for; `None` for work nobody has to be told of.
        self._begun: dict[asyncio.Task[Any], Subject | None] = {}
        # Those that were cancelled here, and not by what they run.
        self._stopped: set[asyncio.Task[Any]] = set()
        # Bound once, and not for each of them.
        self._on_end = self._ended
        self._context = contextvars.Context()
        # What was begun in turn and has not come to its first step, and what is to be
        # begun after that, each in its context.
        # There is a backlog only as long as somebody is to come to his first step.
        self._unstarted: set[Subject] = set()
        self._backlog: deque[tuple[contextvars.Context, Any, Any]] = deque()

    def begin(
        self,
        work: Coroutine[Any, Any, Any],
        subject: Subject | None,
        *,
        context: contextvars.Context | None = None,
    ) -> asyncio.Task[Any]:
        """Run `work`: the one place where an asyncio task of a receiver starts.

        :param context: what to run it in a copy of, with `subject` as what it works
            for; `None` for the caller's own.
        """
        if context is None:
            task = start_task(self._loop, work)
        else:
            task = context.copy().run(self._begin_for, work, subject)
        self._begun[task] = subject
        # Not in a copy of whatever context this is, one more object for each.
        task.add_done_callback(self._on_end, context=self._context)
        return task

    def begin_in_turn(
        self,
        take: Callable[[_Subject], Coroutine[Any, Any, Any]],
        subject: _Subject,
    ) -> None:
        """Begin `take(subject)`, in this context, when few wait for their first step.

        :param take: calls `started` first of all.
        """
        # Nor before those that wait already: one of the few may have been cancelled.
        if self._backlog or len(self._unstarted) >= UNSTARTED:
            self._backlog.append((contextvars.copy_context(), take, subject))
        else:
            self._begin_next(take, subject)

    def _begin_next(
        self,
        take: Callable[[_Subject], Coroutine[Any, Any, Any]],
        subject: _Subject,
    ) -> None:
        self._unstarted.add(subject)
        self.begin(take(subject), subject)

    def started(self, subject: Subject) -> None:
        """Let others begin: what was begun in turn has come to its first step."""
        self._unstarted.discard(subject)
        while self._backlog and len(self._unstarted) < UNSTARTED:
            context, take, following = self._backlog.popleft()
            context.run(self._begin_next, take, following)

    def _never_started(self, subject: Subject) -> None:
        """Give up what was to follow, if all that was begun before it is cancelled.

        An event loop that ends cancels what it knows, and runs nothing after that.
        """
        self._unstarted.discard(subject)
        if self._backlog and not self._unstarted:
            left = self._give_up_backlog()
            logger.error(
                "Left for redelivery, as what was to begin before was cancelled: %s.",
                "; ".join(map(str, left)),
                extra={"tasks": len(left)},
            )

    def _give_up_backlog(self) -> list[Subject]:
        left = [subject for _, _, subject in self._backlog]
        self._backlog.clear()
        for subject in left:
            subject.leave()
        return left

    def _begin_for(
        self,
        work: Coroutine[Any, Any, Any],
        subject: Subject | None,
    ) -> asyncio.Task[Any]:
        _working_for.set(subject)
        return start_task(self._loop, work)

    async def run(
        self,
        work: Coroutine[Any, Any, _T],
        subject: Subject | None,
        *,
        context: contextvars.Context | None = None,
    ) -> _T:
        """Run `work` in a task of its own, and stop it when this is cancelled."""
        task = self.begin(work, subject, context=context)
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            self.stop(task)
            await asyncio.wait([task])
            raise
        result: _T = task.result()
        return result

    def run_here(self, work: Coroutine[Any, Any, _T]) -> Coroutine[Any, Any, _T]:
        """Give what runs `work` in the asyncio task that asks, if that can be.

        One that was cancelled before, and cleans up, is no place for it: who cancels
        what could not be told. Nor could it in one that counts no cancellations.
        """
        if cancel_requests(asyncio.current_task()):
            return self.run(work, None)
        return work

    def stop(self, task: asyncio.Task[Any]) -> None:
        """Cancel what was begun: what it runs is not to make an outcome of that.

        What has ended meanwhile is left as it is.
        """
        if task in self._begun:
            self._stopped.add(task)
            task.cancel()

    def is_own(self) -> bool:
        """Tell whether who asks runs in a task that was begun here."""
        try:
            return asyncio.current_task() in self._begun
        except RuntimeError:  # no event loop runs: a thread of its own
            return False

    def of(self, subjects: Callable[[Subject | None], bool]) -> set[asyncio.Task[Any]]:
        """Give the tasks whose subject is one of these and that have not ended."""
        return {task for task, subject in self._begun.items() if subjects(subject)}

    def __len__(self) -> int:
        return len(self._begun)

    async def wait_until(
        self,
        is_idle: Callable[[], bool],
        subjects: Callable[[Subject | None], bool] = lambda _: True,
    ) -> None:
        """Wait until nothing is held and none of these tasks runs.

        :param is_idle: whether nothing is held that no task works for yet.
        :param subjects: whose tasks are waited for.
        """
        while (running := self.of(subjects)) or not is_idle():
            await wait_for_all(running, None)
            if not running:
                await asyncio.sleep(0)

    async def cancel(self) -> None:
        """Stop what still runs and wait until it has cleaned up after itself."""
        if not self._begun:
            return
        subjects = [each for each in self._begun.values() if each is not None]
        subjects += self._give_up_backlog()
        if subjects:
            what = "it was" if len(subjects) == 1 else "they were"
            text = "Stopped before %s done, not acknowledged: %s."
            named = "; ".join(map(str, subjects))
            logger.error(text, what, named, extra={"tasks": len(subjects)})
        for task in tuple(self._begun):
            self.stop(task)
        running = set(self._begun)
        _, left = await uninterrupted(asyncio.wait(running, timeout=CANCEL_GRACE))
        for task in left:
            logger.error("Does not end after its cancellation: %s.", task)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        subject = self._begun.pop(task)
        if subject in self._unstarted:
            self._never_started(subject)
        is_stopped = task in self._stopped
        if task.cancelled():
            if subject is not None and not is_stopped:
                message = "Left for redelivery, as it cancelled itself: %s."
                logger.error(message, subject)
        elif (error := task.exception()) is not None:
            logger.error(
                "Left for redelivery by an unexpected error, not acknowledged: %s.",
                subject,
                exc_info=error,
            )
        if is_stopped:
            self._stopped.discard(task)
        if subject is not None:
            subject.leave()


def work_for(subject: Subject) -> None:
    """Let the asyncio task that calls, and those it begins, work for `subject`."""
    _working_for.set(subject)


def subject_of(broker: object) -> Subject | None:
    """Give what whoever asks works for, if it is a broker's and not over."""
    subject = _working_for.get()
    if subject is None or subject.broker is not broker or subject.is_over:
        return None
    return subject


#: Whether every asyncio task knows how often it was cancelled.
CANCELS_ARE_COUNTED: Final = sys.version_info >= (3, 11)

if sys.version_info >= (3, 11):

    def start_task(
        loop: asyncio.AbstractEventLoop,
        work: Coroutine[Any, Any, _T],
    ) -> asyncio.Task[_T]:
        """Run `work` as a task that counts its cancellations."""
        return loop.create_task(work)

    def cancel_requests(task: asyncio.Task[Any] | None) -> int:
        """Count the cancellations of a task that nobody has dealt with."""
        return 1 if task is None else task.cancelling()

    def known_cancels(task: asyncio.Task[Any] | None) -> int:
        """Count those of them that are known to have been."""
        return 0 if task is None else task.cancelling()

    def forget_cancel_request(task: asyncio.Task[Any] | None) -> None:
        """Count one of them less: it has been dealt with."""
        if task is not None:
            task.uncancel()

else:  # pragma: no cover - Python 3.10

    class _CountingTask(asyncio.Task[Any]):
        """Counts its cancellations, as every task does from Python 3.11 on."""

        cancels = 0

        def cancel(self, msg: Any = None) -> bool:
            self.cancels += 1
            return super().cancel(msg)

    def start_task(
        loop: asyncio.AbstractEventLoop,
        work: Coroutine[Any, Any, _T],
    ) -> asyncio.Task[_T]:
        """Run `work` as a task that counts its cancellations."""
        return _CountingTask(work, loop=loop)

    def cancel_requests(task: asyncio.Task[Any] | None) -> int:
        """Count the cancellations of a task that nobody has dealt with.

        One that was not started here may be cancelled whenever something is.
        """
        return task.cancels if isinstance(task, _CountingTask) else 1

    def known_cancels(task: asyncio.Task[Any] | None) -> int:
        """Count those of them that are known to have been."""
        return task.cancels if isinstance(task, _CountingTask) else 0

    def forget_cancel_request(task: asyncio.Task[Any] | None) -> None:
        """Count one of them less: it has been dealt with."""
        if isinstance(task, _CountingTask):
            task.cancels -= 1


async def wait_for_all(
    tasks: Iterable[asyncio.Task[Any]],
    timeout: float | None,
) -> None:
    """Wait for tasks without taking their errors.

    :param timeout: seconds, `None` for no limit.
    """
    waited_for = set(tasks)
    if waited_for:
        await asyncio.wait(waited_for, timeout=timeout)


async def uninterrupted(work: Coroutine[Any, Any, _T]) -> _T:
    """Await `work` to its end, and raise a cancellation that came meanwhile after it.

    For a cleanup that is short by itself and must not be left half done.
    """
    inner = asyncio.ensure_future(work)
    cancellation: asyncio.CancelledError | None = None
    while not inner.done():
        try:
            await asyncio.wait([inner])
        except asyncio.CancelledError as exc:  # noqa: PERF203 - at most a few
            cancellation = exc
    if cancellation is not None:
        raise cancellation
    return inner.result()


class Crew(Generic[_Item]):
    """Takes items through one step side by side, and does not wait for the slow ones.

    Whoever calls `run` does everything as long as nothing has to be waited for; helpers
    join then, up to `AT_ONCE` in all, and one more for each that seems to be stuck.
    When all items are begun, those that take longer than `PROMPT` then are late: the
    others go on without them, and each is taken further by itself.

    :param step: takes one item, and gives what says whether it is to be taken further;
        or `True`, where it is and there was nothing to wait for.
    :param follow: takes items further.
    :ivar at_work: helpers that have not ended, to be waited for in the end.
    """

    def __init__(
        self,
        tasks: Tasks,
        step: Callable[[_Item], Literal[True] | Coroutine[Any, Any, bool]],
        items: Sequence[_Item],
        follow: Callable[[list[_Item]], Coroutine[Any, Any, None]],
    ) -> None:
        self._tasks = tasks
        self._step = step
        self._left: Iterator[_Item] = iter(items)
        self._unbegun = 0
        self._follow = follow
        self._passed: list[_Item] = []
        self._is_closed = False
        self.at_work: set[asyncio.Task[None]] = set()
        # When each took its item, in periods of `PROMPT`; the first is who calls `run`.
        self._now = 0
        self._since: list[float] = [0]
        # Done when the others need not be waited for by who calls `run`.
        self._over: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_left_behind = False

    async def run(self) -> list[_Item]:
        """Take every item through the step.

        :returns: those that who calls this is to take further.
        """
        step, passed, left = self._step, self._passed, self._left
        # Mostly there is nothing to wait for, and nothing to be made for it.
        for item in left:
            goes_on = step(item)
            if goes_on is not True:
                return await self._run_on(item, goes_on)
            passed.append(item)
        return passed

    async def _run_on(
        self,
        item: _Item,
        begun: Coroutine[Any, Any, bool],
    ) -> list[_Item]:
        """Take an item that has to wait for something, and those behind it."""
        behind = list(self._left)
        self._unbegun = 1 + len(behind)
        self._left = itertools.chain([item], behind)
        call_for_help = asyncio.get_running_loop().call_soon(self._share)
        try:
            own = await self._help(0, begun)
            if self._over is not None and not self._is_closed:
                await self._over
        except (asyncio.CancelledError, Exception):
            for helper in tuple(self.at_work):
                self._tasks.stop(helper)
            await wait_for_all(self.at_work, None)
            raise
        finally:
            call_for_help.cancel()
            self._close()
        return own if self._is_left_behind else self._passed

    def _share(self) -> None:
        """Call for help: something has to be waited for."""
        loop = asyncio.get_running_loop()
        self._over = loop.create_future()
        self._timer = loop.call_later(PROMPT, self._tick)
        self._join(AT_ONCE - 1)

    def _join(self, count: int) -> None:
        for _ in range(min(count, self._unbegun)):
            self._since.append(self._now)
            self._begin(self._help_alone(len(self._since) - 1))

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._tasks.begin(work, None)
        self.at_work.add(task)
        task.add_done_callback(self.at_work.discard)

    async def _help(
        self,
        number: int,
        begun: Coroutine[Any, Any, bool] | None = None,
    ) -> list[_Item]:
        """Take items until none is left.

        :param begun: takes the first of them.
        :returns: one that was late, if it is to be taken further.
        """
        since, passed, step = self._since, self._passed, self._step
        late: list[_Item] = []
        for item in self._left:
            self._unbegun -= 1
            since[number] = self._now
            goes_on = begun or step(item)
            begun = None
            if goes_on is True or await goes_on:
                (late if self._is_closed else passed).append(item)
        since[number] = _NEVER  # at nothing any more
        self._end_if_over()
        return late

    async def _help_alone(self, number: int) -> None:
        late = await self._help(number)
        if late:
            await self._follow(late)

    def _tick(self) -> None:
        """See to it that those who are stuck hold up nobody else."""
        self._now += 1
        self._timer = asyncio.get_running_loop().call_later(PROMPT, self._tick)
        self._join(sum(self._now - since == _STUCK for since in self._since))
        self._end_if_over()

    def _end_if_over(self) -> None:
        """End the step when all items are begun, and none but late ones are left."""
        is_over = not self._unbegun and all(
            since == _NEVER or self._now - since > 1 for since in self._since
        )
        if self._is_closed or self._over is None or not is_over:
            return
        self._close()
        if self._since[0] != _NEVER:
            # Who calls `run` is late itself.
            self._is_left_behind = True
            self._begin(self._follow(self._passed))

    def _close(self) -> None:
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._over is not None and not self._over.done():
            self._over.set_result(None)
