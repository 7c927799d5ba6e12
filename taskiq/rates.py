"""How often calls may start: what a task says of it, and the next moment for one."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from taskiq.exceptions import TaskiqRateError
from taskiq.stores import offered

if TYPE_CHECKING:
    from collections.abc import Mapping

    from taskiq.stores import Owner

__all__ = ["RateStore", "Request", "Turns"]

#: The keyword of a decorator that is read here.
RATE_ARGUMENTS: Final = ("rate",)

#: What a rate may be, for errors.
ALLOWED_RATES: Final = (
    'it must be text: so many calls per second, minute or hour, as in "2/s", "100/m" '
    'or "10/h"'
)

_SECONDS: Final = {"s": 1, "m": 60, "h": 3600}
_RATE: Final = re.compile(r"([0-9]{1,9})/([smh])")

#: Seconds a call may be late without the later ones being late, too: event loops are
#: never on time. Whoever comes later has been idle, and gets nothing for that.
LATENESS: Final = 0.05

#: How many messages of a plain task wait for its rate while a worker reads on: as many
#: as a batch task holds where nothing else is said.
SHARE: Final = 1000

#: Seconds that an alarm may ring early: clocks are as coarse as this at most.
EARLY: Final = 1e-6


def read_interval(rate: Any) -> float:
    """Read a rate.

    :returns: the seconds from one call to the next.
    :raises ValueError: when it is none, saying what is allowed.
    """
    found = _RATE.fullmatch(rate) if isinstance(rate, str) else None
    if found is None or int(found[1]) == 0:
        raise ValueError(ALLOWED_RATES)
    return _SECONDS[found[2]] / int(found[1])


def split_rate(
    task_name: str,
    keywords: Mapping[str, Any],
    earlier: str | None,
) -> tuple[dict[str, Any], str | None]:
    """Tell the rate of a plain task from its other keywords.

    :param earlier: the rate that the task was registered with before.
    :returns: the other keywords, and the rate, `None` where nothing is said.
    :raises TaskiqRateError: when it is none, or the task is a batch task.
    """
    rest = dict(keywords)
    rate = rest.pop("rate", None)
    if rate is None:
        return rest, earlier
    allowed = "a batch task says it with batch_rate="
    try:
        read_interval(rate)
        if rest.get("batch") is not True:
            return rest, str(rate)
    except ValueError as exc:
        allowed = str(exc)
    raise TaskiqRateError(task_name=task_name, value=rate, allowed=allowed)


class Pace:
    """Spreads calls evenly: pure arithmetic over moments of whoever has a clock.

    It is the Generic Cell Rate Algorithm of ITU-T I.371 as virtual scheduling: the next
    moment is its theoretical arrival time, and `LATENESS` its tolerance.

    Any `n` intervals have `n` calls at most, and one more where the first was late. So
    "60/m" never has two calls within a second, however long there was none before.

    :param rate: such as "2/s".
    :raises ValueError: when it is none.
    :ivar next_at: the moment from which on the next call may start.
    """

    __slots__ = ("_interval", "next_at")

    def __init__(self, rate: str) -> None:
        self._interval = read_interval(rate)
        self.next_at = -math.inf

    def want(self, now: float, count: int) -> None:
        """Learn that so many calls wait: here the next moment is known."""

    def rest(self) -> None:
        """Learn that no call waits any more."""

    def is_due(self, now: float) -> bool:
        """Whether a call may start."""
        return now >= self.next_at - EARLY

    def start(self, now: float) -> None:
        """Note that one starts. One that could not wait is counted all the same."""
        is_on_time = now - self.next_at <= LATENESS
        self.next_at = (self.next_at if is_on_time else now) + self._interval


# -- Across processes -----------------------------------------------------------------


class Request(NamedTuple):
    """What is asked of a store: turns of a task that nobody else has.

    :ivar task_name: whose calls they are for.
    :ivar interval: seconds from one turn to the next.
    :ivar turns: how many, 1 at least.
    :ivar started: how many seconds ago a call began without a turn, or long after it;
        `None` if none has.
    """

    task_name: str
    interval: float
    turns: int
    started: float | None


class Turns(NamedTuple):
    """What a store has reserved: the turns follow one another, an interval apart.

    :ivar wait: seconds until the first; below 0 if that is over, by `LATENESS` at most.
    :ivar mark: for `give_back`; says whether others have reserved something since.
    """

    wait: float
    mark: str


class RateStore(ABC):
    """Counts the calls of tasks with a rate, for all processes that run them.

    It is asked for turns in advance: who has one sleeps until then, and asks nothing
    meanwhile. Turns that nobody uses are lost, and no more than that.
    """

    @abstractmethod
    async def reserve(self, request: Request) -> Turns:
        """Reserve the next turns of a task, in one step for whoever looks on.

        The first one is an interval after the last that was reserved, whoever has it,
        and after the call that began without one. If that was over more than
        `LATENESS` ago, it is now: who has been idle gets nothing for that.
        """

    async def give_back(self, request: Request, mark: str) -> None:  # noqa: B027
        """Take back turns that will not be used, if they are the last ones.

        A store that does nothing loses them.

        :param request: as for `reserve`, with the number of turns to give back.
        """


def store_of(broker: Owner) -> RateStore | None:
    """Give the store of a broker: its own, or that of its result backend."""
    for store in offered(broker, "rate_store"):
        if isinstance(store, RateStore):
            return store
    return None
