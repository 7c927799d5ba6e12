"""What a process was running when it died, kept where its death does not take it.

The main process of the worker command shares memory with each of its processes. They
note the batch calls that they begin, and the calls of plain tasks whose messages are
delivered a limited number of times; after a death it reads what had not ended, and
notes that for all of its processes. A call costs one copy of its ids, and no system
call. What is noted is of the last hour, on one machine: other machines know nothing.
"""

from __future__ import annotations

import json
import struct
import time
from ctypes import addressof, c_char, memmove
from dataclasses import dataclass
from multiprocessing.sharedctypes import RawArray
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

#: Calls that a process can note at once: of batches, of some 400 ids, and of one
#: message; and the bytes of each.
_SLOTS: Final = 32
_SLOT_SIZE: Final = 16 * 1024
_SMALL_SLOTS: Final = 1000
_SMALL_SLOT_SIZE: Final = 256
#: Bytes for all deaths that are remembered.
_DEATHS_SIZE: Final = 256 * 1024
#: Seconds after which a death says nothing of what is delivered again.
REMEMBERED: Final = 3600.0

#: Between the name of a task and each of the ids. One that has it is not noted.
_BETWEEN: Final = "\0"

_NUMBER: Final = struct.Struct("I")
_NUMBERS: Final = struct.Struct("II")


class Call(NamedTuple):
    """A call that has begun, of a batch or of a plain task.

    :ivar task_name: the name of its task.
    :ivar ids: those of its messages.
    """

    task_name: str
    ids: Sequence[str]


def together(calls: Sequence[Call]) -> list[Call]:
    """Put calls of one message together by their task, of which there may be many."""
    alone: dict[str, list[str]] = {}
    for call in calls:
        if len(call.ids) == 1:
            alone.setdefault(call.task_name, []).extend(call.ids)
    others = [call for call in calls if len(call.ids) != 1]
    return [*others, *(Call(name, ids) for name, ids in alone.items())]


@dataclass(frozen=True, slots=True)
class Death:
    """A process died that was not told to end.

    :ivar moment: when, in seconds since 1970.
    :ivar ids: those of the messages that it was running; `None` if that is not known.
    """

    moment: float
    ids: frozenset[str] | None


class RunningCalls:
    """The calls that one process has going: it writes, and its main process reads.

    It can be given to a process that is started, and shares its memory with that.
    """

    def __init__(self) -> None:
        self._memory: Any = RawArray(c_char, _offset(_SLOTS + _SMALL_SLOTS))
        self._free = list(range(_SLOTS))
        self._small = list(range(_SLOTS, _SLOTS + _SMALL_SLOTS))
        self._left_out = 0

    def begin(self, task_name: str, ids: Sequence[str]) -> int | None:
        """Note that a call begins.

        :returns: what `end` is to be given.
        """
        told = _BETWEEN.join((task_name, *ids)).encode("utf-8", "surrogatepass")
        size = len(told) + _NUMBER.size
        free = self._small if size <= _SMALL_SLOT_SIZE and self._small else self._free
        if not free or size > _SLOT_SIZE or told.count(b"\0") != len(ids):
            self._leave_out(1)
            return None
        slot = free.pop()
        offset = _offset(slot)
        memmove(addressof(self._memory) + offset + _NUMBER.size, told, len(told))
        # Last: who dies before has not begun the call.
        _NUMBER.pack_into(self._memory, offset, len(told))
        return slot

    def end(self, slot: int | None) -> None:
        """Note that a call has ended."""
        if slot is None:
            self._leave_out(-1)
            return
        _NUMBER.pack_into(self._memory, _offset(slot), 0)
        (self._free if slot < _SLOTS else self._small).append(slot)

    def _leave_out(self, more: int) -> None:
        self._left_out += more
        _NUMBER.pack_into(self._memory, 0, self._left_out)

    def read(self) -> list[Call] | None:
        """Give the calls that have begun and not ended; `None` if not all are known."""
        if _NUMBER.unpack_from(self._memory, 0)[0]:
            return None
        calls: list[Call] = []
        for slot in range(_SLOTS + _SMALL_SLOTS):
            offset = _offset(slot)
            [length] = _NUMBER.unpack_from(self._memory, offset)
            if length:
                begin = offset + _NUMBER.size
                told = self._memory[begin : begin + length]
                name, *ids = told.decode("utf-8", "surrogatepass").split(_BETWEEN)
                calls.append(Call(name, ids))
        return calls


def _offset(slot: int) -> int:
    large = min(slot, _SLOTS)
    return _NUMBER.size + large * _SLOT_SIZE + (slot - large) * _SMALL_SLOT_SIZE


class Deaths:
    """The deaths of the last hour: the main process writes, its processes read.

    :param clock: seconds since 1970.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._memory: Any = RawArray(c_char, _DEATHS_SIZE)
        self._clock = clock
        self._edition = 0
        self._known: list[Death] = []

    def note(self, calls: Sequence[Call] | None) -> None:
        """Note that a process has died while it was running these calls."""
        ids = (
            None if calls is None else frozenset(i for call in calls for i in call.ids)
        )
        self._known = [*self.recent(), Death(self._clock(), ids)]
        # The oldest go where there is no room for all.
        while len(told := _written(self._known)) > _DEATHS_SIZE - _NUMBERS.size:
            del self._known[0]
        self._edition += 2
        # Odd while it is written: nobody is to read that.
        _NUMBER.pack_into(self._memory, 0, self._edition - 1)
        struct.pack_into(f"{len(told)}s", self._memory, _NUMBERS.size, told)
        _NUMBERS.pack_into(self._memory, 0, self._edition, len(told))

    def recent(self) -> list[Death]:
        """Give the deaths of the last hour, the oldest first."""
        edition, length = _NUMBERS.unpack_from(self._memory, 0)
        if edition != self._edition and edition % 2 == 0:
            told = self._memory[_NUMBERS.size : _NUMBERS.size + length]
            if _NUMBERS.unpack_from(self._memory, 0)[0] == edition:
                self._known = _read(told)
                self._edition = edition
        since = self._clock() - REMEMBERED
        return [death for death in self._known if death.moment > since]


def _written(deaths: Sequence[Death]) -> bytes:
    told = [
        (each.moment, None if each.ids is None else sorted(each.ids)) for each in deaths
    ]
    return json.dumps(told).encode()


def _read(told: bytes) -> list[Death]:
    return [
        Death(moment, None if ids is None else frozenset(ids))
        for moment, ids in json.loads(told)
    ]


class Shared(NamedTuple):
    """What a process shares with its main process."""

    running: RunningCalls
    deaths: Deaths


#: What this process shares; `None` in one that no main process has started.
_own: Shared | None = None


def share(shared: Shared) -> None:
    """Let this process note its calls, and know of deaths."""
    global _own  # noqa: PLW0603 - one process has one main process
    _own = shared


def shared() -> Shared | None:
    """Give what this process shares with its main process, if there is one."""
    return _own
