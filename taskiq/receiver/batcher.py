"""Which messages share a call, and when that call may start.

Only decisions live here: plain synchronous code over values. Nothing awaits, nothing
calls user code, and time comes in through a :class:`Clock`. Whoever owns a
:class:`Batcher` does the waiting and the I/O:

* :meth:`Batcher.offer` hands over a member (any object that stands for a message);
  which is taken in at once, or later when there is room: ``admitted`` is called then;
* ``wake`` is called when :meth:`Batcher.take` may have a batch to give;
* :meth:`Batcher.take` seals the batch that starts next;
* :meth:`Batcher.call_ended` and :meth:`Batcher.member_settled` give capacity back.

A group (the members that may share a call) fills one batch at a time. A batch that is
*due* has a reason to leave, but stays open and goes on filling until it is taken, so
that a busy worker makes its batches larger instead of its queue longer.
"""

from __future__ import annotations

import enum
import heapq
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Generic, Protocol, TypeVar

from taskiq.batch import BatchConfig, FlushReason

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping

_Member = TypeVar("_Member")


class Alarm(Protocol):
    """A call that was asked for at a moment and can be called off."""

    def cancel(self) -> None:
        """Call it off; harmless when it has rung already."""


class Clock(Protocol):
    """The only source of time: monotonic seconds. A running event loop is one."""

    def time(self) -> float:
        """Return the present moment in seconds."""
        ...

    def call_at(self, when: float, callback: Callable[[], object], /) -> Alarm:
        """Call `callback` at the moment `when`."""
        ...


class BatchState(enum.Enum):
    """Where a batch stands; see `MOVES` for the ways between them."""

    OPEN = enum.auto()  # takes members; its alarm is armed unless it is due
    SEALED = enum.auto()  # contents are final and it holds its right to start
    RUNNING = enum.auto()  # the task function has the items
    SETTLED = enum.auto()  # every member has its own outcome and is let go

    # A member is only ever itself; an enum would hash its name, in Python, at each use.
    __hash__ = object.__hash__


#: Every legal move. A batch that was sealed may be settled without a call: its worker
#: was told to stop, or a dependency failed before the function was reached.
MOVES: Final[Mapping[BatchState, frozenset[BatchState]]] = {
    BatchState.OPEN: frozenset({BatchState.SEALED}),
    BatchState.SEALED: frozenset({BatchState.RUNNING, BatchState.SETTLED}),
    BatchState.RUNNING: frozenset({BatchState.SETTLED}),
    BatchState.SETTLED: frozenset(),
}


class Batch(Generic[_Member]):
    """The members of one call, in order of arrival."""

    __slots__ = (
        "alarm",
        "group",
        "joined_at",
        "lane",
        "members",
        "opened_at",
        "reason",
        "sequence",
        "state",
        "turn",
        "unsettled",
        "weight",
    )

    def __init__(
        self,
        lane: Lane[_Member],
        group: Hashable,
        sequence: int,
        opened_at: float,
    ) -> None:
        self.lane = lane
        self.group = group
        self.sequence = sequence
        # Among groups with a due batch the lowest turn is next.
        self.turn = sequence
        self.opened_at = opened_at
        self.joined_at = opened_at
        self.members: list[_Member] = []
        self.weight = 0.0
        self.state = BatchState.OPEN
        # Why it leaves: set once, when it falls due.
        self.reason: FlushReason | None = None
        # Armed exactly while the batch is open, has members and is not yet due.
        self.alarm: Alarm | None = None
        self.unsettled = 0

    def move(self, state: BatchState) -> None:
        """Go to `state`.

        :raises RuntimeError: when `MOVES` does not allow it; nothing is changed.
        """
        if state not in MOVES[self.state]:
            raise RuntimeError(f"a batch cannot go from {self.state} to {state}")
        self.state = state

    def __repr__(self) -> str:
        reason = self.reason.value if self.reason is not None else "not due"
        return (
            f"<Batch of {self.lane.owner!r}: {len(self.members)} members, "
            f"{self.state.name}, {reason}>"
        )


class Lane(Generic[_Member]):
    """What is held for one task. A lane lives while it holds a member."""

    __slots__ = (
        "buffered",
        "config",
        "due",
        "open",
        "owner",
        "queues",
        "running",
        "settling",
        "waiting",
    )

    def __init__(self, owner: Hashable, config: BatchConfig) -> None:
        self.owner = owner
        self.config = config
        # The batch each group is filling. A batch that is full or taken has left.
        self.open: dict[Hashable, Batch[_Member]] = {}
        # Batches with a reason to leave, in order of arrival within each group.
        self.queues: dict[Hashable, list[Batch[_Member]]] = {}
        # The first of each queue under its turn, a heap: the lowest turn is next. An
        # entry is out of date when its batch has been given a later turn since.
        self.due: list[tuple[int, Batch[_Member]]] = []
        # Members beyond `max_buffered`, in order of arrival, not yet admitted.
        self.waiting: deque[tuple[Hashable, _Member, float]] = deque()
        # Admitted and not yet settled: the number `max_buffered` bounds.
        self.buffered = 0
        # Batches taken whose call has not ended: the number `concurrency` bounds.
        self.running = 0
        # Members of calls that have ended: each gives its place back in a moment.
        self.settling = 0

    @property
    def may_start(self) -> bool:
        """Whether `concurrency` leaves room for one more call."""
        limit = self.config.concurrency
        return limit is None or self.running < limit

    @property
    def has_room(self) -> bool:
        """Whether one more member can be admitted."""
        return self.buffered < self.config.max_buffered


@dataclass(frozen=True, slots=True)
class BatcherStatistics:
    """What a batcher holds at one moment.

    :ivar open_groups: batches that take more messages.
    :ivar due_batches: batches that start as soon as they can.
    :ivar running_calls: batches whose call has not ended.
    :ivar buffered: messages that wait in a batch, run, or are being settled.
    :ivar waiting: messages beyond `max_buffered`, not yet in a batch.
    :ivar armed_alarms: timers of open batches.
    """

    open_groups: int = 0
    due_batches: int = 0
    running_calls: int = 0
    buffered: int = 0
    waiting: int = 0
    armed_alarms: int = 0

    @property
    def is_idle(self) -> bool:
        """Whether nothing is held, running or armed."""
        return self == BatcherStatistics()


class Batcher(Generic[_Member]):
    """Gathers members into batches and says which batch starts next.

    :param clock: source of time and of alarms.
    :param wake: called whenever a batch may have become ready to be taken. It must not
        call back into the batcher.
    :param admitted: called with each member that is admitted after it had to wait. It
        must not call back.
    """

    def __init__(
        self,
        clock: Clock,
        wake: Callable[[], object],
        admitted: Callable[[_Member], object],
    ) -> None:
        self._clock = clock
        self._wake = wake
        self._admitted = admitted
        self._lanes: dict[Hashable, Lane[_Member]] = {}
        self._sequence = 0
        # While set, a batch falls due with this reason as soon as it is opened.
        self._draining: FlushReason | None = None

    def offer(
        self,
        owner: Hashable,
        config: BatchConfig,
        group: Hashable,
        member: _Member,
        weight: float = 0.0,
    ) -> bool:
        """Take one member in, now or as soon as there is room for it.

        :param owner: the task; its members share `concurrency` and `max_buffered`.
        :param config: the task's limits, the same for each of its members.
        :param group: members of one owner with equal groups may share a call.
        :param weight: what the member adds to its batch, in the unit of `max_weight`.
        :returns: whether it was admitted: it counts against its task's `max_buffered`,
            and not as a delivery any more.
        """
        lane = self._lanes.get(owner)
        if lane is None:
            lane = self._new_lane(owner, config)
        is_admitted = lane.buffered < config.max_buffered
        if is_admitted:
            self._admit(lane, group, member, weight)
        else:
            lane.waiting.append((group, member, weight))
        if lane.buffered >= config.max_buffered:
            self._relieve(lane)
        return is_admitted

    @property
    def is_ready(self) -> bool:
        """Whether `take` would give a batch."""
        return self._next_lane() is not None

    @property
    def is_empty(self) -> bool:
        """Whether no member is held: none waits, runs or is being settled."""
        return not self._lanes

    def take(self) -> Batch[_Member] | None:
        """Seal the batch that starts next, or say there is none to start.

        Among the groups with a due batch it is the turn of the one that has waited
        longest since it came, since a batch of it was last taken, or since a call of
        it ended: however much of a busy group is due, another one that is due waits
        for the calls that are running, and for no more of that group.

        The caller starts its call at once: a batch is sealed only when it can start.
        """
        lane = self._next_lane()
        if lane is None:
            return None
        _, batch = heapq.heappop(lane.due)
        if lane.open.get(batch.group) is batch:
            del lane.open[batch.group]
        self._line_up_next(batch)
        self._seal(batch)
        return batch

    def take_alone(
        self,
        owner: Hashable,
        config: BatchConfig,
        group: Hashable,
        member: _Member,
    ) -> Batch[_Member]:
        """Seal a batch of one member that waits for nothing, not even for a limit.

        The arguments are those of `offer`.
        """
        lane = self._lanes.get(owner) or self._new_lane(owner, config)
        batch = self._new_batch(lane, group)
        batch.members.append(member)
        batch.reason = FlushReason.MANUAL
        lane.buffered += 1
        self._seal(batch)
        return batch

    def call_ended(self, batch: Batch[_Member]) -> None:
        """Give the batch's right to run back; its members are still being settled."""
        lane = batch.lane
        lane.running -= 1
        lane.settling += batch.unsettled
        # Whoever came while it ran goes first.
        self._give_turn(lane, batch.group)
        if lane.due:
            self._wake()

    def member_settled(self, batch: Batch[_Member]) -> None:
        """Let one member of the batch go, and admit who waits for its place."""
        lane = batch.lane
        batch.unsettled -= 1
        lane.settling -= 1
        if batch.unsettled == 0:
            batch.move(BatchState.SETTLED)
        self._let_go(lane)

    def flush(self, reason: FlushReason) -> None:
        """Make every open batch due."""
        for lane in tuple(self._lanes.values()):
            for batch in tuple(lane.open.values()):
                self._fall_due(batch, reason)

    def drain(self, reason: FlushReason) -> None:
        """Make every open batch due, and each later one as soon as it is opened."""
        self._draining = reason
        self.flush(reason)

    def resume(self) -> None:
        """End what `drain` began: batches wait for company again."""
        self._draining = None

    def withdraw(
        self,
        owner: Hashable,
        group: Hashable,
        member: _Member,
        weight: float = 0.0,
    ) -> bool:
        """Take a member out again; the arguments are those it was offered with.

        :returns: whether it was still waiting; a sealed batch keeps its members.
        """
        lane = self._lanes.get(owner)
        if lane is None:
            return False
        for each in lane.waiting:
            if each[1] == member:
                lane.waiting.remove(each)
                return True
        for batch in _open_batches(lane):
            if batch.group == group and member in batch.members:
                batch.weight -= weight
                self._remove(batch, member)
                return True
        return False

    def abandon(self) -> list[_Member]:
        """Forget every member that is not in a sealed batch, and disarm its alarm.

        :returns: those members, in order of arrival within a group.
        """
        abandoned: list[_Member] = []
        for lane in tuple(self._lanes.values()):
            for batch in _open_batches(lane):
                self._disarm(batch)
                abandoned += batch.members
                lane.buffered -= len(batch.members)
            abandoned += [member for _, member, _ in lane.waiting]
            lane.open.clear()
            lane.queues.clear()
            lane.due.clear()
            lane.waiting.clear()
            if lane.buffered == 0:
                del self._lanes[lane.owner]
        return abandoned

    def statistics(self) -> BatcherStatistics:
        """Count what is held now; also for who asks from another thread."""
        # Copies: meanwhile the event loop may put something in or take it out.
        lanes = tuple(self._lanes.values())
        return BatcherStatistics(
            open_groups=sum(len(lane.open) for lane in lanes),
            due_batches=sum(
                len(queue) for lane in lanes for queue in tuple(lane.queues.values())
            ),
            running_calls=sum(lane.running for lane in lanes),
            buffered=sum(lane.buffered for lane in lanes),
            waiting=sum(len(lane.waiting) for lane in lanes),
            armed_alarms=sum(
                batch.alarm is not None
                for lane in lanes
                for batch in tuple(lane.open.values())
            ),
        )

    def __repr__(self) -> str:
        return f"<Batcher {self.statistics()}>"

    def _let_go(self, lane: Lane[_Member]) -> None:
        """Take one member off the lane's count, and admit who waits for the place."""
        lane.buffered -= 1
        while lane.waiting and lane.has_room:
            group, member, weight = lane.waiting.popleft()
            self._admit(lane, group, member, weight)
            self._admitted(member)
        if lane.waiting:
            self._relieve(lane)
        if lane.buffered == 0:
            del self._lanes[lane.owner]

    def _remove(self, batch: Batch[_Member], member: _Member) -> None:
        lane = batch.lane
        batch.members.remove(member)
        if not batch.members:
            self._disarm(batch)
            if lane.open.get(batch.group) is batch:
                del lane.open[batch.group]
            if batch.reason is not None:
                _take_out_of_line(batch)
        self._let_go(lane)

    def _next_lane(self) -> Lane[_Member] | None:
        """Find the lane of the batch whose turn it is, of those that may start."""
        first: Lane[_Member] | None = None
        for lane in self._lanes.values():
            if lane.due and lane.may_start:
                _bring_first_turn_up(lane)
                if first is None or lane.due[0][0] < first.due[0][0]:
                    first = lane
        return first

    def _admit(
        self,
        lane: Lane[_Member],
        group: Hashable,
        member: _Member,
        weight: float,
    ) -> None:
        """Put a member into the batch its group is filling."""
        config = lane.config
        most = config.max_weight
        batch = lane.open.get(group)
        if batch is not None and most is not None and batch.weight + weight > most:
            self._fill(batch, FlushReason.WEIGHT)
            batch = None
        if batch is None:
            batch = self._open(lane, group)
        elif config.idle_timeout is not None:
            batch.joined_at = self._clock.time()
        batch.members.append(member)
        batch.weight += weight
        lane.buffered += 1
        if len(batch.members) >= config.size:
            self._fill(batch, FlushReason.SIZE)
        elif most is not None and batch.weight >= most:
            self._fill(batch, FlushReason.WEIGHT)
        elif batch.reason is None and batch.alarm is None:
            self._start_waiting(batch)

    def _new_lane(self, owner: Hashable, config: BatchConfig) -> Lane[_Member]:
        lane = self._lanes[owner] = Lane(owner, config)
        return lane

    def _new_batch(self, lane: Lane[_Member], group: Hashable) -> Batch[_Member]:
        self._sequence += 1
        return Batch(lane, group, self._sequence, self._clock.time())

    def _open(self, lane: Lane[_Member], group: Hashable) -> Batch[_Member]:
        batch = lane.open[group] = self._new_batch(lane, group)
        return batch

    @staticmethod
    def _seal(batch: Batch[_Member]) -> None:
        batch.move(BatchState.SEALED)
        batch.unsettled = len(batch.members)
        batch.lane.running += 1

    def _fill(self, batch: Batch[_Member], reason: FlushReason) -> None:
        """Let nobody else join: the group's next member opens its next batch."""
        del batch.lane.open[batch.group]
        self._fall_due(batch, reason)

    def _start_waiting(self, batch: Batch[_Member]) -> None:
        """Decide how long a batch's first member waits for company."""
        if self._draining is not None:
            self._fall_due(batch, self._draining)
        elif batch.lane.config.timeout == 0:
            self._fall_due(batch, FlushReason.TIMEOUT)
        else:
            self._arm(batch)

    def _arm(self, batch: Batch[_Member]) -> None:
        moment, _ = _deadline(batch)
        batch.alarm = self._clock.call_at(moment, lambda: self._ring(batch))

    def _ring(self, batch: Batch[_Member]) -> None:
        """Flush what has waited long enough.

        Members that join postpone the idle deadline without touching the alarm: it
        rings at the old moment and is set again, once, instead of at each arrival.
        """
        batch.alarm = None
        moment, reason = _deadline(batch)
        if self._clock.time() >= moment:
            self._fall_due(batch, reason)
        else:
            self._arm(batch)

    def _fall_due(self, batch: Batch[_Member], reason: FlushReason) -> None:
        """Give a batch its reason to leave; the first one stays."""
        self._disarm(batch)
        if batch.reason is None:
            batch.reason = reason
            _line_up(batch)
            self._wake()

    def _line_up_next(self, taken: Batch[_Member]) -> None:
        """Give the next batch of a group its turn, after all that wait already."""
        lane, group = taken.lane, taken.group
        queue = lane.queues[group]
        del queue[0]
        if not queue:
            del lane.queues[group]
        self._give_turn(lane, group)
        if queue:
            heapq.heappush(lane.due, (queue[0].turn, queue[0]))

    def _give_turn(self, lane: Lane[_Member], group: Hashable) -> None:
        """Put the next batch of a group behind all groups that wait now."""
        queue = lane.queues.get(group)
        following = queue[0] if queue else lane.open.get(group)
        if following is not None:
            self._sequence += 1
            following.turn = self._sequence

    def _relieve(self, lane: Lane[_Member]) -> None:
        """Flush the oldest group of a full lane, unless something leaves anyway.

        Members that are being settled are about to leave. Flushing for each of them
        whoever takes its place would make batches of one where load is highest.
        """
        if lane.due or lane.settling or not lane.may_start or not lane.open:
            return
        # Groups stand in the order their batches were opened, and none is due here.
        oldest = next(iter(lane.open.values()))
        self._fall_due(oldest, FlushReason.PRESSURE)

    @staticmethod
    def _disarm(batch: Batch[_Member]) -> None:
        if batch.alarm is not None:
            batch.alarm.cancel()
            batch.alarm = None


def _line_up(batch: Batch[_Member]) -> None:
    """Put a batch that has fallen due behind those of its group."""
    lane = batch.lane
    queue = lane.queues.get(batch.group)
    if queue is not None:
        queue.append(batch)
        return
    lane.queues[batch.group] = [batch]
    heapq.heappush(lane.due, (batch.turn, batch))


def _take_out_of_line(batch: Batch[_Member]) -> None:
    """Forget a due batch; the next one of its group has its turn."""
    lane = batch.lane
    queue = lane.queues[batch.group]
    position = queue.index(batch)
    del queue[position]
    if position > 0:
        return
    lane.due[:] = [entry for entry in lane.due if entry[1] is not batch]
    if queue:
        queue[0].turn = batch.turn
        lane.due.append((batch.turn, queue[0]))
    else:
        del lane.queues[batch.group]
    heapq.heapify(lane.due)


def _bring_first_turn_up(lane: Lane[_Member]) -> None:
    """See to it that the first entry of a lane with due batches is up to date."""
    turn, batch = lane.due[0]
    while turn != batch.turn:
        heapq.heapreplace(lane.due, (batch.turn, batch))
        turn, batch = lane.due[0]


def _open_batches(lane: Lane[_Member]) -> list[Batch[_Member]]:
    """List the batches that can still be taken, the oldest first."""
    found = {b.sequence: b for queue in lane.queues.values() for b in queue}
    found.update((batch.sequence, batch) for batch in lane.open.values())
    return [found[sequence] for sequence in sorted(found)]


def _deadline(batch: Batch[_Member]) -> tuple[float, FlushReason]:
    """Say when an open batch falls due if nobody else joins it, and why."""
    config = batch.lane.config
    moment, reason = batch.opened_at + config.timeout, FlushReason.TIMEOUT
    if config.idle_timeout is not None:
        idle = batch.joined_at + config.idle_timeout
        if idle < moment:
            moment, reason = idle, FlushReason.IDLE
    return moment, reason
