"""Where a message or a batch stands, and what it holds there.

Everything a receiver must not lose track of is in these two tables: which moves there
are, and which units of capacity each state holds. Units are given back by
:meth:`Holder.move`, for the difference between two states, and nowhere else. The
diagram in docs/design.md is drawn from the tables.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping


class Unit(enum.Enum):
    """What a message or a batch holds of its worker."""

    READ = enum.auto()  # the only turn at the broker of a worker without a limit
    DELIVERY = enum.auto()  # one of `max_async_tasks + max_prefetch`
    EXECUTION = enum.auto()  # one of `max_async_tasks`
    PLACE = enum.auto()  # one of its task's `batch_max_buffered`
    CALL = enum.auto()  # one of its task's `batch_concurrency`

    # A member is only ever itself; an enum would hash its name, in Python, at each use.
    __hash__ = object.__hash__


class MessageState(enum.Enum):
    """Where one message stands.

    What a buffered message does while it runs and is settled is its batch's.
    """

    READ = "it is being read, or waits to be started"
    ADMITTING = "hooks before its task run"
    WAITING = "its batch task holds as many messages as it may"
    PARKED = "it has waited for `batch_timeout`, and others are read meanwhile"
    PACED = "it waits for the rate of its plain task, and others are read meanwhile"
    BUFFERED = "it is in a batch"
    RUNNING = "its task runs"
    SETTLING = "its result is saved, and it is acknowledged"
    DONE = "it has its outcome"
    LEFT = "it is given up without an acknowledgement: the broker delivers it again"

    #: What the tables below say of it: looked up for every move of every message.
    moves: frozenset[MessageState]
    holds: frozenset[Unit]

    __hash__ = object.__hash__


class BatchState(enum.Enum):
    """Where one batch stands."""

    FILLING = "it takes members; its alarm is armed"
    DUE = "it has a reason to leave, and goes on taking members until it may start"
    FULL = "it takes no more members, and waits until it may start"
    SEALED = "it may start"
    RUNNING = "the task function has the items"
    SETTLING = "its members are saved and acknowledged"
    SETTLED = "no member is left in it"

    moves: frozenset[BatchState]
    holds: frozenset[Unit]

    __hash__ = object.__hash__


State: TypeAlias = MessageState | BatchState

_M, _B = MessageState, BatchState

#: Every legal move; any other is a bug of the caller.
MOVES: Final[Mapping[Any, frozenset[Any]]] = {
    _M.READ: frozenset(
        {_M.ADMITTING, _M.WAITING, _M.BUFFERED, _M.RUNNING, _M.SETTLING, _M.LEFT},
    ),
    _M.ADMITTING: frozenset(
        {_M.WAITING, _M.PACED, _M.BUFFERED, _M.RUNNING, _M.SETTLING, _M.LEFT},
    ),
    _M.PACED: frozenset({_M.ADMITTING, _M.LEFT}),
    _M.WAITING: frozenset({_M.PARKED, _M.BUFFERED, _M.SETTLING, _M.LEFT}),
    _M.PARKED: frozenset({_M.BUFFERED, _M.SETTLING, _M.LEFT}),
    # It is settled by itself when it is aborted, else by its batch.
    _M.BUFFERED: frozenset({_M.SETTLING, _M.DONE, _M.LEFT}),
    _M.RUNNING: frozenset({_M.SETTLING, _M.LEFT}),
    _M.SETTLING: frozenset({_M.DONE, _M.LEFT}),
    _M.DONE: frozenset(),
    _M.LEFT: frozenset(),
    _B.FILLING: frozenset({_B.DUE, _B.FULL, _B.SEALED, _B.SETTLED}),
    _B.DUE: frozenset({_B.FULL, _B.SEALED, _B.SETTLED}),
    _B.FULL: frozenset({_B.SEALED, _B.SETTLED}),
    _B.SEALED: frozenset({_B.RUNNING, _B.SETTLING}),
    _B.RUNNING: frozenset({_B.SETTLING}),
    _B.SETTLING: frozenset({_B.SETTLED}),
    _B.SETTLED: frozenset(),
}

_NOTHING: Final[frozenset[Unit]] = frozenset()
_STARTED: Final = frozenset({Unit.DELIVERY, Unit.EXECUTION})
_CALLED: Final = frozenset({Unit.EXECUTION, Unit.CALL})

#: What each state holds, of what it was given on the way there.
HOLDS: Final[Mapping[Any, frozenset[Unit]]] = {
    _M.READ: frozenset({Unit.READ, *_STARTED}),
    _M.ADMITTING: _STARTED,
    _M.WAITING: frozenset({Unit.DELIVERY}),
    _M.PARKED: _NOTHING,
    _M.PACED: _NOTHING,
    _M.BUFFERED: frozenset({Unit.PLACE}),
    _M.RUNNING: _STARTED,
    _M.SETTLING: _STARTED,
    _M.DONE: _NOTHING,
    _M.LEFT: _NOTHING,
    _B.FILLING: _NOTHING,
    _B.DUE: _NOTHING,
    _B.FULL: _NOTHING,
    _B.SEALED: _CALLED,
    _B.RUNNING: _CALLED,
    _B.SETTLING: _NOTHING,
    _B.SETTLED: _NOTHING,
}

for _state in MOVES:
    _state.moves, _state.holds = MOVES[_state], HOLDS[_state]

#: A message in one of these belongs to its batch: whoever took it there is done.
IN_BATCH: Final = frozenset({_M.WAITING, _M.PARKED, _M.BUFFERED})
#: A message of a batch task in one of these is on its way to its batch.
JOINING: Final = frozenset({_M.READ, _M.ADMITTING})
#: Nothing more comes of a message in one of these.
ENDED: Final = frozenset({_M.DONE, _M.LEFT})


class Source(Protocol):
    """Where a unit came from: a semaphore, or what counts by itself."""

    def release(self) -> Any:
        """Take one unit back."""


class Holder:
    """Something in a state, with the units it holds there: two of them at most."""

    # Written out: a container for each message would be work for the garbage collector.
    # There is no second unit without a first one.
    __slots__ = ("source", "source_2", "state", "unit", "unit_2")

    def __init__(self, state: Any) -> None:
        self.state = state
        self.unit: Unit | None = None
        self.unit_2: Unit | None = None
        self.source: Any = None
        self.source_2: Any = None

    def hold(self, unit: Unit, source: Source) -> None:
        """Take over one unit that the caller has acquired from `source`."""
        if self.unit is None:
            self.unit, self.source = unit, source
        else:
            self.unit_2, self.source_2 = unit, source

    def take_over(self, other: Holder) -> None:
        """Hold what another one has held."""
        if other.unit is not None:
            self.hold(other.unit, other.source)
        if other.unit_2 is not None:
            self.hold(other.unit_2, other.source_2)
        other.unit = other.unit_2 = other.source = other.source_2 = None

    def move(self, state: Any) -> None:
        """Go to `state`, and give back what is not held there.

        :raises RuntimeError: when `MOVES` does not allow it; nothing is changed.
        """
        if state not in self.state.moves:
            raise RuntimeError(f"no way from {self.state} to {state}")
        self.state = state
        unit = self.unit
        if unit is None:
            return
        if self.unit_2 is not None:
            self._give_back_of_two(state.holds)
        elif unit not in state.holds:
            source = self.source
            self.unit = self.source = None
            source.release()

    def _give_back_of_two(self, kept: frozenset[Unit]) -> None:
        units = (self.unit, self.source), (self.unit_2, self.source_2)
        self.unit = self.unit_2 = self.source = self.source_2 = None
        for unit, source in units:
            if unit in kept:
                self.hold(unit, source)
        # At last: it may look at this, or move it on.
        for unit, source in reversed(units):
            if unit not in kept:
                source.release()
