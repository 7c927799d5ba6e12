"""What follows from a record: the questions that rules about schedules ask of it."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from taskiq.acks import AcknowledgeType
from taskiq.exceptions import (
    NoResultError,
    TaskiqBatchResultError,
    TaskRejectedError,
)
from taskiq.receiver.states import ENDED, MessageState
from tests.batching.schedules import (
    BATCHED,
    REFUSED,
    AlphaError,
    CallError,
    Ending,
    Entrance,
    Entry,
    Error,
    Fault,
    HookError,
    Hooks,
    Kind,
    Limits,
    PlacingError,
    PoisonError,
    Sent,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.batching.records import BatchRecord, CallRecord, Event, Life, Record


@dataclass(frozen=True)
class Failure:
    """The error a message has to end with."""

    kind: type[BaseException]
    args: tuple[Any, ...] | None = None

    def matches(self, error: BaseException | None) -> bool:
        return isinstance(error, self.kind) and self.args in {None, error.args}


#: What a fault while a batch message is placed needs its task to be registered with.
_PLACING: Final = {
    Fault.KEYING: "has_key",
    Fault.HASHING_KEY: "has_key",
    Fault.COMPARING_KEY: "has_key",
    Fault.WEIGHING: "max_weight",
    Fault.COALESCING: "is_coalescing",
    Fault.HASHING: "is_coalescing",
    Fault.COMPARING: "is_coalescing",
}

#: Events that are none of a message's steps.
_NO_STEPS: Final = {
    "deliver",
    "callback",
    "cancelled",
    "hook ended",
    "batch ended",
}

_IN_BATCH: Final = (MessageState.WAITING, MessageState.BUFFERED)


class Facts:
    """What is known of the messages of one event loop."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.schedule = record.schedule
        self.delivered = record.delivered
        self.limits = {Kind.ALPHA: self.schedule.alpha, Kind.BETA: self.schedule.beta}
        # Those of an ended life only: what dies with its loop is not looked at.
        self.end: Event = record.events[-1]
        self.batch_of: dict[int, BatchRecord] = {
            number: batch for batch in record.batches for number in batch.numbers
        }
        self.calls_of: dict[int, list[CallRecord]] = {}
        for call in record.calls:
            for number in call.numbers:
                self.calls_of.setdefault(number, []).append(call)
        self.expected = {number: self._expected(number) for number in self.delivered}
        self.moves: dict[int, list[tuple[Event, MessageState]]] = {}
        # One move may be the reason for another, within it.
        record.moves.sort(key=lambda move: move[0].index)
        for event, state in record.moves:
            self.moves.setdefault(event.number, []).append((event, state))
        self.joined = self._first_moves(*_IN_BATCH)
        self.admitted = self._first_moves(MessageState.BUFFERED)
        ended = self._first_moves(*ENDED)
        self.done = {
            number: ended.get(number) or self._last_event(number)
            for number in self.delivered
        }

    def _first_moves(self, *states: MessageState) -> dict[int, Event]:
        first: dict[int, Event] = {}
        for event, state in self.record.moves:
            if state in states:
                first.setdefault(event.number, event)
        return first

    def _last_event(self, number: int) -> Event:
        """When nothing more happens to one that is not followed to its end."""
        if self.sent(number).kind in REFUSED:
            return self.record.of(number)[-1]
        # What has not begun is let go of at the end of its `listen`.
        return (
            self.end if number in self.moves else self.life_of(number).ended or self.end
        )

    def state_at(self, number: int, moment: Event) -> MessageState | None:
        """Where a message stands; `None` is before its first step."""
        state: MessageState | None = None
        for event, moved in self.moves.get(number, ()):
            if event.index <= moment.index:
                state = moved
        return state

    def sent(self, number: int) -> Sent:
        return self.record.world.sent[number]

    @property
    def is_listening(self) -> bool:
        return self.record.entrance is Entrance.LISTEN

    @property
    def has_all_hooks(self) -> bool:
        return self.schedule.hooks is Hooks.ALL

    @property
    def is_ackable(self) -> bool:
        is_sent = self.record.entrance in {Entrance.LISTEN, Entrance.CALLBACK}
        return is_sent and self.schedule.is_ackable

    def ack_type(self, number: int) -> AcknowledgeType:
        return self.schedule.ack_type_of(self.sent(number))

    def is_cancelled(self, number: int) -> bool:
        return bool(self.record.of(number, "cancelled"))

    def life_of(self, number: int) -> Life:
        return next(life for life in self.record.lives if number in life.numbers)

    # -- Outcomes --

    def failure_before_call(self, number: int) -> Failure | None:
        """What keeps it from being called, if anything does."""
        sent = self.sent(number)
        if sent.fault is Fault.PRE_EXECUTE and self.has_all_hooks:
            return Failure(sent.error.kind(HookError))
        if sent.fault is Fault.ACK_LABEL or sent.fault is Fault.TIMEOUT_LABEL:
            return Failure(ValueError)
        if sent.fault is Fault.CASTING and (
            sent.kind in BATCHED or sent.error is not Error.ORDINARY
        ):
            return Failure(sent.error.kind(ValueError))
        limits = self.limits.get(sent.kind)
        needed = None if sent.fault is None else _PLACING.get(sent.fault)
        if limits is None or needed is None or not getattr(limits, needed):
            return None
        return Failure(sent.error.kind(PlacingError))

    def outcome(self, number: int) -> object:
        """What the message has to end with: a value, a `Failure`; `None` if nothing."""
        failure = self.failure_before_call(number)
        if failure is not None:
            return failure
        passed = self.passed_for(number)
        calls = self.calls_of.get(passed)
        return None if calls is None else self._outcome_of_call(passed, calls[-1])

    def passed_for(self, number: int) -> int:
        """The message whose item is passed for it: its own, or an equal one."""
        batch, limits = (
            self.batch_of.get(number),
            self.limits.get(self.sent(number).kind),
        )
        if batch is None or limits is None or not limits.is_coalescing:
            return number
        same = self.sent(number).same
        return next(each for each in batch.numbers if self.sent(each).same == same)

    def _outcome_of_call(self, number: int, call: CallRecord) -> object:
        sent = self.sent(number)
        decided = {
            Entry.SET_RESULT: ("set", number),
            Entry.FAIL: Failure(AlphaError, (number,)),
            Entry.REJECT: Failure(TaskRejectedError),
        }
        if sent.kind is Kind.ALPHA and sent.entry in decided:
            return decided[sent.entry]
        if sent.timeout is not None and self._seconds(call) > sent.timeout:
            return Failure(TimeoutError)
        if any(self.sent(each).entry is Entry.POISON for each in call.numbers):
            return Failure(PoisonError, call.numbers)
        first = self.sent(call.numbers[0])
        raised = {
            Ending.RAISE: Failure(first.error.kind(CallError)),
            Ending.NO_RESULT: Failure(NoResultError),
            Ending.CANCELS_ITSELF: Failure(asyncio.CancelledError),
        }
        return raised.get(first.ending) or self._outcome_of_return(number, call)

    def _outcome_of_return(self, number: int, call: CallRecord) -> object:
        sent = self.sent(number)
        if sent.kind is Kind.PLAIN:
            return ("plain", number)
        if sent.kind is Kind.BETA:
            return ["beta", list(call.numbers), sent.key]
        if self.sent(call.numbers[0]).ending is Ending.WRONG_LENGTH:
            return Failure(TaskiqBatchResultError)
        if sent.entry is Entry.ERROR:
            return Failure(AlphaError, (number,))
        return ("alpha", number)

    def _seconds(self, call: CallRecord) -> float:
        """How long the call takes if nothing cuts it short."""
        seconds = max(self.sent(call.numbers[0]).seconds, 0)
        return seconds + sum(
            max(self.sent(number).takes("ack"), 0) for number in call.acked_by_hand
        )

    # -- Steps --

    def _expected(self, number: int) -> list[str] | None:
        """List the steps of a message from start to end, `None` if it has no outcome.

        Acknowledging by hand is left to the function, and left out here.
        """
        kind = self.sent(number).kind
        if kind in REFUSED:
            return self._ack(number)
        outcome = self.outcome(number)
        if outcome is None:
            return None
        steps = self.admission(number)
        steps += ["called", "call ended"] * len(self.calls_of.get(number, ()))
        return steps + self._settlement(number, outcome)

    def admission(self, number: int) -> list[str]:
        """The steps before its task."""
        steps = ["pre_execute", "pre_executed"] if self.has_all_hooks else []
        return steps + self._ack(number, AcknowledgeType.WHEN_RECEIVED)

    def _settlement(self, number: int, outcome: object) -> list[str]:
        sent = self.sent(number)
        hooks = self.has_all_hooks
        told = ["on_error"] if isinstance(outcome, Failure) and hooks else []
        acked = self._ack(number, AcknowledgeType.WHEN_EXECUTED)
        steps = told + acked if self._runs_plainly(sent) else acked + told
        if hooks:
            steps += ["post_execute"]
        if not (isinstance(outcome, Failure) and outcome.kind is NoResultError):
            saving = self._saving(sent)
            steps += ["save", saving]
            if saving != "saved":
                return steps
            steps += ["post_save"] if hooks else []
        return steps + self._ack(number, AcknowledgeType.WHEN_SAVED)

    def _runs_plainly(self, sent: Sent) -> bool:
        """Whether it gets as far as the call of a plain task, which tells of errors."""
        is_stopped = sent.fault is Fault.PRE_EXECUTE and self.has_all_hooks
        return (
            sent.kind is Kind.PLAIN
            and not is_stopped
            and sent.fault is not Fault.ACK_LABEL
        )

    def _saving(self, sent: Sent) -> str:
        """How saving its result ends."""
        if self._takes_too_long(sent, "save") and (
            sent.fault is not Fault.SAVE_IS_STUBBORN
        ):
            return "save interrupted"
        return "save failed" if sent.fault is Fault.SAVE else "saved"

    def _takes_too_long(self, sent: Sent, step: str) -> bool:
        limit = self.schedule.save_timeout
        return limit is not None and sent.takes(step) > limit

    def _ack(self, number: int, moment: AcknowledgeType | None = None) -> list[str]:
        if not self.is_ackable:
            return []
        if moment is not None and self.ack_type(number) is not moment:
            return []
        sent = self.sent(number)
        if self._takes_too_long(sent, "ack"):
            return ["ack", "ack interrupted"]
        return ["ack", "ack failed" if sent.fault is Fault.ACK else "acked"]

    def steps(self, number: int) -> list[str]:
        """The steps the message took, by name."""
        return [event.step for event in self.step_events(number)]

    def step_events(self, number: int) -> list[Event]:
        """The steps the message took, but for acknowledging by hand."""
        kind = self.sent(number).kind
        is_by_hand = (
            self.ack_type(number) is AcknowledgeType.MANUAL and kind not in REFUSED
        )
        return [
            event
            for event in self.record.of(number)
            if event.step not in _NO_STEPS
            and not (is_by_hand and event.step.startswith("ack"))
        ]

    def is_complete(self, number: int) -> bool:
        return self.steps(number) == self.expected[number]

    def is_done(self, number: int) -> bool:
        """Whether it was taken to its end."""
        moves = self.moves.get(number, ())
        return any(state is MessageState.DONE for _, state in moves)

    def has_begun(self, number: int) -> bool:
        """Whether more has happened to it than its admission."""
        steps = self.steps(number)
        if steps and steps[-1].endswith("interrupted"):
            del steps[-1]
        return steps != self.admission(number)[: len(steps)]

    # -- Moments --

    def beginning(self, call: CallRecord) -> Event:
        """When a call's batch was taken: its hooks run before the function."""
        batch = self.batch_of.get(call.numbers[0])
        return call.started if batch is None else batch.started

    def paced_starts(self, kind: Kind) -> list[float]:
        """When calls of a batch task started that its rate counts.

        The first one of a batch is counted when that is taken: a stop may have no time
        left for it.
        """
        moments = [event.time for event, own in self.record.taken if own is kind]
        for batch in self.record.batches:
            if batch.info.task_name == kind.value:
                own = [c for c in self.record.calls if c.numbers[0] in batch.numbers]
                moments += [call.started.time for call in own[1:]]
        return sorted(moments)

    def batch_spans(self, kind: Kind) -> Iterator[tuple[Event, Event]]:
        """From when to when each batch of a task holds its right to run."""
        if self.schedule.hooks is Hooks.NONE:
            for call in self.record.calls:
                if call.kind is kind:
                    yield call.started, call.ended or self.end
            return
        for batch in self.record.batches:
            if batch.info.task_name == kind.value:
                yield batch.started, self._call_ended(batch)

    def _call_ended(self, batch: BatchRecord) -> Event:
        ends = [
            call.ended or self.end
            for number in batch.numbers
            for call in self.calls_of.get(number, ())
        ]
        return max(ends, key=lambda event: event.index, default=self.end)

    def execution_spans(self) -> Iterator[tuple[Event, Event]]:
        """From when to when something holds an execution slot."""
        for kind in BATCHED:
            yield from self.batch_spans(kind)
        for number in self.delivered:
            is_batched = self.sent(number).kind in BATCHED
            if is_batched and not self.schedule.has_own_callback:
                continue
            events = self.record.of(number)[1:]
            if events:
                yield events[0], self.joined.get(number, self.done[number])

    def batch_limits(self) -> Sequence[tuple[Kind, Limits]]:
        return tuple(self.limits.items())


def count_at(moment: float, spans: list[tuple[Event, Event]]) -> int:
    """How many spans a moment is in."""
    return sum(start.time < moment < end.time for start, end in spans)


def peak(spans: Iterator[tuple[Event, Event | None]]) -> int:
    """How many of some spans go on at once, at most."""
    changes: dict[int, int] = {}
    for start, end in spans:
        changes[start.index] = 1
        if end is not None:
            changes[end.index] = -1
    steps = [changes[index] for index in sorted(changes)]
    return max(itertools.accumulate(steps), default=0)
