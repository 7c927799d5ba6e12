"""What is always true of batches, over random schedules in virtual time.

Every schedule is checked against every rule: each `_check_*` is one, named after what
it says. `tests.receiver.schedules` plays a schedule; see there what can happen in one.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskiq.acks import AcknowledgeType
from taskiq.batch import FlushReason
from taskiq.exceptions import (
    NoResultError,
    TaskiqBatchResultError,
    TaskRejectedError,
)
from tests.receiver.schedules import (
    BATCHED,
    GRACEFUL,
    ONE_TURN,
    SLOW_STEPS,
    AlphaError,
    BrokerLostError,
    CallError,
    CallRecord,
    Ending,
    Entry,
    Event,
    Fault,
    HookError,
    Kind,
    Record,
    Schedule,
    Sent,
    Stop,
    run,
)
from tests.support import virtual_time

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


# -- Schedules ----------------------------------------------------------------------

#: On one grid, so that many things happen at the same moment. Timeouts of calls are
#: beside it: which of two things at one moment wins is nobody's promise.
_SECONDS = st.sampled_from([0.0, 0.0, ONE_TURN, 0.5, 1.0, 2.0])
_TIMEOUTS = st.sampled_from([None, None, None, 0.75])

_SENT = st.builds(
    Sent,
    kind=st.sampled_from([Kind.ALPHA, Kind.ALPHA, Kind.BETA, Kind.PLAIN]),
    gap=_SECONDS,
    key=st.integers(0, 2),
    seconds=_SECONDS,
)

_TROUBLED = st.builds(
    Sent,
    kind=st.sampled_from([Kind.ALPHA, Kind.ALPHA, Kind.ALPHA, *Kind]),
    gap=_SECONDS,
    key=st.integers(0, 1),
    timeout=_TIMEOUTS,
    ack_type=st.sampled_from([None, None, *AcknowledgeType]),
    fault=st.sampled_from([None, None, None, *Fault]),
    entry=st.sampled_from([Entry.VALUE, Entry.VALUE, *Entry]),
    ending=st.sampled_from([Ending.RETURN, Ending.RETURN, Ending.RETURN, *Ending]),
    seconds=_SECONDS,
    slow_step=st.sampled_from(("", *SLOW_STEPS)),
    slow_seconds=_SECONDS,
    cancelled_after=st.sampled_from([None, None, 0.0, 0.5, 1.0]),
)


def _limits() -> st.SearchStrategy[dict[str, Any]]:
    def arguments(size: int, spare: int, **others: Any) -> dict[str, Any]:
        return {"batch_size": size, "batch_max_buffered": size + spare, **others}

    return st.builds(
        arguments,
        size=st.integers(1, 6),
        spare=st.integers(0, 4),
        batch_timeout=st.sampled_from([0.0, 0.5, 1.0, 2.0]),
        batch_idle_timeout=st.sampled_from([None, None, 0.5]),
        batch_concurrency=st.sampled_from([None, None, 1, 2]),
    )


@st.composite
def _schedules(
    draw: st.DrawFn,
    *,
    messages: st.SearchStrategy[Sent] = _SENT | _TROUBLED,
    stops: Iterable[Stop] = Stop,
    graces: Iterable[float | None] = (None, 0, 0.5, 2),
    own_callbacks: bool = False,
) -> Schedule:
    sent = tuple(draw(st.lists(messages, min_size=1, max_size=12)))
    stop = draw(st.sampled_from(list(stops)))
    limit = draw(st.integers(1, len(sent))) if stop is Stop.LIMIT else None
    return Schedule(
        sent=sent,
        alpha=draw(_limits()),
        beta=draw(_limits()),
        max_async_tasks=draw(st.integers(1, 3)),
        max_prefetch=draw(st.integers(0, 3)),
        ack_type=draw(st.sampled_from([None, *AcknowledgeType])),
        is_ackable=draw(st.sampled_from([True, True, True, False])),
        has_middleware=draw(st.booleans()),
        has_own_callback=own_callbacks,
        has_eager_tasks=sys.version_info >= (3, 12) and draw(st.booleans()),
        stop=stop,
        stop_at=draw(st.sampled_from([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0])),
        stop_again_after=draw(st.sampled_from([None, ONE_TURN, 0.5])),
        limit=limit,
        wait_tasks_timeout=draw(st.sampled_from(list(graces))),
        sent_later=tuple(draw(st.lists(_SENT, max_size=3))),
    )


# -- What has to become of a message ------------------------------------------------


@dataclass(frozen=True)
class Failure:
    """The error a message has to end with."""

    kind: type[BaseException]
    args: tuple[Any, ...] | None = None

    def matches(self, error: BaseException | None) -> bool:
        return isinstance(error, self.kind) and self.args in {None, error.args}


class Facts:
    """What follows from a record: the questions the rules ask of it."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.schedule = record.schedule
        self.call_of: dict[int, CallRecord] = {
            number: call for call in record.calls for number in call.numbers
        }
        self.delivered = record.delivered
        self.end_of_listening = next(
            event for event in record.events if event.step == "listen ended"
        )
        self.expected = {number: self._expected(number) for number in self.delivered}
        self.done = {number: self._done(number) for number in self.delivered}
        self.joined = {
            kind: [
                (number, event)
                for number in self.delivered
                if self.sent(number).kind is kind
                and (event := self._joining(number)) is not None
            ]
            for kind in BATCHED
        }
        self.admitted: dict[int, Event] = {}
        for kind, limits in self.batch_limits():
            self._work_out_admissions(kind, limits["batch_max_buffered"])

    def sent(self, number: int) -> Sent:
        return self.record.sent[number]

    def batch_limits(self) -> Iterator[tuple[Kind, dict[str, Any]]]:
        yield Kind.ALPHA, self.schedule.alpha
        yield Kind.BETA, self.schedule.beta

    def is_later(self, number: int) -> bool:
        """Whether it belongs to the second `listen`."""
        return number >= len(self.schedule.sent)

    def ack_type(self, number: int) -> AcknowledgeType:
        label = self.sent(number).ack_type
        return label or self.schedule.ack_type or AcknowledgeType.WHEN_SAVED

    def is_cancelled(self, number: int) -> bool:
        return bool(self.record.of(number, "cancelled"))

    # -- Outcomes --

    def outcome(self, number: int) -> object:
        """What the message has to end with: a value, a `Failure`; `None` if nothing."""
        sent = self.sent(number)
        if sent.fault is Fault.PRE_EXECUTE and self.schedule.has_middleware:
            return Failure(HookError, (number,))
        if sent.fault is Fault.CASTING and sent.kind in BATCHED:
            return Failure(ValueError)
        call = self.call_of.get(number)
        return None if call is None else self._outcome_of_call(number, sent, call)

    def _outcome_of_call(self, number: int, sent: Sent, call: CallRecord) -> object:
        decided = {
            Entry.SET_RESULT: ("set", number),
            Entry.FAIL: Failure(AlphaError, (number,)),
            Entry.REJECT: Failure(TaskRejectedError),
        }
        if sent.kind is Kind.ALPHA and sent.entry in decided:
            return decided[sent.entry]
        if sent.timeout is not None and self._seconds(call) > sent.timeout:
            return Failure(TimeoutError)
        ending = self.sent(call.numbers[0]).ending
        raised = {
            Ending.RAISE: Failure(CallError, call.numbers),
            Ending.NO_RESULT: Failure(NoResultError),
            Ending.CANCELLED: Failure(asyncio.CancelledError),
        }
        if ending in raised:
            return raised[ending]
        return self._outcome_of_return(number, sent, call, ending)

    @staticmethod
    def _outcome_of_return(
        number: int,
        sent: Sent,
        call: CallRecord,
        ending: Ending,
    ) -> object:
        if sent.kind is Kind.PLAIN:
            return ("plain", number)
        if sent.kind is Kind.BETA:
            return ("beta", call.numbers, sent.key)
        if ending is Ending.WRONG_LENGTH:
            return Failure(TaskiqBatchResultError)
        if sent.entry is Entry.ERROR:
            return Failure(AlphaError, (number,))
        return ("alpha", number)

    def _seconds(self, call: CallRecord) -> float:
        """How long the call takes if nothing cuts it short."""
        seconds = max(self.sent(call.numbers[0]).seconds, 0)
        if call.kind is Kind.BETA or not self.schedule.is_ackable:
            return seconds
        return seconds + sum(
            max(self.sent(number).takes("ack"), 0)
            for number in call.numbers
            if self.ack_type(number) is AcknowledgeType.MANUAL
        )

    # -- Steps --

    def _expected(self, number: int) -> list[str] | None:
        """List the steps of a message from start to end, `None` if it has no outcome.

        Acknowledging by hand is left to the function, and left out here.
        """
        if self.sent(number).kind in {Kind.GARBAGE, Kind.STRANGER}:
            return self._ack(number)
        outcome = self.outcome(number)
        if outcome is None:
            return None
        steps = self._admission(number)
        if number in self.call_of:
            steps += ["called", "call ended"]
        return steps + self._settlement(number, outcome)

    def _admission(self, number: int) -> list[str]:
        steps = ["pre_execute", "pre_executed"] if self.schedule.has_middleware else []
        return steps + self._ack(number, AcknowledgeType.WHEN_RECEIVED)

    def _settlement(self, number: int, outcome: object) -> list[str]:
        sent = self.sent(number)
        hooks = self.schedule.has_middleware
        told = ["on_error"] if isinstance(outcome, Failure) and hooks else []
        acked = self._ack(number, AcknowledgeType.WHEN_EXECUTED)
        is_told_first = sent.kind is Kind.PLAIN and number in self.call_of
        steps = told + acked if is_told_first else acked + told
        if hooks:
            steps += ["post_execute"]
        if not (isinstance(outcome, Failure) and outcome.kind is NoResultError):
            if sent.fault in {Fault.SAVE, Fault.SAVE_CANCELLED}:
                return [*steps, "save", "save failed"]
            steps += ["save", "saved"] + (["post_save"] if hooks else [])
        return steps + self._ack(number, AcknowledgeType.WHEN_SAVED)

    def _ack(self, number: int, moment: AcknowledgeType | None = None) -> list[str]:
        if not self.schedule.is_ackable:
            return []
        if moment is not None and self.ack_type(number) is not moment:
            return []
        failed = self.sent(number).fault is Fault.ACK
        return ["ack", "ack failed" if failed else "acked"]

    def steps(self, number: int) -> list[str]:
        """The steps the message took, by name."""
        return [event.step for event in self.step_events(number)]

    def step_events(self, number: int) -> list[Event]:
        """The steps the message took, but for acknowledging by hand."""
        sent = self.sent(number)
        is_by_hand = self.ack_type(
            number
        ) is AcknowledgeType.MANUAL and sent.kind not in {Kind.GARBAGE, Kind.STRANGER}
        return [
            event
            for event in self.record.of(number)
            if event.step not in _NO_STEPS
            and not (is_by_hand and event.step.startswith("ack"))
        ]

    def is_complete(self, number: int) -> bool:
        return self.steps(number) == self.expected[number]

    def has_begun(self, number: int) -> bool:
        """Whether more has happened to it than its admission."""
        steps = self.steps(number)
        return steps != self._admission(number)[: len(steps)]

    # -- Moments --

    def _done(self, number: int) -> Event:
        """When nothing more happens to it: what was cut short, ends with the stop."""
        if self.is_complete(number) or self.is_cancelled(number):
            return self.record.of(number)[-1]
        return self.end_of_listening

    def _joining(self, number: int) -> Event | None:
        """When it asks to be let into a batch, `None` if it does not get there."""
        fault = self.sent(number).fault
        if fault is Fault.CASTING:
            return None
        if fault is Fault.PRE_EXECUTE and self.schedule.has_middleware:
            return None
        is_acked_first = (
            self.schedule.is_ackable
            and self.ack_type(number) is AcknowledgeType.WHEN_RECEIVED
        )
        if is_acked_first:
            steps: tuple[str, ...] = ("acked", "ack failed")
        elif self.schedule.has_middleware:
            steps = ("pre_executed",)
        elif self.schedule.has_own_callback:
            steps = ("callback",)
        else:
            steps = ("deliver",)
        return next(iter(self.record.of(number, *steps)), None)

    def _work_out_admissions(self, kind: Kind, most: int) -> None:
        """Say when each was admitted: in order, once fewer than `most` are held."""
        before: list[Event] = []
        self.joined[kind].sort(key=lambda pair: pair[1].index)
        for number, joined in self.joined[kind]:
            dones = sorted(before, key=lambda event: event.index, reverse=True)
            moments = [joined, *dones[most - 1 : most]]
            self.admitted[number] = max(moments, key=lambda event: event.index)
            before.append(self.done[number])

    def batch_spans(self, kind: Kind) -> Iterator[tuple[Event, Event]]:
        """From when to when each call of a batch task holds its right to run."""
        ends = {c.numbers: c.ended for c in self.record.calls if c.kind is kind}
        if not self.schedule.has_middleware:
            for call in self.record.calls:
                if call.kind is kind:
                    yield call.started, call.ended or self.end_of_listening
            return
        for batch in self.record.batches:
            if batch.info.task_name == kind.value:
                yield batch.started, ends.get(batch.numbers) or self.end_of_listening

    def execution_spans(self) -> Iterator[tuple[Event, Event]]:
        """From when to when something holds an execution slot."""
        for kind in BATCHED:
            yield from self.batch_spans(kind)
        joined = dict(itertools.chain(*self.joined.values()))
        for number in self.delivered:
            is_batched = self.sent(number).kind in BATCHED
            if is_batched and not self.schedule.has_own_callback:
                continue
            events = self.record.of(number)[1:]
            if events:
                yield events[0], joined.get(number, self.done[number])


_NO_STEPS: Final = {"deliver", "callback", "cancelled", "hook ended", "batch ended"}


def _count_at(moment: float, spans: Iterable[tuple[Event, Event]]) -> int:
    return sum(start.time < moment < end.time for start, end in spans)


# -- The rules ----------------------------------------------------------------------


def _check_each_message_is_in_at_most_one_call(facts: Facts) -> None:
    counts = Counter(number for call in facts.record.calls for number in call.numbers)
    assert not counts or max(counts.values()) == 1
    assert counts.keys() <= set(facts.delivered)


def _check_each_message_takes_its_own_steps_in_order_and_once(facts: Facts) -> None:
    """One that was cut short took the first of them; nobody's are changed by others."""
    for number in facts.delivered:
        steps = facts.steps(number)
        expected = facts.expected[number]
        if expected is None:
            expected = facts._admission(number)
        assert steps == expected[: len(steps)], number


def _check_acks_by_hand_happen_once(facts: Facts) -> None:
    for number in facts.delivered:
        assert len(facts.record.of(number, "ack")) <= 1


def _check_each_result_is_its_own(facts: Facts) -> None:
    results = facts.record.results
    for number, (result, *others) in results.items():
        assert not others
        outcome = facts.outcome(number)
        if isinstance(outcome, Failure):
            assert result.is_err
            assert outcome.matches(result.error), (number, outcome, result.error)
        else:
            assert not result.is_err
            assert result.return_value == outcome
    objects = {id(result) for (result,) in results.values()}
    assert len(objects) == len(results), "two messages share one result object"


def _check_no_call_is_empty_or_too_large_or_of_two_groups(facts: Facts) -> None:
    limits = dict(facts.batch_limits())
    for call in facts.record.calls:
        sent = [facts.sent(number) for number in call.numbers]
        assert sent
        assert {(each.kind, each.key) for each in sent} == {(call.kind, call.key)}
        assert len({each.timeout for each in sent}) == 1
        most = limits[call.kind]["batch_size"] if call.kind in BATCHED else 1
        assert len(sent) <= most


def _check_a_group_is_called_in_order_of_arrival(facts: Facts) -> None:
    arrivals = {
        number: event.index
        for joined in facts.joined.values()
        for number, event in joined
    }
    called: dict[tuple[Any, ...], list[int]] = {}
    # Hooks of several batches run side by side; they begin in the order of batches.
    batches = facts.record.batches if facts.schedule.has_middleware else None
    for each in batches if batches is not None else facts.record.calls:
        sent = facts.sent(each.numbers[0])
        if sent.kind in BATCHED:
            group = called.setdefault((sent.kind, sent.key, sent.timeout), [])
            group += [arrivals[number] for number in each.numbers]
    for order in called.values():
        assert order == sorted(order)


def _check_no_more_calls_run_at_once_than_allowed(facts: Facts) -> None:
    moments = {
        event.index: change
        for call in facts.record.calls
        for event, change in ((call.started, 1), (call.ended, -1))
        if event is not None
    }
    limits = {
        kind.value: limits["batch_concurrency"] for kind, limits in facts.batch_limits()
    }
    assert _peak(moments) <= facts.schedule.max_async_tasks
    for kind in BATCHED:
        own = {
            event.index: change
            for call in facts.record.calls
            if call.kind is kind
            for event, change in ((call.started, 1), (call.ended, -1))
            if event is not None
        }
        most = limits[kind.value]
        assert most is None or _peak(own) <= most


def _peak(changes: dict[int, int]) -> int:
    steps = [changes[index] for index in sorted(changes)]
    return max(itertools.accumulate(steps), default=0)


def _check_no_more_messages_are_held_than_allowed(facts: Facts) -> None:
    schedule = facts.schedule
    deliveries = schedule.max_async_tasks + schedule.max_prefetch
    buffers = sum(limits["batch_max_buffered"] for _, limits in facts.batch_limits())
    for number in facts.delivered:
        (delivery,) = facts.record.of(number, "deliver")
        held = [
            other
            for other in facts.delivered
            if facts.record.of(other, "deliver")[0].index <= delivery.index
            and facts.done[other].index > delivery.index
        ]
        assert len(held) <= deliveries + buffers
        not_admitted = [
            other
            for other in held
            if other not in facts.admitted
            or facts.admitted[other].index > delivery.index
        ]
        assert len(not_admitted) <= deliveries


def _check_with_a_free_slot_nobody_waits_longer_than_the_timeout(facts: Facts) -> None:
    limits = dict(facts.batch_limits())
    executions = list(facts.execution_spans())
    moments = sorted({event.time for event in facts.record.events})
    for call in facts.record.calls:
        if call.kind not in BATCHED:
            continue
        most = limits[call.kind]["batch_concurrency"] or sys.maxsize
        own = list(facts.batch_spans(call.kind))
        first = facts.admitted[call.numbers[0]].time
        deadline = first + limits[call.kind]["batch_timeout"]
        began = _beginning(facts, call).time
        for start, end in itertools.pairwise(moments):
            middle = (max(start, deadline) + min(end, began)) / 2
            if not max(start, deadline) < middle < min(end, began):
                continue
            is_blocked = (
                _count_at(middle, executions) >= facts.schedule.max_async_tasks
                or _count_at(middle, own) >= most
            )
            assert is_blocked, f"{call} waits at {middle} though a slot is free"


def _beginning(facts: Facts, call: CallRecord) -> Event:
    """When a call's batch was taken: its hooks run before the function."""
    for batch in facts.record.batches:
        if batch.numbers == call.numbers:
            return batch.started
    return call.started


def _check_batch_hooks_tell_the_truth(facts: Facts) -> None:
    if not facts.schedule.has_middleware:
        return
    batches = {batch.numbers: batch for batch in facts.record.batches}
    assert len(batches) == len(facts.record.batches)
    for call in facts.record.calls:
        assert call.kind not in BATCHED or call.numbers in batches
    limits = {kind.value: limits for kind, limits in facts.batch_limits()}
    for batch in batches.values():
        own = limits[batch.info.task_name]
        _reason_is_true(facts, batch.reason, batch.info.waited, own, len(batch.numbers))
        if not any(map(facts.is_cancelled, facts.delivered)):
            waited = batch.started.time - facts.admitted[batch.numbers[0]].time
            assert batch.info.waited == pytest.approx(waited)
        if all(map(facts.is_complete, batch.numbers)):
            assert batch.ended is not None


def _reason_is_true(
    facts: Facts,
    reason: FlushReason,
    waited: float,
    limits: dict[str, Any],
    size: int,
) -> None:
    if reason is FlushReason.SIZE and not facts.schedule.has_own_callback:
        assert size == limits["batch_size"]
    elif reason is FlushReason.TIMEOUT:
        assert waited >= limits["batch_timeout"]
    elif reason is FlushReason.IDLE:
        assert waited >= limits["batch_idle_timeout"]
    assert reason is not FlushReason.MANUAL
    assert reason is not FlushReason.WEIGHT


def _check_who_is_cancelled_gets_no_call_no_result_and_no_ack(facts: Facts) -> None:
    """Unless he is late: a batch that was taken is called, a settling is finished."""
    for number in facts.delivered:
        for cancelled in facts.record.of(number, "cancelled"):
            steps = facts.step_events(number)
            after = [e.step for e in steps if e.index > cancelled.index]
            if "called" in after:
                began = _beginning(facts, facts.call_of[number])
                assert began.time <= cancelled.time
            before = [e.step for e in steps if e.index < cancelled.index]
            not_settling = {*facts._admission(number), "called", "call ended"}
            if not_settling.issuperset(before):
                assert not_settling.issuperset(after), number


def _check_what_was_stopped_early_had_no_time_left(facts: Facts) -> None:
    record, schedule = facts.record, facts.schedule
    cut = [
        number
        for number in facts.delivered
        if not facts.is_later(number)
        and not facts.is_complete(number)
        and not facts.is_cancelled(number)
    ]
    latest = _latest_end(facts)
    assert latest is None or record.ended_at <= latest
    if schedule.stop in GRACEFUL:
        unexcused = cut
    else:  # what has not begun by then is left to be delivered again
        unexcused = [number for number in cut if facts.has_begun(number)]
    if unexcused:
        assert latest is not None, f"not run to the end: {unexcused}"
        assert record.ended_at == latest, f"cut short with time left: {unexcused}"


def _latest_end(facts: Facts) -> float | None:
    """The moment at which the first `listen` has to be over, if there is one."""
    schedule, stops = facts.schedule, facts.record.stops
    grace = schedule.wait_tasks_timeout
    if schedule.stop is Stop.CANCELLATION:
        return min(stops[0] + (grace or 0), *stops[1:], sys.maxsize)
    return None if grace is None else stops[0] + grace


def _check_a_second_listen_finds_everything_as_it_was(facts: Facts) -> None:
    if not facts.schedule.sent_later:
        return
    later = range(len(facts.schedule.sent), len(facts.record.sent))
    assert all(number in facts.expected for number in later)
    assert all(facts.is_complete(number) for number in later)


def _check_listening_ends_as_it_was_told(facts: Facts) -> None:
    error = facts.record.error
    if facts.schedule.stop is Stop.CANCELLATION:
        assert isinstance(error, asyncio.CancelledError)
    elif facts.schedule.stop is Stop.BROKER_FAILS:
        assert isinstance(error, BaseExceptionGroup)
        assert error.subgroup(BrokerLostError) is not None
    else:
        assert error is None


def _check_nothing_is_left_behind(facts: Facts) -> None:
    schedule = facts.schedule
    assert len(facts.record.left) == 1 + bool(schedule.sent_later)
    for left in facts.record.left:
        assert not left.tasks
        assert not left.timers
        assert left.executions == schedule.max_async_tasks
        assert left.deliveries == schedule.max_async_tasks + schedule.max_prefetch
        assert all(statistics.is_idle for statistics in left.batches)
    assert not facts.record.reports


_RULES: Final = [rule for name, rule in globals().items() if name.startswith("_check_")]


def _play(schedule: Schedule) -> Facts:
    facts = Facts(run(schedule))
    for rule in _RULES:
        rule(facts)
    return facts


@pytest.fixture(autouse=True, scope="module")
def _no_threads() -> Iterator[None]:
    """Nothing outside the loop can wake it here: what is stuck is stuck at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(virtual_time, "_STUCK_AFTER", 0.0)
        yield


def _often(times: int) -> settings:
    """So many times the number of examples the profile asks for."""
    examples = settings().max_examples * times
    return settings(max_examples=examples, deadline=None)


@_often(5)
@given(_schedules(messages=_SENT, stops=GRACEFUL, graces=[None]))
def test_everything_that_arrives_is_called_once_and_settled(schedule: Schedule) -> None:
    facts = _play(schedule)
    assert all(map(facts.is_complete, facts.delivered))


@_often(5)
@given(_schedules(messages=_TROUBLED, stops=GRACEFUL, graces=[None]))
def test_the_trouble_of_one_message_is_the_trouble_of_no_other(
    schedule: Schedule,
) -> None:
    facts = _play(schedule)
    assert all(map(facts.is_complete, facts.delivered))


@_often(5)
@given(_schedules())
def test_a_stop_at_any_moment_leaves_nothing_behind(schedule: Schedule) -> None:
    _play(schedule)


@_often(5)
@given(_schedules(own_callbacks=True))
def test_it_all_holds_for_callbacks_of_ones_own(schedule: Schedule) -> None:
    _play(schedule)
