"""When messages of plain tasks that have a rate may start.

Each task has a line of its own. The first of it is called when the next start is due,
and the one behind it only after that has started: however long it waits for a slot
then, no two start closer to each other than the rate says.
"""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING

from taskiq.receiver.paces import own_pace

if TYPE_CHECKING:
    from collections.abc import Callable

    from taskiq.clock import Alarm, Clock
    from taskiq.receiver.delivery import Delivery
    from taskiq.receiver.paces import AnyPace, MakePace
    from taskiq.receiver.prepared import PreparedTask


class _Line:
    """Those of one task that wait, and the one that was called and has not started."""

    __slots__ = ("alarm", "called", "pace", "waiting")

    def __init__(self) -> None:
        self.pace: AnyPace
        self.waiting: collections.OrderedDict[Delivery, Callable[[], object]] = (
            collections.OrderedDict()
        )
        self.called: Delivery | None = None
        # Armed exactly while somebody waits for the rate, and not for who was called.
        self.alarm: Alarm | None = None


class Pacing:
    """The lines of one event loop.

    :param clock: source of time and of alarms.
    :param make_pace: makes the pace of a task.
    """

    def __init__(self, clock: Clock, make_pace: MakePace = own_pace) -> None:
        self._clock = clock
        self._make_pace = make_pace
        self._lines: dict[PreparedTask, _Line] = {}
        # Those who wait here and nowhere else: no asyncio task is theirs.
        self._held: set[Delivery] = set()
        self._when_empty: Callable[[], object] | None = None

    @property
    def is_used(self) -> bool:
        """Whether a task with a rate has had a message."""
        return bool(self._lines)

    def enter(
        self,
        delivery: Delivery,
        go: Callable[[], object],
        *,
        is_held: bool,
    ) -> None:
        """Let a message wait for its turn.

        :param go: called once, perhaps at once: it may start now. Whoever does that
            calls `started`, or `leave` if it does not start.
        :param is_held: whether nothing else knows of it until it is called.
        """
        line = self._line(delivery)
        if is_held:
            self._held.add(delivery)
        line.waiting[delivery] = go
        self._call_next(line)

    def started(self, delivery: Delivery) -> None:
        """Learn that a message that was called starts now."""
        line = self._line(delivery)
        line.pace.start(self._clock.time())
        line.called = None
        self._call_next(line)

    def leave(self, delivery: Delivery) -> None:
        """Learn that a message does not wait any more, called or not."""
        line = self._line(delivery)
        line.waiting.pop(delivery, None)
        if line.called is delivery:
            line.called = None
        self._call_next(line)

    def when_empty(self, then: Callable[[], object]) -> None:
        """Call `then` when nobody is held any more, which may be at once."""
        self._when_empty = then
        self._tell_if_empty()

    def abandon(self) -> list[Delivery]:
        """Let go of all who are held, and of who wants to know of their end.

        :returns: those who were held.
        """
        self._when_empty = None
        held, self._held = list(self._held), set()
        for delivery in held:
            self.leave(delivery)
        for line in self._lines.values():
            # Who was called may have been discarded, before it started.
            if line.called is not None and line.called.is_over:
                self.leave(line.called)
        return held

    def _line(self, delivery: Delivery) -> _Line:
        task = delivery.task
        assert task is not None  # noqa: S101
        line = self._lines.get(task)
        if line is None:
            assert task.rate is not None  # noqa: S101
            line = self._lines[task] = made = _Line()
            made.pace = self._make_pace(task, task.rate, lambda: self._call_next(made))
        return line

    def _call_next(self, line: _Line) -> None:
        if line.alarm is not None:
            line.alarm.cancel()
            line.alarm = None
        if line.called is None and line.waiting:
            now = self._clock.time()
            line.pace.want(now, len(line.waiting))
            if line.pace.is_due(now):
                line.called, go = line.waiting.popitem(last=False)
                self._held.discard(line.called)
                go()
            else:
                line.alarm = self._clock.call_at(
                    line.pace.next_at,
                    lambda: self._call_next(line),
                )
        elif line.called is None:
            line.pace.rest()
        self._tell_if_empty()

    def _tell_if_empty(self) -> None:
        then = self._when_empty
        if then is not None and not self._held:
            self._when_empty = None
            then()
