"""What workers say of themselves, and whether they are live and ready.

A *heartbeat* is what one worker process said last, a *roster* which processes its main
process runs. The decisions are plain functions over these values and the present
moment. A probe imports this every few seconds, so there are named tuples and no
dataclasses, whose module takes longer to import than all the rest.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

#: Seconds between two heartbeats.
INTERVAL: Final = 1.0

#: Seconds without an answer of an event loop, or of a main process, after which it is
#: taken for blocked. A probe that asks every second tells of it within ten.
MOST_SILENCE: Final = 8.0


class ListenerState(str, enum.Enum):
    """What the listener of a worker process does."""

    STARTING = "starting"
    LISTENING = "listening"
    AWAY = "broker away"
    STOPPING = "stopping"


class Flush(NamedTuple):
    """One batch that left.

    :ivar reason: why, a value of `taskiq.batch.FlushReason`.
    :ivar messages: how many it had.
    :ivar waited: seconds its first message waited for its call.
    :ivar at: when its call started, in seconds since the epoch.
    """

    reason: str
    messages: int
    waited: float
    at: float


class TaskFlushes(NamedTuple):
    """How the last batches of one task left.

    :ivar task: its name.
    :ivar size: its `batch_size`.
    :ivar timeout: its `batch_timeout`, in seconds.
    :ivar batches: how many batches the other numbers are of, at most the last hundred.
    :ivar mean_messages: messages in one of them.
    :ivar mean_waited: seconds the first message of one waited for its call.
    :ivar reasons: how many left for which reason, the most frequent first.
    :ivar last: the last few of them, the latest last.
    """

    task: str
    size: int
    timeout: float
    batches: int
    mean_messages: float
    mean_waited: float
    reasons: dict[str, int]
    last: tuple[Flush, ...] = ()

    @property
    def mean_fill(self) -> float:
        """Which part of `size` a batch had, from 0 to 1."""
        return self.mean_messages / self.size

    def as_json(self) -> dict[str, Any]:
        """Give it as what `json` writes."""
        return {**self._asdict(), "last": [flush._asdict() for flush in self.last]}


class Heartbeat(NamedTuple):
    """What one worker process said last. Moments are in seconds since the epoch.

    :ivar worker: name of the process, as `worker-0`.
    :ivar broker: what the command line names as the broker.
    :ivar written_at: when this was written.
    :ivar answered_at: when the event loop answered last; what follows is of then.
    :ivar loop_lag: seconds the event loop took to answer, or has not answered for.
    :ivar listener: what the listener does.
    :ivar fetched: messages read since the start.
    :ivar last_fetch_age: seconds since messages were read, `None` before the first.
    :ivar running: plain tasks and batches that run, or are being settled.
    :ivar buffered: messages that wait in a batch, run, or are being settled.
    :ivar waiting: messages beyond `batch_max_buffered`, not yet in a batch.
    :ivar oldest_age: seconds that the oldest batch has waited for its call.
    :ivar batches_open: batches that take more messages.
    :ivar batches_due: batches that start as soon as they can.
    :ivar flushes: how the last batches of each task left.
    """

    worker: str
    host: str
    pid: int
    broker: str
    started_at: float
    written_at: float
    answered_at: float
    loop_lag: float = 0.0
    listener: ListenerState = ListenerState.STARTING
    fetched: int = 0
    last_fetch_age: float | None = None
    running: int = 0
    buffered: int = 0
    waiting: int = 0
    oldest_age: float | None = None
    batches_open: int = 0
    batches_due: int = 0
    flushes: tuple[TaskFlushes, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Give it as what `json` writes; `heartbeat_of` is the way back."""
        flushes = [each.as_json() for each in self.flushes]
        return {**self._asdict(), "listener": self.listener.value, "flushes": flushes}


class Roster(NamedTuple):
    """Which processes the main process of a worker runs.

    :ivar pid: its own.
    :ivar written_at: when it said so last, in seconds since the epoch.
    :ivar workers: how many processes it is to run.
    :ivar running: pids of those that run.
    """

    host: str
    pid: int
    broker: str
    started_at: float
    written_at: float
    workers: int
    running: tuple[int, ...]

    def as_json(self) -> dict[str, Any]:
        """Give it as what `json` writes; `roster_of` is the way back."""
        return self._asdict()


class Fleet(NamedTuple):
    """One worker command: its main process, and the processes it runs.

    :ivar roster: `None` when no main process has said anything.
    :ivar heartbeats: by worker process; one that is importing has none.
    """

    roster: Roster | None = None
    heartbeats: tuple[Heartbeat, ...] = ()

    def running(self) -> list[Heartbeat]:
        """Give the heartbeats of processes that run, and not of those that ended."""
        pids = () if self.roster is None else self.roster.running
        return [beat for beat in self.heartbeats if beat.pid in pids]


# -- Decisions ------------------------------------------------------------------------


def why_not_live(fleet: Fleet, now: float) -> list[str]:
    """Say what only a restart would mend; nothing if the worker is live.

    A broker that is away is nothing of that kind: the worker connects again by itself.
    """
    roster = fleet.roster
    if roster is None:
        return ["no worker has written a heartbeat here"]
    silence = now - roster.written_at
    if silence > MOST_SILENCE:
        return [f"main process {roster.pid} is silent for {silence:.0f} s"]
    return [
        f"{_name(beat)} is blocked for {blocked_for(beat, now):.0f} s"
        for beat in fleet.running()
        if is_blocked(beat, now)
    ]


def why_not_ready(fleet: Fleet, now: float) -> list[str]:
    """Say what keeps the worker from taking messages; nothing if it is ready."""
    reasons = why_not_live(fleet, now)
    roster = fleet.roster
    if roster is None or reasons:
        return reasons
    beats = fleet.running()
    missing = roster.workers - len(beats)
    if missing > 0:
        reasons.append(f"{missing} of {roster.workers} processes have not started")
    reasons += [
        f"{_name(beat)}: {beat.listener.value}"
        for beat in beats
        if beat.listener is not ListenerState.LISTENING
    ]
    return reasons


def is_blocked(beat: Heartbeat, now: float) -> bool:
    """Whether the event loop of a process has not answered for too long.

    One that starts is not judged: an application may load for long, and would never
    come to its end if it was restarted meanwhile.
    """
    if beat.listener is ListenerState.STARTING:
        return False
    return blocked_for(beat, now) > MOST_SILENCE


def blocked_for(beat: Heartbeat, now: float) -> float:
    """Seconds since the event loop of a process answered last."""
    return max(now - beat.answered_at, 0.0)


def state_of(beat: Heartbeat, now: float) -> str:
    """Name in a word or two what a process does."""
    if is_blocked(beat, now):
        return f"blocked {blocked_for(beat, now):.0f} s"
    return beat.listener.value


def _name(beat: Heartbeat) -> str:
    return f"{beat.worker} ({beat.pid})"


# -- From JSON ------------------------------------------------------------------------

_Read = TypeVar("_Read", Heartbeat, Roster, TaskFlushes, Flush)


def heartbeat_of(record: Mapping[str, Any]) -> Heartbeat:
    """Make a heartbeat of what was read as JSON; fields not known are left out.

    :raises KeyError: a field is missing.
    :raises ValueError: the state of its listener is none.
    """
    flushes = tuple(
        _read(TaskFlushes, {**each, "last": _each(Flush, each["last"])})
        for each in record["flushes"]
    )
    listener = ListenerState(record["listener"])
    return _read(Heartbeat, {**record, "listener": listener, "flushes": flushes})


def roster_of(record: Mapping[str, Any]) -> Roster:
    """Make a roster of what was read as JSON; fields not known are left out.

    :raises KeyError: a field is missing.
    """
    return _read(Roster, {**record, "running": tuple(record["running"])})


def _each(kind: type[_Read], records: Iterable[Mapping[str, Any]]) -> tuple[_Read, ...]:
    return tuple(_read(kind, record) for record in records)


def _read(kind: type[_Read], record: Mapping[str, Any]) -> _Read:
    return kind(**{name: record[name] for name in kind._fields})
