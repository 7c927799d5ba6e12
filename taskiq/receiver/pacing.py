"""When messages of plain tasks that have a rate may start.

Each task has a line of its own. The first of it is called when the next start is due,
and the one behind it only after that has started: however long it waits for a slot
then, no two start closer to each other than the rate says.

Who waits gives its turn at the broker back, so that others are read meanwhile: up to
`SHARE` messages of a task. Of those beyond one steps aside each second, so that what a
process holds stays bounded by more than a rate.
"""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING, Final

from taskiq.rates import SHARE
from taskiq.receiver.paces import own_pace
from taskiq.receiver.states import MessageState

if TYPE_CHECKING:
    from collections.abc import Callable

    from taskiq.clock import Alarm, Clock
    from taskiq.receiver.delivery import Delivery
    from taskiq.receiver.paces import AnyPace, MakePace
    from taskiq.receiver.prepared import PreparedTask

#: Seconds that one beyond them waits until it steps aside, too.
_PATIENCE: Final = 1.0


class _Line:
    """Those of one task that wait, and the one that was called and has not started."""

    __slots__ = (
        "alarm",
        "aside",
        "called",
        "in_the_way",
        "pace",
        "share_alarm",
        "waiting",
    )

    def __init__(self) -> None:
        self.pace: AnyPace
        # How many of them hold no slot, and those who do, in order.
        self.aside = 0
        self.in_the_way: collections.OrderedDict[Delivery, None] = (
            collections.OrderedDict()
        )
        # Armed exactly while there is one.
        self.share_alarm: Alarm | None = None
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
        self._held: dict[Delivery, None] = {}
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
            self._held[delivery] = None
        line.waiting[delivery] = go
        self._call_next(line)
        if delivery in self._held:
            line.in_the_way[delivery] = None
            self._make_way(line)

    def started(self, delivery: Delivery) -> None:
        """Learn that a message that was called starts now."""
        line = self._line(delivery)
        line.pace.start(self._clock.time())
        line.called = None
        self._call_next(line)

    def leave(self, delivery: Delivery) -> None:
        """Learn that a message does not wait any more, called or not."""
        line = self._line(delivery)
        if line.waiting.pop(delivery, None) is not None:
            self._out_of_line(line, delivery)
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
        held, self._held = list(self._held), {}
        # The last first: those in the way have nobody to make way for any more.
        for delivery in reversed(held):
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
                self._held.pop(line.called, None)
                self._out_of_line(line, line.called)
                go()
            else:
                line.alarm = self._clock.call_at(
                    line.pace.next_at,
                    lambda: self._call_next(line),
                )
        elif line.called is None:
            line.pace.rest()
        self._tell_if_empty()

    def _out_of_line(self, line: _Line, delivery: Delivery) -> None:
        """Give the place of one that does not wait any more to another."""
        if delivery in line.in_the_way:
            del line.in_the_way[delivery]
        elif delivery.state is MessageState.PACED:
            line.aside -= 1
        self._make_way(line)

    def _make_way(self, line: _Line) -> None:
        """Have those step aside who may, and the others wait for that."""
        while line.in_the_way and line.aside < SHARE:
            self._step_aside(line)
        if line.share_alarm is not None and not line.in_the_way:
            line.share_alarm.cancel()
            line.share_alarm = None
        elif line.share_alarm is None and line.in_the_way:
            line.share_alarm = self._clock.call_at(
                self._clock.time() + _PATIENCE,
                lambda: self._waited(line),
            )

    def _waited(self, line: _Line) -> None:
        line.share_alarm = None
        self._step_aside(line)
        self._make_way(line)

    @staticmethod
    def _step_aside(line: _Line) -> None:
        delivery, _ = line.in_the_way.popitem(last=False)
        line.aside += 1
        delivery.steps_aside()

    def _tell_if_empty(self) -> None:
        then = self._when_empty
        if then is not None and not self._held:
            self._when_empty = None
            then()
