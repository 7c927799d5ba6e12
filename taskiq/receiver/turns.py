"""Which calls may run beside one that may kill its process.

A suspect is a message that ran in a process that died. With the suspects of all deaths
running side by side the one that kills would take the others along each time, up to
their `max_deliveries`. So ever fewer of them run at once, and one that is delivered for
the last time runs alone in its process: if that dies, it was that message.

`Gate` decides; `Turns` waits. To wait for the end of what runs can take for ever, and
what waits for a result may be waiting for a call that is kept waiting here. So a call
runs alone as far as that can be had within some seconds, and while calls wait for
results, others may begin.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from taskiq.clock import Clock

#: Seconds after which a call that is to run alone begins beside those that go on.
_PATIENCE: Final = 30.0


class Turn(NamedTuple):
    """What a suspect may run beside.

    :ivar most: so many calls of suspects at once, itself included.
    :ivar is_alone: whether no call at all is to run meanwhile.
    """

    most: int
    is_alone: bool = False


class Gate:
    """The calls of one process that run now, and which may begin beside them.

    :ivar calls: how many run, of suspects or not.
    """

    def __init__(self) -> None:
        self.calls = 0
        self._suspects: list[int] = []
        self._is_one_alone = False

    @property
    def is_one_alone(self) -> bool:
        """Whether one runs that is to run alone."""
        return self._is_one_alone

    def may_begin(
        self, turn: Turn | None, *, is_open: bool = False, is_late: bool = False
    ) -> bool:
        """Say whether a call may begin now.

        :param turn: of a suspect; `None` for any other call.
        :param is_open: whether a call that runs waits for a result.
        :param is_late: whether this one has waited for long enough.
        """
        if self._is_one_alone and not (is_open and turn is None):
            return False
        if turn is None:
            return True
        if turn.is_alone:
            return is_late or not self.calls
        return len(self._suspects) < min([turn.most, *self._suspects])

    def begin(self, turn: Turn | None) -> None:
        """Note that a call begins."""
        self.calls += 1
        if turn is not None:
            self._suspects.append(turn.most)
            self._is_one_alone = self._is_one_alone or turn.is_alone

    def end(self, turn: Turn | None) -> None:
        """Note that a call has ended."""
        self.calls -= 1
        if turn is not None:
            self._suspects.remove(turn.most)
            self._is_one_alone = self._is_one_alone and not turn.is_alone


class _Waiter:
    def __init__(self, turn: Turn | None, begins: asyncio.Future[None]) -> None:
        self.turn = turn
        self.begins = begins
        self.is_late = False


class Turns:
    """Lets calls begin, in the order they came as far as they may.

    :param clock: for those that have to wait long.
    :param is_open: whether a call that runs waits for a result.
    :ivar is_asked: whether a call that is of no suspect may have to wait.
    """

    def __init__(self, clock: Clock, is_open: Callable[[], bool]) -> None:
        self.gate = Gate()
        self.is_asked = False
        self._clock = clock
        self._is_open = is_open
        self._waiting: list[_Waiter] = []

    async def enter(self, turn: Turn | None) -> bool:
        """Wait until a call may begin. It has to `leave` then.

        :param turn: of a suspect; `None` for any other call.
        :returns: whether it may have waited for others.
        """
        if turn is None and not self.is_asked:
            self.gate.begin(None)
            return False
        waiter = _Waiter(turn, asyncio.get_running_loop().create_future())
        self._waiting.append(waiter)

        def hurry() -> None:
            waiter.is_late = True
            self.look()

        alarm = None
        if turn is not None and turn.is_alone:
            alarm = self._clock.call_at(self._clock.time() + _PATIENCE, hurry)
        self.look()
        try:
            await waiter.begins
        except asyncio.CancelledError:
            if waiter in self._waiting:
                self._waiting.remove(waiter)
            else:
                self.gate.end(turn)
            self.look()
            raise
        finally:
            if alarm is not None:
                alarm.cancel()
        return True

    def leave(self, turn: Turn | None) -> None:
        """Let a call have ended, and others begin."""
        if turn is None:
            self.gate.calls -= 1
        else:
            self.gate.end(turn)
        if self.is_asked or self._waiting:
            self.look()

    def look(self) -> None:
        """Let begin what may: to be called, too, when a call begins to wait."""
        is_open = self._is_open()
        left: list[_Waiter] = []
        for waiter in self._waiting:
            turn = waiter.turn
            may_begin = not waiter.begins.done() and self.gate.may_begin(
                turn, is_open=is_open, is_late=waiter.is_late
            )
            if may_begin and not _is_behind(left, turn, is_open=is_open):
                self.gate.begin(turn)
                waiter.begins.set_result(None)
            else:
                left.append(waiter)
        self._waiting = left
        self.is_asked = self.gate.is_one_alone or any(
            each.turn is not None and each.turn.is_alone for each in left
        )


def _is_behind(waiting: list[_Waiter], turn: Turn | None, *, is_open: bool) -> bool:
    """Whether those that wait already would never begin if others did before them."""
    suspects = [each.turn for each in waiting if each.turn is not None]
    if turn is not None:
        return bool(suspects)
    return not is_open and any(each.is_alone for each in suspects)
