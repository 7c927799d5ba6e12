"""When the next call of a task with a rate may start, where others count it, too.

A pace across processes asks its store for the next turn as soon as a call waits, and
has the call wait until then. While the store cannot be reached, each process keeps the
rate by itself: nothing stops for want of it.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from taskiq.outage import brief
from taskiq.outcome import Failed
from taskiq.rates import EARLY, LATENESS, Pace, RateStore, Request, Turns, read_interval
from taskiq.receiver.containment import contain

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from taskiq.clock import Clock
    from taskiq.receiver.prepared import PreparedTask

    #: Begins to ask for so many turns; gives what ends that.
    Ask: TypeAlias = Callable[["SharedPace", Request], Callable[[], object]]

logger = logging.getLogger("taskiq.receiver.receiver")

#: Seconds that the store has to answer.
PATIENCE: Final = 2.0

#: Seconds until a store is asked again which did not answer.
RETRY_AFTER: Final = 5.0

#: Seconds of turns that are reserved at once, where several calls wait.
HORIZON: Final = 0.1


class SharedPace:
    """Spreads the calls of all processes evenly: decisions, over moments of a clock.

    :param task_name: whose calls they are.
    :param rate: such as "2/s".
    :param ask: asks the store, which is told of by `answered` or `failed`.
    """

    __slots__ = (
        "_alone",
        "_ask",
        "_asked",
        "_asked_until",
        "_end_asking",
        "_interval",
        "_is_alone",
        "_is_wanted",
        "_mark",
        "_retry_at",
        "_started_at",
        "_task_name",
        "_turns",
    )

    def __init__(self, task_name: str, rate: str, ask: Ask) -> None:
        self._task_name = task_name
        self._interval = read_interval(rate)
        self._ask = ask
        # For when the store does not answer.
        self._alone = Pace(rate)
        self._is_alone = False
        self._retry_at = -math.inf
        self._turns: deque[float] = deque()
        self._mark = ""
        # Set exactly while the store is asked.
        self._asked: Request | None = None
        self._end_asking: Callable[[], object] | None = None
        self._asked_until = math.inf
        # When a call started that had no turn, or long after it had.
        self._started_at: float | None = None
        self._is_wanted = False

    @property
    def next_at(self) -> float:
        """The moment from which on to ask whether the next call may start."""
        if self._turns:
            return self._turns[0]
        return self._alone.next_at if self._is_alone else self._asked_until

    def want(self, now: float, count: int) -> None:
        """Learn that so many calls wait: ask for turns if there are none."""
        if not self._is_wanted:
            self._is_wanted = True
            # Nobody was there to use them.
            while self._turns and now - self._turns[0] > LATENESS:
                self._turns.popleft()
        if self._asked is not None:
            if now >= self._asked_until - EARLY:
                self._give_up(now, self._asked)
        elif not self._turns and not (self._is_alone and now < self._retry_at):
            self._asked_until = now + PATIENCE
            most = max(int(HORIZON / self._interval), 1)
            since = None if self._started_at is None else now - self._started_at
            self._started_at = None
            self._asked = self._request(min(count, most), since)
            self._end_asking = self._ask(self, self._asked)

    def rest(self) -> None:
        """Learn that no call waits any more: turns that pass meanwhile are lost."""
        self._is_wanted = False

    def is_due(self, now: float) -> bool:
        """Whether a call may start."""
        if self._turns:
            return now >= self._turns[0] - EARLY
        return self._is_alone and self._alone.is_due(now)

    def start(self, now: float) -> None:
        """Note that one starts. One that could not wait is counted all the same."""
        self._alone.start(now)
        turn = self._turns.popleft() if self._turns else -math.inf
        if now - turn > LATENESS:
            self._turns.clear()
            self._started_at = now

    def answered(self, now: float, request: Request, turns: Turns) -> None:
        """Learn of turns that the store has reserved."""
        if request is not self._asked:
            return  # too late: they are lost
        self._asked = None
        first = now + turns.wait
        count = request.turns
        self._turns.extend(first + number * self._interval for number in range(count))
        self._mark = turns.mark
        if self._is_alone:
            self._is_alone = False
            # The store knew nothing of what started while it was asked.
            while self._turns and self._turns[0] < self._alone.next_at - LATENESS:
                self._turns.popleft()
            logger.info(
                "The calls of task %s are counted across processes again.",
                self._task_name,
            )

    def failed(self, now: float, request: Request, error: BaseException) -> None:
        """Learn that the store cannot be asked: this process keeps the rate itself."""
        if request is not self._asked:
            return
        self._asked = None
        self._retry_at = now + RETRY_AFTER
        if not self._is_alone:
            self._is_alone = True
            logger.warning(
                "Cannot count the calls of task %s across processes: %s. Each process "
                "keeps the rate by itself until that is possible again.",
                self._task_name,
                brief(error).rstrip("."),
            )

    def interrupted(self, request: Request) -> None:
        """Learn that nobody waits for the answer of the store any more."""
        if request is self._asked:
            self._asked = None

    def give_back(self) -> tuple[Request, str] | None:
        """Give up the turns that are left; `None` if there are none."""
        count = len(self._turns)
        self._turns.clear()
        return (self._request(count, None), self._mark) if count else None

    def _request(self, count: int, started: float | None) -> Request:
        return Request(self._task_name, self._interval, count, started)

    def _give_up(self, now: float, asked: Request) -> None:
        self.failed(now, asked, TimeoutError(f"no answer within {PATIENCE:g} s"))
        assert self._end_asking is not None  # noqa: S101 - the store was asked
        self._end_asking()


#: What a task with a rate has.
AnyPace: TypeAlias = Pace | SharedPace

#: Makes the pace of a task, at a rate; and what is called when another moment than
#: before may be the next one.
MakePace: TypeAlias = "Callable[[Any, str, Callable[[], object]], AnyPace]"


def own_pace(_: Any, rate: str, __: Callable[[], object]) -> AnyPace:
    """Make the pace of a task in this event loop alone."""
    return Pace(rate)


class Paces:
    """The paces of one event loop, and what asks their store.

    :param clock: the time of the calls.
    :param find_store: gives the store, `None` where each process counts for itself.
    :param begin: begins an asyncio task, which is stopped with the receiver.
    """

    def __init__(
        self,
        clock: Clock,
        find_store: Callable[[], RateStore | None],
        begin: Callable[[Coroutine[Any, Any, None]], asyncio.Task[Any]],
    ) -> None:
        self._clock = clock
        self._find_store = find_store
        self._begin = begin
        self._shared: list[tuple[SharedPace, RateStore]] = []

    def make(
        self,
        task: PreparedTask,
        rate: str,
        changed: Callable[[], object],
    ) -> AnyPace:
        """Make the pace of a task.

        :param changed: called when another moment than before may be the next one.
        """
        store = self._find_store()
        if store is None:
            return Pace(rate)

        def ask(pace: SharedPace, request: Request) -> Callable[[], object]:
            asking = self._begin(self._reserve(store, pace, request, changed))
            asking.add_done_callback(lambda _: pace.interrupted(request))
            return asking.cancel

        pace = SharedPace(task.name, rate, ask)
        self._shared.append((pace, store))
        return pace

    async def _reserve(
        self,
        store: RateStore,
        pace: SharedPace,
        request: Request,
        changed: Callable[[], object],
    ) -> None:
        # An eager task runs inside the call that made it: let that be done first.
        await asyncio.sleep(0)
        turns = await contain(store.reserve, request)
        if isinstance(turns, Failed):
            pace.failed(self._clock.time(), request, turns.error)
        else:
            pace.answered(self._clock.time(), request, turns)
        changed()

    async def close(self) -> None:
        """Give back the turns that will not be used, as far as others can have them."""
        for pace, store in self._shared:
            left = pace.give_back()
            if left is not None:
                given: Any = await contain(store.give_back, *left, seconds=PATIENCE)
                if isinstance(given, Failed):
                    logger.debug("Cannot give turns back: %s.", brief(given.error))
