"""Which messages share a call, and when that call may start.

Only decisions live here: plain synchronous code over values. Nothing awaits, nothing
calls user code, and time comes in through a :class:`~taskiq.clock.Clock`. Whoever owns
a :class:`Batcher` does the waiting and the I/O:

* :meth:`Batcher.group` gives the group of the messages with the same key. It is the
  only step that compares or hashes something of a user's, and may raise what that does;
* :meth:`Batcher.offer` hands over a :class:`Member`, which is told where it stands:
  in a batch, at once or when there is room, or waiting for that;
* ``wake`` is called when :meth:`Batcher.take` may have a batch to give;
* :meth:`Batcher.take` seals the batch that starts next;
* moving that batch on, and each member out of it, gives back what they hold.

A group (the members that may share a call) fills one batch at a time. A batch that is
*due* has a reason to leave, but stays open and goes on filling until it is taken, so
that a busy worker makes its batches larger instead of its queue longer.
"""

from __future__ import annotations

import decimal
import heapq
from bisect import bisect_left, insort_right
from collections import OrderedDict, deque
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar

from taskiq.batch import BatcherStatistics, FlushReason
from taskiq.receiver.by_id import ById
from taskiq.receiver.paces import own_pace
from taskiq.receiver.ranking import foremost
from taskiq.receiver.states import BatchState, Holder, Unit

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Sequence

    from taskiq.batch import BatchConfig
    from taskiq.clock import Alarm, Clock
    from taskiq.receiver.paces import AnyPace, MakePace

#: Least seconds a message waits for room before one more is read meanwhile: what a
#: process holds must not grow by more than one message a second.
_LEAST_PATIENCE: Final = 1.0

_SETTLING: Final = BatchState.SETTLING
_SETTLED: Final = BatchState.SETTLED
_UNSEALED: Final = frozenset({BatchState.FILLING, BatchState.DUE, BatchState.FULL})

#: How many groups stand in line for nothing at least, before they are taken out.
_SPARE: Final = 16

_by_sequence: Final = attrgetter("sequence")

#: Adds weights exactly, whatever their digits.
_EXACT: Final = decimal.Context(prec=700)


class Member(Protocol):
    """One message, as the batcher sees it."""

    @property
    def group(self) -> Group[Any]:
        """Whom it may share a call with."""
        ...

    @property
    def weight(self) -> int | decimal.Decimal:
        """What it adds to its batch, in the unit of `max_weight`."""
        ...

    @property
    def priority(self) -> float:
        """What its batch has at least."""
        ...

    @property
    def batch(self) -> Batch[Any] | None:
        """The batch it has a place in."""
        ...

    @property
    def sent_as(self) -> str:
        """The id that it can be found by."""
        ...

    def joined(self, batch: Batch[Any], /) -> None:
        """Learn that it has a place in `batch`, which takes it back by `release`."""

    def moved(self, batch: Batch[Any], /) -> None:
        """Learn that it has its place in `batch` from now on."""

    def waits(self) -> None:
        """Learn that there is no room for it yet."""

    def parks(self) -> bool:
        """Learn that it has waited for long: others are to be read meanwhile.

        :returns: whether they are because of it. If not, the next one is asked.
        """
        ...


_Member = TypeVar("_Member", bound=Member)


class Group(Generic[_Member]):
    """The messages that may share a call, known by identity from here on.

    It lives while a member waits or is in a batch, or a call of it runs.

    :param key: what they have in common.
    """

    __slots__ = ("calls", "hash", "key", "lane", "open", "queue", "waiting")

    def __init__(self, lane: Lane[_Member], key: Hashable, key_hash: int) -> None:
        self.lane = lane
        self.key = key
        self.hash = key_hash
        # The batch it fills. One that is full or taken has left.
        self.open: Batch[_Member] | None = None
        # Its batches with a reason to leave, in the order they were opened.
        self.queue: list[Batch[_Member]] = []
        # Members that wait for room, and calls that have not ended.
        self.waiting = 0
        self.calls = 0

    @property
    def is_empty(self) -> bool:
        """Whether nothing of it is left."""
        return not (self.open or self.queue or self.waiting or self.calls)


class Batch(Holder, Generic[_Member]):
    """The members of one call, in order of arrival."""

    __slots__ = (
        "__weakref__",
        "alarm",
        "group",
        "is_lowered",
        "is_part",
        "joined_at",
        "lane",
        "members",
        "opened_at",
        "priority",
        "reason",
        "sequence",
        "turn",
        "unsettled",
        "weight",
    )

    def __init__(
        self,
        lane: Lane[_Member],
        group: Group[_Member],
        sequence: float,
        opened_at: float,
    ) -> None:
        super().__init__(BatchState.FILLING)
        self.lane = lane
        self.group = group
        self.sequence = sequence
        # Whether its members were in another batch, which was parted.
        self.is_part = False
        # Among groups with a due batch the lowest turn is next.
        self.turn = sequence
        self.opened_at = opened_at
        self.joined_at = opened_at
        # The highest one of its members, unless one of that has left it.
        self.priority = lane.priority
        self.is_lowered = False
        # A dict, to take one out of ten thousand at once. In order.
        self.members: dict[_Member, None] = {}
        # That of its members as long as it takes more; a part takes none.
        self.weight: int | decimal.Decimal = 0
        # Why it leaves: set once, when it falls due.
        self.reason: FlushReason | None = None
        # Armed exactly while the batch is filling.
        self.alarm: Alarm | None = None
        self.unsettled = 0

    def add(self, weight: int | decimal.Decimal) -> int | decimal.Decimal:
        """Give its weight with one more member, exactly."""
        if weight.__class__ is int and self.weight.__class__ is int:
            return self.weight + weight
        return _EXACT.add(decimal.Decimal(self.weight), decimal.Decimal(weight))

    def take_in(self, member: _Member) -> None:
        """Give one more member its place."""
        lane = self.lane
        if member.priority != self.priority:
            self._rank(member.priority)
        self.members[member] = None
        if lane.max_weight is not None:
            self.weight = self.add(member.weight)
        self.unsettled += 1
        lane.buffered += 1
        member.joined(self)

    def hand_over(self, member: _Member, other: Batch[_Member]) -> None:
        """Let a member have its place in another batch of its group."""
        if member.priority != other.priority:
            other._rank(member.priority)
        del self.members[member]
        other.members[member] = None
        self.unsettled -= 1
        other.unsettled += 1
        member.moved(other)

    def _rank(self, priority: float) -> None:
        """Have the priority of a member who joins, unless that of another is higher."""
        self.priority = max(self.priority, priority) if self.members else priority
        if self.priority != self.lane.priority:
            self.lane.is_mixed = True

    def highest_priority(self) -> float:
        """Give the highest priority of its members.

        It is looked for where it is asked, not for each member that is withdrawn.
        """
        if self.is_lowered:
            self.is_lowered = False
            self.priority = max(member.priority for member in self.members)
        return self.priority

    def release(self) -> None:
        """Take the place of one member back, and admit who waits for it."""
        lane = self.lane
        lane.buffered -= 1
        self.unsettled = left = self.unsettled - 1
        if not left and self.state is _SETTLING:
            lane.settling -= 1
            self.move(_SETTLED)
        if lane.alarm is not None or not lane.buffered:
            lane.batcher.place_given_back(lane)

    def __repr__(self) -> str:
        reason = self.reason.value if self.reason is not None else "not due"
        return (
            f"<Batch of {self.lane.owner!r}: {len(self.members)} members, "
            f"{self.state.name}, {reason}>"
        )


class Lane(Generic[_Member]):
    """What is held for one task. A lane lives while it holds a member."""

    __slots__ = (
        "again",
        "alarm",
        "batcher",
        "buffered",
        "config",
        "due",
        "groups",
        "is_mixed",
        "max_weight",
        "open",
        "owner",
        "pace",
        "priority",
        "running",
        "settling",
        "start_alarm",
        "turns",
        "waiting",
    )

    def __init__(
        self,
        batcher: Batcher[_Member],
        owner: Hashable,
        config: BatchConfig,
        pace: AnyPace | None,
    ) -> None:
        self.batcher = batcher
        self.owner = owner
        self.config = config
        most = config.max_weight
        self.max_weight = None if most is None else decimal.Decimal(repr(most))
        # That of its batches, unless `is_mixed`: then some have another one, or had.
        self.priority: float = config.priority or 0
        self.is_mixed = False
        # By the hash of their keys: what is taken out again is not compared.
        self.groups: dict[int, list[Group[_Member]]] = {}
        # The batch each group is filling, in the order they were opened.
        self.open: dict[Group[_Member], Batch[_Member]] = {}
        # The groups that have a due batch.
        self.due: dict[Group[_Member], None] = {}
        # The same under the turn of their first one, a heap: the lowest turn is next.
        # An entry is out of date when its group has a later turn, or no due batch.
        self.turns: list[tuple[float, Group[_Member]]] = []
        # Members beyond `max_buffered`, in order of arrival; `True` for those parked.
        # The first of a plain dict is found behind all that were taken out before it.
        self.waiting: OrderedDict[_Member, bool] = OrderedDict()
        # Armed exactly while a member waits.
        self.alarm: Alarm | None = None
        # When its next call may start, `None` for no rate.
        self.pace = pace
        # Calls beyond the first of batches that run: each goes before a due batch.
        self.again: deque[Callable[[], object]] = deque()
        # Armed exactly while a call waits and it is not its moment.
        self.start_alarm: Alarm | None = None
        # Admitted and not yet settled: the number `max_buffered` bounds.
        self.buffered = 0
        # Batches taken whose call has not ended: the number `concurrency` bounds.
        self.running = 0
        # Batches whose call has ended: each member gives its place back in a moment.
        self.settling = 0

    @property
    def may_start(self) -> bool:
        """Whether `concurrency` and `rate` let one more call start."""
        limit = self.config.concurrency
        return (limit is None or self.running < limit) and self.start_alarm is None

    @property
    def calls_waiting(self) -> int:
        """At least how many calls have a reason to start; 0 for none."""
        own = len(self.first_in_turn().group.queue) - 1 if self.due else 0
        return len(self.due) + own + len(self.again)

    @property
    def is_ranked(self) -> bool:
        """Whether its batches may have another priority than those of other lanes."""
        return self.is_mixed or self.priority != 0

    @property
    def is_empty(self) -> bool:
        """Whether it holds nothing."""
        return not (self.buffered or self.waiting or self.running)

    def first_in_turn(self) -> Batch[_Member]:
        """Give the due batch with the lowest turn; there has to be one."""
        turn, group = self.turns[0]
        while not group.queue or turn != group.queue[0].turn:
            if group.queue:
                heapq.heapreplace(self.turns, (group.queue[0].turn, group))
            else:
                heapq.heappop(self.turns)
            turn, group = self.turns[0]
        return group.queue[0]

    def line_up(self, group: Group[_Member]) -> None:
        """Have a group in line whose first batch has fallen due."""
        self.due[group] = None
        heapq.heappush(self.turns, (group.queue[0].turn, group))
        if len(self.turns) > 2 * len(self.due) + _SPARE:
            self.turns = [(each.queue[0].turn, each) for each in self.due]
            heapq.heapify(self.turns)

    def leave_line(self, group: Group[_Member]) -> None:
        """Have a group in line no more: it has no due batch."""
        del self.due[group]
        if not self.due:
            self.turns.clear()

    def forget(self, group: Group[_Member]) -> None:
        """Keep nothing of a group that is empty."""
        if not group.is_empty:
            return
        same_hash = self.groups[group.hash]
        if len(same_hash) == 1:
            del self.groups[group.hash]
        else:
            same_hash[:] = [each for each in same_hash if each is not group]

    def release(self) -> None:
        """Take back the right to run of a call that has ended."""
        self.running -= 1


class Batcher(Generic[_Member]):
    """Gathers members into batches and says which batch starts next.

    :param clock: source of time and of alarms.
    :param wake: called whenever a batch may have become ready to be taken. It must not
        call back into the batcher.
    :param make_pace: makes the pace of an owner.
    """

    def __init__(
        self,
        clock: Clock,
        wake: Callable[[], object],
        make_pace: MakePace = own_pace,
    ) -> None:
        self._clock = clock
        self._wake = wake
        self._make_pace = make_pace
        self._lanes: dict[Hashable, Lane[_Member]] = {}
        self._sequence = 0
        # Of owners with a rate: it holds, too, while nothing of one is held.
        self._paces: dict[Hashable, AnyPace] = {}
        # While set, a batch falls due with this reason as soon as it is opened.
        self._draining: FlushReason | None = None
        # Those that `withdraw` would take out, once somebody has looked for one.
        self._by_id: ById[_Member] | None = None

    def group(
        self,
        owner: Hashable,
        config: BatchConfig,
        key: Hashable,
    ) -> Group[_Member]:
        """Find the group that a member is to be offered to, at once.

        :param owner: the task; its members share `concurrency` and `max_buffered`.
        :param config: the task's limits, the same for each of its members.
        :param key: members of one owner with equal keys may share a call.
        :raises Exception: what hashing or comparing the key raises; nothing is changed.
        """
        key_hash = hash(key)
        lane = self._lanes.get(owner)
        if lane is None:
            pace = None if config.rate is None else self._pace(owner, config.rate)
            lane = self._lanes[owner] = Lane(self, owner, config, pace)
        for group in lane.groups.get(key_hash, ()):
            if group.key is key or group.key == key:
                return group
        group = Group(lane, key, key_hash)
        lane.groups.setdefault(key_hash, []).append(group)
        return group

    def offer(self, member: _Member) -> None:
        """Take one member in, now or as soon as there is room for it."""
        lane = member.group.lane
        config = lane.config
        if self._by_id is not None:
            self._by_id.add(member)
        if lane.buffered < config.max_buffered:
            self._admit(lane, member)
        else:
            lane.waiting[member] = False
            member.group.waiting += 1
            member.waits()
            if lane.alarm is None:
                self._wait_for_room(lane)
        if lane.buffered >= config.max_buffered:
            self._relieve(lane)

    @property
    def is_ready(self) -> bool:
        """Whether `take` would give a batch."""
        return any(lane.due and lane.may_start for lane in self._lanes.values())

    @property
    def is_paced(self) -> bool:
        """Whether a call waits for the rate of its task."""
        return any(lane.start_alarm is not None for lane in self._lanes.values())

    @property
    def has_rates(self) -> bool:
        """Whether a member of an owner with a rate has been offered."""
        return bool(self._paces)

    @property
    def is_empty(self) -> bool:
        """Whether no member is held: none waits, runs or is being settled."""
        return not self._lanes

    def take(self) -> Batch[_Member] | None:
        """Seal the batch that starts next, or say there is none to start.

        The highest priority is first, see :mod:`taskiq.receiver.ranking`. Among the
        groups with a due batch of that it is the turn of the one that has waited
        longest since it came, since a batch of it was last taken, or since a call of
        it ended: however much of a busy group is due, another one that is due waits
        for the calls that are running, and for no more of that group.

        The caller starts its call at once: a batch is sealed only when it can start.
        """
        batch = self._next()
        if batch is None:
            return None
        if batch.group.open is batch:
            _close(batch)
        self._line_up_next(batch)
        self._seal(batch)
        return batch

    def take_alone(self, member: _Member) -> Batch[_Member]:
        """Seal a batch of one member that waits for nothing, not even for a limit.

        It counts for the limits all the same: later ones wait for it.
        """
        group = member.group
        batch = self._new_batch(group)
        batch.take_in(member)
        batch.reason = FlushReason.MANUAL
        self._seal(batch)
        return batch

    def part(self, batch: Batch[_Member], parts: Sequence[Sequence[_Member]]) -> None:
        """Let members of a sealed batch start in batches of their own, in this order.

        They have waited as long as that batch, so they are the next of their group, and
        each of them counts for every limit. None of them is parted again.

        :param parts: members of each, not all of the batch.
        """
        for number, members in enumerate(parts, 1):
            sequence = batch.sequence + number / (len(parts) + 1)
            own = Batch(batch.lane, batch.group, sequence, batch.opened_at)
            own.is_part, own.turn, own.reason = True, batch.turn, batch.reason
            for member in members:
                batch.hand_over(member, own)
                if self._by_id is not None:
                    self._by_id.add(member)
            own.move(BatchState.FULL)
            insort_right(batch.group.queue, own, key=_by_sequence)
        batch.lane.line_up(batch.group)
        self._keep_pace(batch.lane)
        self._wake()

    def call_again(self, batch: Batch[_Member], go: Callable[[], object]) -> None:
        """Have a batch that runs wait for one more call; its task has to have a rate.

        :param go: called once, perhaps at once: it may start now. It must not call back
            into the batcher.
        """
        batch.lane.again.append(go)
        self._keep_pace(batch.lane)

    def call_no_more(self, batch: Batch[_Member], go: Callable[[], object]) -> None:
        """Learn that the batch does not wait for that call any more."""
        if go in batch.lane.again:
            batch.lane.again.remove(go)
            self._keep_pace(batch.lane)

    def call_ended(self, batch: Batch[_Member]) -> None:
        """Give the batch's right to run back; its members are still being settled."""
        lane, group = batch.lane, batch.group
        batch.move(_SETTLING)
        if batch.unsettled:
            lane.settling += 1
        else:
            batch.move(_SETTLED)
        group.calls -= 1
        # Whoever came while it ran goes first.
        self._give_turn(group)
        lane.forget(group)
        self._forget(lane)
        if lane.due:
            self._wake()

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

    def withdraw(self, member: _Member) -> bool:
        """Take a member out again.

        :returns: whether it was still waiting; a sealed batch keeps its members. What
            it holds is given back when it moves on.
        """
        group = member.group
        lane = group.lane
        batch = member.batch
        if lane.waiting.pop(member, None) is not None:
            group.waiting -= 1
            self._nobody_waits(lane)
            lane.forget(group)
            self._forget(lane)
        elif batch is None or batch.state not in _UNSEALED:
            return False
        else:
            self._remove(batch, member)
        self._not_to_be_found((member,))
        return True

    def find(self, ids: Iterable[str]) -> list[_Member]:
        """List the members with one of these ids that `withdraw` would take out."""
        if self._by_id is None:
            self._by_id = ById(lambda member: (member.sent_as,), self._unsealed())
        return self._by_id.find(ids)

    def _not_to_be_found(self, members: Iterable[_Member]) -> None:
        if self._by_id is not None:
            for member in members:
                self._by_id.discard(member)

    def _unsealed(self) -> list[_Member]:
        members: list[_Member] = []
        for lane in self._lanes.values():
            for batch in _open_batches(lane):
                members += batch.members
            members += lane.waiting
        return members

    def abandon(self) -> list[_Member]:
        """Forget every member that is not in a sealed batch, and disarm its alarm.

        :returns: those members, in order of arrival within a group.
        """
        abandoned: list[_Member] = []
        for lane in tuple(self._lanes.values()):
            batches = _open_batches(lane)
            groups = {batch.group for batch in batches}
            groups.update(member.group for member in lane.waiting)
            for batch in batches:
                self._disarm(batch)
                abandoned += batch.members
            abandoned += lane.waiting
            lane.open.clear()
            lane.due.clear()
            lane.turns.clear()
            lane.waiting.clear()
            self._nobody_waits(lane)
            self._keep_pace(lane)
            for group in groups:
                group.open, group.waiting = None, 0
                group.queue.clear()
                lane.forget(group)
            for batch in batches:
                batch.move(_SETTLED)
        self._not_to_be_found(abandoned)
        return abandoned

    def most_open(self, owner: Hashable) -> int:
        """Count the members of the largest batch of an owner that takes more."""
        lane = self._lanes.get(owner)
        batches = () if lane is None else lane.open.values()
        return max((len(batch.members) for batch in batches), default=0)

    def statistics(self) -> BatcherStatistics:
        """Count what is held now; also for who asks from another thread."""
        # Copies: meanwhile the event loop may put something in or take it out.
        lanes = tuple(self._lanes.values())
        return BatcherStatistics(
            open_groups=sum(len(lane.open) for lane in lanes),
            due_batches=sum(
                len(group.queue) for lane in lanes for group in tuple(lane.due)
            ),
            running_calls=sum(lane.running for lane in lanes),
            buffered=sum(lane.buffered for lane in lanes),
            waiting=sum(len(lane.waiting) for lane in lanes),
            armed_alarms=sum(
                batch.alarm is not None
                for lane in lanes
                for batch in tuple(lane.open.values())
            )
            + sum(lane.alarm is not None for lane in lanes)
            + sum(lane.start_alarm is not None for lane in lanes),
        )

    def longest_wait(self) -> float | None:
        """Say how many seconds the oldest batch waits already, `None` if none does."""
        moments: list[float] = []
        for lane in self._lanes.values():
            # Open batches stand in the order they were opened; those of a group, too.
            oldest = next(iter(lane.open.values()), None)
            moments += [] if oldest is None else [oldest.opened_at]
            moments += [group.queue[0].opened_at for group in lane.due]
        return self._clock.time() - min(moments) if moments else None

    def __repr__(self) -> str:
        return f"<Batcher {self.statistics()}>"

    def place_given_back(self, lane: Lane[_Member]) -> None:
        """Admit who waits for a place. For a lane that has just let a member go."""
        waiting, most = lane.waiting, lane.config.max_buffered
        while waiting and lane.buffered < most:
            member, _ = waiting.popitem(last=False)
            member.group.waiting -= 1
            self._admit(lane, member)
        if waiting:
            self._relieve(lane)
        else:
            self._nobody_waits(lane)
        self._forget(lane)

    def _forget(self, lane: Lane[_Member]) -> None:
        if lane.is_empty and self._lanes.get(lane.owner) is lane:
            del self._lanes[lane.owner]

    def _remove(self, batch: Batch[_Member], member: _Member) -> None:
        """Take a member out of a batch that has not been sealed."""
        lane, group = batch.lane, batch.group
        del batch.members[member]
        if lane.max_weight is not None:
            batch.weight = batch.add(-member.weight)
        if batch.members:
            if member.priority == batch.priority:
                batch.is_lowered = lane.is_mixed
            return
        self._disarm(batch)
        if group.open is batch:
            _close(batch)
        if batch.reason is not None:
            _take_out_of_line(batch)
            self._keep_pace(lane)
        batch.move(_SETTLED)
        lane.forget(group)

    def _next(self) -> Batch[_Member] | None:
        """Find the batch whose turn it is, of those that may start."""
        first: Batch[_Member] | None = None
        lanes = [lane for lane in self._lanes.values() if lane.due and lane.may_start]
        if any(lane.is_ranked for lane in lanes):
            return foremost(lanes, self._clock.time())
        for lane in lanes:
            batch = lane.first_in_turn()
            if first is None or batch.turn < first.turn:
                first = batch
        return first

    def _admit(self, lane: Lane[_Member], member: _Member) -> None:
        """Put a member into the batch its group is filling."""
        config, most, group = lane.config, lane.max_weight, member.group
        batch = group.open
        if most is not None and batch is not None and batch.add(member.weight) > most:
            self._fill(batch, FlushReason.WEIGHT)
            batch = None
        if batch is None:
            batch = group.open = lane.open[group] = self._new_batch(group)
        elif config.idle_timeout is not None:
            batch.joined_at = self._clock.time()
        batch.take_in(member)
        if len(batch.members) >= config.size:
            self._fill(batch, FlushReason.SIZE)
        elif most is not None and batch.weight >= most:
            self._fill(batch, FlushReason.WEIGHT)
        elif batch.alarm is None and batch.reason is None:
            self._start_waiting(batch)

    def _new_batch(self, group: Group[_Member]) -> Batch[_Member]:
        self._sequence += 1
        return Batch(group.lane, group, self._sequence, self._clock.time())

    def _seal(self, batch: Batch[_Member]) -> None:
        batch.move(BatchState.SEALED)
        self._not_to_be_found(batch.members)
        batch.lane.running += 1
        if batch.lane.pace is not None:
            batch.lane.pace.start(self._clock.time())
            self._keep_pace(batch.lane)
        batch.group.calls += 1
        batch.hold(Unit.CALL, batch.lane)

    def _fill(self, batch: Batch[_Member], reason: FlushReason) -> None:
        """Let nobody else join: the group's next member opens its next batch."""
        _close(batch)
        self._disarm(batch)
        batch.move(BatchState.FULL)
        self._give_reason(batch, reason)

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
        """Give a batch that takes members its reason to leave; the first one stays."""
        self._disarm(batch)
        if batch.reason is None:
            batch.move(BatchState.DUE)
            self._give_reason(batch, reason)

    def _give_reason(self, batch: Batch[_Member], reason: FlushReason) -> None:
        if batch.reason is None:
            batch.reason = reason
            _line_up(batch)
            self._keep_pace(batch.lane)
            self._wake()

    def _pace(self, owner: Hashable, rate: str) -> AnyPace:
        pace = self._paces.get(owner)
        if pace is None:
            pace = self._paces[owner] = self._make_pace(
                owner,
                rate,
                lambda: self._pace_changed(owner),
            )
        return pace

    def _pace_changed(self, owner: Hashable) -> None:
        lane = self._lanes.get(owner)
        if lane is not None and lane.start_alarm is not None:
            lane.start_alarm.cancel()
            self._may_start_again(lane)

    def _keep_pace(self, lane: Lane[_Member]) -> None:
        """Arm the alarm for the next call of a lane, or disarm it, as things stand."""
        pace = lane.pace
        if pace is None:
            return
        waits = self._waits_for_pace(lane, pace)
        if lane.start_alarm is not None and not waits:
            lane.start_alarm.cancel()
            lane.start_alarm = None
            self._wake()  # somebody may wait for the end of all that is due
        elif waits and lane.start_alarm is None:
            lane.start_alarm = self._clock.call_at(
                pace.next_at,
                lambda: self._may_start_again(lane),
            )

    def _waits_for_pace(self, lane: Lane[_Member], pace: AnyPace) -> bool:
        """Whether a call of a lane waits whose moment has not come."""
        now = self._clock.time()
        while waiting := lane.calls_waiting:
            pace.want(now, waiting)
            if not pace.is_due(now):
                return True
            if not lane.again:
                return False
            pace.start(now)
            lane.again.popleft()()
        pace.rest()
        return False

    def _may_start_again(self, lane: Lane[_Member]) -> None:
        lane.start_alarm = None
        self._keep_pace(lane)
        self._wake()

    def _line_up_next(self, taken: Batch[_Member]) -> None:
        """Give the next batch of a group its turn, after all that wait already."""
        group = taken.group
        group.queue.remove(taken)
        self._give_turn(group)
        if not group.queue:
            taken.lane.leave_line(group)

    def _give_turn(self, group: Group[_Member]) -> None:
        """Put the next batch of a group behind all groups that wait now."""
        following = group.queue[0] if group.queue else group.open
        if following is not None:
            self._sequence += 1
            following.turn = self._sequence

    def _wait_for_room(self, lane: Lane[_Member]) -> None:
        """Arm the alarm of a lane with waiting members."""
        patience = max(lane.config.timeout, _LEAST_PATIENCE)
        lane.alarm = self._clock.call_at(
            self._clock.time() + patience,
            lambda: self._waited(lane),
        )

    def _waited(self, lane: Lane[_Member]) -> None:
        """Let the member that has waited longest make way for others to be read.

        Otherwise the waiting messages of one task, whose call takes long, would keep
        every other task from being read. It is one in each `batch_timeout`, so that
        what a process holds stays bounded by more than the time of a call.
        """
        self._wait_for_room(lane)
        for member, is_parked in lane.waiting.items():
            if not is_parked:
                lane.waiting[member] = True
                if member.parks():
                    break

    def _nobody_waits(self, lane: Lane[_Member]) -> None:
        if not lane.waiting and lane.alarm is not None:
            lane.alarm.cancel()
            lane.alarm = None

    def _relieve(self, lane: Lane[_Member]) -> None:
        """Flush the oldest group of a full lane, unless something leaves anyway.

        Members that are being settled are about to leave. Flushing for each of them
        whoever takes its place would make batches of one where load is highest. Should
        that take long, the oldest group leaves at its own timeout.
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


def _close(batch: Batch[_Member]) -> None:
    """Let nobody else join a batch."""
    batch.group.open = None
    del batch.lane.open[batch.group]


def _line_up(batch: Batch[_Member]) -> None:
    """Put a batch that has fallen due behind those of its group."""
    queue = batch.group.queue
    queue.append(batch)
    if len(queue) == 1:
        batch.lane.line_up(batch.group)


def _take_out_of_line(batch: Batch[_Member]) -> None:
    """Forget a due batch; the next one of its group has its turn."""
    queue = batch.group.queue
    position = bisect_left(queue, batch.sequence, key=_by_sequence)
    del queue[position]
    if not queue:
        batch.lane.leave_line(batch.group)
    elif position == 0:
        queue[0].turn = batch.turn


def _open_batches(lane: Lane[_Member]) -> list[Batch[_Member]]:
    """List the batches that can still be taken, the oldest first."""
    found = {b.sequence: b for group in lane.due for b in group.queue}
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
