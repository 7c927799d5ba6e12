"""What happened while a schedule was played, for each event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from unittest import mock

from taskiq import (
    TaskiqResult,
)
from taskiq.batch import BatcherStatistics, BatchInfo, FlushReason
from taskiq.receiver.batcher import Batch
from taskiq.receiver.delivery import Delivery
from taskiq.receiver.states import BatchState, MessageState
from tests.batching.schedules import (
    Entrance,
    Kind,
    Schedule,
    Stop,
    runs_of,
)

#: Whose context it is: set by who sends a message, an own callback and `pre_execute`.
current: ContextVar[int | None] = ContextVar("current", default=None)


@dataclass(frozen=True)
class Event:
    """Something that happened to a message.

    :ivar seen: whose context it happened in.
    """

    index: int
    time: float
    step: str
    number: int
    seen: int | None


@dataclass
class CallRecord:
    """One call of a task function."""

    kind: Kind
    numbers: tuple[int, ...]
    key: int
    started: Event
    ended: Event | None = None
    acked_by_hand: list[int] = field(default_factory=list)


@dataclass
class BatchRecord:
    """One batch, as the hooks saw it."""

    numbers: tuple[int, ...]
    info: BatchInfo
    started: Event
    ended: Event | None = None
    results: Sequence[TaskiqResult[Any]] = ()

    @property
    def reason(self) -> FlushReason:
        return self.info.flush_reason


@dataclass(frozen=True)
class Left:
    """What was still there at the moment a life ended."""

    tasks: list[str]
    timers: list[str]
    executions: int | None
    deliveries: int
    batches: list[BatcherStatistics]


@dataclass
class Life:
    """One `listen`, or the time in which a loop sends messages of its own.

    :ivar numbers: the messages of it.
    :ivar grace: seconds for what runs when it is stopped.
    :ivar stops: moments at which something began to end it.
    :ivar ended: the moment it was over.
    :ivar error: what it raised.
    """

    numbers: range
    grace: float | None = None
    stops: list[float] = field(default_factory=list)
    ended: Event | None = None
    error: BaseException | None = None
    left: Left | None = None

    @property
    def ended_at(self) -> float:
        assert self.ended is not None
        return self.ended.time


class Record:
    """All that happened in one event loop while a schedule was played, in order.

    :ivar moves: where messages stood, and from when on.
    :ivar taken: when batches were taken, also those whose call never began.
    :ivar problems: what must not happen, and was seen at once.
    """

    def __init__(self, world: World, entrance: Entrance, *lives: Life) -> None:
        self.world = world
        self.schedule = world.schedule
        self.entrance = entrance
        self.lives = list(lives)
        self.loop: asyncio.AbstractEventLoop | None = None
        self.events: list[Event] = []
        self.moves: list[tuple[Event, MessageState]] = []
        self.taken: list[tuple[Event, Kind]] = []
        self.calls: list[CallRecord] = []
        self.batches: list[BatchRecord] = []
        self.results: dict[int, list[TaskiqResult[Any]]] = {}
        self.problems: list[str] = []

    def note(self, step: str, number: int = -1) -> Event:
        """Write down what happens now."""
        event = self.world.event(step, number)
        if asyncio.get_running_loop() is not self.loop:
            self.problems.append(f"in the wrong loop: {event}")
        self.events.append(event)
        return event

    @cached_property
    def by_number(self) -> dict[int, list[Event]]:
        """The events of each message; a cache, for when all is over."""
        found: dict[int, list[Event]] = {}
        for event in self.events:
            found.setdefault(event.number, []).append(event)
        return found

    def of(self, number: int, *steps: str) -> list[Event]:
        """The events of one message, all of them or those of some steps."""
        events = self.by_number.get(number, [])
        return [e for e in events if e.step in steps] if steps else events

    @cached_property
    def delivered(self) -> list[int]:
        """The messages that came in, in order."""
        return [event.number for event in self.events if event.step == "deliver"]


class World:
    """What the records of all event loops have in common."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.sent = schedule.sent + schedule.sent_later + schedule.beside
        first, later, beside = runs_of(schedule)
        lives = [Life(first, schedule.wait_tasks_timeout)]
        if schedule.entrance is Entrance.LISTEN and (
            later or schedule.stop is Stop.BROKER_FAILS
        ):
            is_cut = schedule.stop is Stop.BROKER_FAILS
            lives.append(Life(later, schedule.wait_tasks_timeout if is_cut else None))
        self.records = [Record(self, schedule.entrance, *lives)]
        if beside:
            is_listening = schedule.entrance is Entrance.LISTEN
            entrance = Entrance.CALLBACK if is_listening else schedule.entrance
            self.records.append(Record(self, entrance, Life(beside)))
        self._events = 0

    def event(self, step: str, number: int) -> Event:
        now = asyncio.get_running_loop().time()
        self._events += 1
        return Event(self._events, now, step, number, current.get())

    def record_of(self, number: int) -> Record:
        return next(
            record
            for record in self.records
            for life in record.lives
            if number in life.numbers
        )

    def note(self, step: str, number: int) -> Event:
        return self.record_of(number).note(step, number)

    @contextmanager
    def following_moves(self) -> Iterator[None]:
        """Write down where each message stands, and which batches are taken."""
        move, move_batch = Delivery.move, Batch.move

        def moves(delivery: Delivery, state: MessageState) -> None:
            message = getattr(delivery, "message", None)
            if message is not None:
                # Before, as others move on where this one gives something back.
                number = int(message.task_id)
                event = self.event(state.name, number)
                self.record_of(number).moves.append((event, state))
            move(delivery, state)

        def moves_batch(batch: Batch[Delivery], state: BatchState) -> None:
            if state is BatchState.SEALED:
                number = int(next(iter(batch.members)).message.task_id)
                event = self.event(state.name, number)
                kind = self.sent[number].kind
                self.record_of(number).taken.append((event, kind))
            move_batch(batch, state)

        with (
            mock.patch.object(Delivery, "move", moves),
            mock.patch.object(Batch, "move", moves_batch),
        ):
            yield
