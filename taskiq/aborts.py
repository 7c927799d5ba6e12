"""Aborting messages: what was marked, and where marks are kept.

A mark says that the message of an id is not to run any more. Whoever aborts sets it in
an :class:`AbortStore`; a process that runs messages hears of it and keeps what it has
heard in :class:`Aborts`, so that a look costs no round trip.
"""

from __future__ import annotations

import threading
import time
import weakref
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Final, Protocol

from taskiq.stores import offered

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from taskiq.stores import Owner

__all__ = ["AbortStore", "Aborts", "InMemoryAborts", "aborts_of", "store_of"]

#: Seconds that a mark lasts unless somebody says otherwise: a day.
MARK_SECONDS: Final = 86_400.0


class Listener(Protocol):
    """What holds messages, and is told which of them are aborted."""

    def heard(self, task_ids: Collection[str], /) -> None:
        """Learn of new marks; called from any thread."""


class Aborts:
    """The marks one process has heard of.

    :param ttl: seconds that a mark lasts from when it is heard, if that is not told.
    :param clock: gives the time in seconds, and never goes back.
    :ivar ttl: as given.
    :ivar is_current: whether every mark is heard at once: nothing else need be asked.
    """

    def __init__(
        self,
        ttl: float = MARK_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.is_current = False
        self.ttl = ttl
        self._clock = clock
        # When each mark ends. Mostly in order, as mostly all last equally long.
        self._ends: dict[str, float] = {}
        self._listeners: weakref.WeakSet[Listener] = weakref.WeakSet()
        self._lock = threading.Lock()

    def __bool__(self) -> bool:
        return bool(self._ends)

    def __len__(self) -> int:
        return len(self._ends)

    def __contains__(self, task_id: str) -> bool:
        ends = self._ends.get(task_id)
        return ends is not None and ends > self._clock()

    def attach(self, listener: Listener) -> None:
        """Tell a listener of each new mark, for as long as somebody else holds it."""
        with self._lock:
            self._listeners.add(listener)

    def hear(self, task_ids: Iterable[str]) -> None:
        """Note marks that were set just now."""
        self.hear_until(dict.fromkeys(task_ids, self.ttl))

    def hear_until(self, seconds_left: Mapping[str, float]) -> None:
        """Note marks by the seconds that they still last."""
        now = self._clock()
        with self._lock:
            self._forget_ended(now)
            new = {task_id for task_id in seconds_left if task_id not in self._ends}
            for task_id, seconds in seconds_left.items():
                self._ends.pop(task_id, None)  # to the end: they are in order
                self._ends[task_id] = now + seconds
            listeners = list(self._listeners) if new else []
        for listener in listeners:
            listener.heard(new)

    def _forget_ended(self, now: float) -> None:
        while self._ends:
            oldest = next(iter(self._ends))
            if self._ends[oldest] > now:
                return
            del self._ends[oldest]


class AbortStore(ABC):
    """Where marks are kept for the processes that run messages.

    :param ttl: seconds that a mark lasts. Whatever is delivered under its id meanwhile
        is aborted, retries and redeliveries included.
    :raises ValueError: when that is no positive number.
    :ivar aborts: the marks this process has heard of.
    """

    #: Whether a process hears only of its own marks, which nobody has to bring.
    is_local: ClassVar[bool] = False

    def __init__(self, ttl: float = MARK_SECONDS) -> None:
        self.aborts = Aborts()
        self.ttl = ttl

    @property
    def ttl(self) -> float:
        """Seconds that a mark lasts; a positive number."""
        return self.aborts.ttl

    @ttl.setter
    def ttl(self, seconds: float) -> None:
        if not seconds > 0:
            raise ValueError(
                f"ttl must be a positive number of seconds, got {seconds!r}",
            )
        self.aborts.ttl = seconds

    @abstractmethod
    async def mark(self, task_id: str) -> None:
        """Set a mark, and tell the processes that follow."""

    @abstractmethod
    async def look(self, task_ids: Sequence[str]) -> Collection[str]:
        """Say which of these ids are marked: asked while nothing is followed."""

    @abstractmethod
    async def follow(self) -> None:
        """Subscribe, and let `aborts` hear of each mark, those set before included.

        `aborts.is_current` is to be set once that is so. It returns or raises when the
        subscription is lost, and is called again then.
        """


class InMemoryAborts(AbortStore):
    """Keeps marks in this process, for each of its threads and event loops."""

    is_local = True

    def __init__(self, ttl: float = MARK_SECONDS) -> None:
        super().__init__(ttl)
        self.aborts.is_current = True

    async def mark(self, task_id: str) -> None:
        """Set a mark."""
        self.aborts.hear((task_id,))

    async def look(self, task_ids: Sequence[str]) -> Collection[str]:
        """Say which of these ids are marked."""
        return {task_id for task_id in task_ids if task_id in self.aborts}

    async def follow(self) -> None:
        """Do nothing: every mark is heard where it is set."""


def store_of(broker: Owner) -> AbortStore | None:
    """Give the store of a broker: its own, or that of its result backend."""
    for store in offered(broker, "abort_store"):
        if isinstance(store, AbortStore):
            return store
    return None


def aborts_of(broker: Owner) -> Aborts | None:
    """Give the marks this process has heard of, `None` where there is no store."""
    store = store_of(broker)
    return None if store is None else store.aborts
