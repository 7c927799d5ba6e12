"""What is always true of a worker, over random schedules in virtual time.

Every schedule is checked against every rule: each `_check_*` is one, named after what
it says. See `tests.batching.schedules` for what can happen in a schedule,
`tests.batching.playing` for how it is played, `tests.batching.facts` for what follows.

With the environment variable TASKIQ_SCHEDULES=100000 about so many are played, and
other ones each time, unless `--hypothesis-seed` says which.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import os
import sys
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import HealthCheck, find, given, settings
from hypothesis import strategies as st

from taskiq.acks import AcknowledgeType
from taskiq.batch import BatchConfig, FlushReason
from taskiq.rates import LATENESS
from taskiq.receiver.states import MessageState
from tests.batching.facts import Facts, Failure, count_at, peak
from tests.batching.playing import play
from tests.batching.schedules import (
    BATCHED,
    FOREVER,
    GRACEFUL,
    ONE_TURN,
    REFUSED,
    SLOW_STEPS,
    BrokerLostError,
    Ending,
    Entrance,
    Entry,
    Error,
    Fault,
    Hooks,
    Kind,
    Limits,
    PoisonError,
    Schedule,
    Sent,
    Stop,
    arguments_of,
)
from tests.support import virtual_time

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tests.batching.records import BatchRecord, CallRecord, Event, Life


# -- Schedules ----------------------------------------------------------------------

#: On one grid, so that many things happen at the same moment. Timeouts of calls and
#: saves are beside it: which of two things at one moment wins is nobody's promise.
_SECONDS = st.sampled_from([0.0, 0.0, ONE_TURN, 0.5, 1.0, 2.0])
_SECONDS_OR_NO_END = st.sampled_from([0.0, 0.0, ONE_TURN, 0.5, 1.0, 2.0, FOREVER])
_TIMEOUTS = st.sampled_from([None, None, None, 0.75])
_PRIORITIES = st.sampled_from([None, None, None, -1, 2.5])
_RATES = st.sampled_from([None, None, "1/s", "4/s", "100/m"])

_SENT = st.builds(
    Sent,
    kind=st.sampled_from([Kind.ALPHA, Kind.ALPHA, Kind.BETA, Kind.PLAIN]),
    gap=_SECONDS,
    key=st.integers(0, 2),
    weight=st.integers(0, 4),
    same=st.integers(0, 3),
    priority=_PRIORITIES,
    seconds=_SECONDS,
)

_TROUBLED = st.builds(
    Sent,
    kind=st.sampled_from([Kind.ALPHA, Kind.ALPHA, Kind.ALPHA, *Kind]),
    gap=_SECONDS,
    key=st.integers(0, 1),
    weight=st.integers(0, 2),
    same=st.integers(0, 3),
    timeout=_TIMEOUTS,
    ack_type=st.sampled_from([None, None, *AcknowledgeType]),
    priority=_PRIORITIES,
    fault=st.sampled_from([None, None, None, None, *Fault]),
    error=st.sampled_from([Error.ORDINARY, *Error]),
    entry=st.sampled_from([Entry.VALUE, Entry.VALUE, *Entry]),
    ending=st.sampled_from([Ending.RETURN, Ending.RETURN, Ending.RETURN, *Ending]),
    seconds=_SECONDS_OR_NO_END,
    slow_step=st.sampled_from(("", *SLOW_STEPS)),
    slow_seconds=_SECONDS_OR_NO_END,
    cancelled_after=st.sampled_from([None, None, 0.0, 0.5, 1.0]),
)

_LIMITS = st.builds(
    Limits,
    size=st.integers(1, 6),
    spare=st.integers(0, 4),
    timeout=st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    idle=st.sampled_from([None, None, 0.5]),
    concurrency=st.sampled_from([None, None, 1, 2]),
    has_key=st.booleans(),
    max_weight=st.sampled_from([None, None, 3.0, 7.0]),
    coalesces=st.booleans(),
    isolates=st.sampled_from([False, False, True, (PoisonError, OSError), (OSError,)]),
    rate=_RATES,
    priority=_PRIORITIES,
)
# Without hooks nobody knows of a batch what the function is not called with.
_LIMITS_WITHOUT_HOOKS = st.builds(
    Limits,
    size=st.integers(1, 6),
    spare=st.integers(0, 4),
    timeout=st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    idle=st.sampled_from([None, None, 0.5]),
    concurrency=st.sampled_from([None, None, 1, 2]),
    has_key=st.booleans(),
    max_weight=st.sampled_from([None, 3.0, 7.0]),
    rate=_RATES,
    priority=_PRIORITIES,
)


@st.composite
def _schedules(
    draw: st.DrawFn,
    *,
    messages: st.SearchStrategy[Sent] = _SENT | _TROUBLED,
    entrances: Iterable[Entrance] = (Entrance.LISTEN,),
    stops: Iterable[Stop] = Stop,
    graces: Iterable[float | None] = (None, 0, 0.5, 2),
    own_callbacks: bool = False,
    beside: int = 0,
) -> Schedule:
    sent = tuple(draw(st.lists(messages, min_size=1, max_size=12)))
    stop = draw(st.sampled_from(list(stops)))
    limit = draw(st.integers(1, len(sent))) if stop is Stop.LIMIT else None
    hooks = draw(st.sampled_from([Hooks.ALL, *Hooks]))
    limits = _LIMITS_WITHOUT_HOOKS if hooks is Hooks.NONE else _LIMITS
    entrance = draw(st.sampled_from(list(entrances)))
    is_listening = entrance is Entrance.LISTEN
    return Schedule(
        sent=sent,
        sent_later=tuple(draw(st.lists(_SENT, max_size=3))) if is_listening else (),
        beside=tuple(draw(st.lists(messages, max_size=beside))),
        entrance=entrance,
        alpha=draw(limits),
        beta=draw(limits),
        max_async_tasks=draw(st.sampled_from([1, 2, 3, None])),
        max_prefetch=draw(st.integers(0, 3)),
        ack_type=draw(st.sampled_from([None, *AcknowledgeType])),
        is_ackable=draw(st.sampled_from([True, True, True, False])),
        hooks=hooks,
        has_own_callback=own_callbacks,
        has_eager_tasks=sys.version_info >= (3, 12) and draw(st.booleans()),
        save_timeout=draw(st.sampled_from([None, 1.25, 30.25])),
        stop=stop,
        stop_at=draw(st.sampled_from([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0])),
        stop_again_after=draw(st.sampled_from([None, ONE_TURN, 0.5])),
        limit=limit,
        wait_tasks_timeout=draw(st.sampled_from(list(graces))),
    ).made_finite()


# -- The rules ----------------------------------------------------------------------

#: Seconds by which the difference of two moments may be off.
_ROUNDING: Final = 1e-6


def _check_each_message_is_in_at_most_one_batch(facts: Facts) -> None:
    numbers = [number for batch in facts.record.batches for number in batch.numbers]
    assert len(set(numbers)) == len(numbers)
    assert set(numbers) <= set(facts.delivered)
    for number, calls in facts.calls_of.items():
        limits = facts.limits.get(facts.sent(number).kind)
        assert len(calls) == 1 or (limits is not None and limits.isolates)


def _check_equal_items_are_passed_once(facts: Facts) -> None:
    for batch in facts.record.batches:
        passed = dict.fromkeys(map(facts.passed_for, batch.numbers))
        calls = _calls_of(facts, batch)
        if calls:
            assert calls[0].numbers == tuple(passed)
        for call in calls:
            assert set(call.numbers) <= passed.keys()
            assert len(set(call.numbers)) == len(call.numbers)


def _check_only_culprits_fail_where_they_are_isolated(facts: Facts) -> None:
    """Of so few items all culprits are found within the bound."""
    for batch in facts.record.batches:
        calls = _calls_of(facts, batch)
        first = facts.sent(batch.numbers[0])
        limits = facts.limits[first.kind]
        sent = [facts.sent(number) for number in batch.numbers]
        is_clear = all(
            each.ending is Ending.RETURN
            and each.entry in {Entry.VALUE, Entry.POISON}
            and each.timeout is None
            for each in sent
        )
        is_whole = all(map(facts.is_complete, batch.numbers))
        if not (limits.isolates_poison and limits.size > 1 and is_clear and is_whole):
            continue
        for call in calls:
            is_last = all(facts.calls_of[each][-1] is call for each in call.numbers)
            assert (
                not is_last or len(call.numbers) == 1 or not _is_poisoned(facts, call)
            )


def _is_poisoned(facts: Facts, call: CallRecord) -> bool:
    return any(facts.sent(number).entry is Entry.POISON for number in call.numbers)


def _calls_of(facts: Facts, batch: BatchRecord) -> list[CallRecord]:
    """The calls of one batch, in order."""
    numbers = set(batch.numbers)
    return [call for call in facts.record.calls if call.numbers[0] in numbers]


def _check_each_message_takes_its_own_steps_in_order_and_once(facts: Facts) -> None:
    """One that was cut short took the first of them; nobody's are changed by others."""
    for number in facts.delivered:
        steps = facts.steps(number)
        expected = facts.expected[number]
        if expected is None:
            expected = facts.admission(number)
        if steps != expected and steps and steps[-1].endswith("interrupted"):
            del steps[-1]
        assert steps == expected[: len(steps)], number


def _check_the_broker_sees_one_ack_and_none_before_a_result_is_saved(
    facts: Facts,
) -> None:
    for number in facts.delivered:
        acks = facts.record.of(number, "ack")
        assert len(acks) <= 1
        sent = facts.sent(number)
        is_saved_first = (
            sent.kind not in REFUSED
            and facts.ack_type(number) is AcknowledgeType.WHEN_SAVED
            and not _has_no_result(facts, number)
        )
        for ack in acks if is_saved_first else ():
            (saved,) = facts.record.of(number, "saved")
            assert saved.index < ack.index


def _has_no_result(facts: Facts, number: int) -> bool:
    outcome = facts.outcome(number)
    return isinstance(outcome, Failure) and not facts.record.of(number, "save")


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
    mine: list[object] = [result for (result,) in results.values()]
    if facts.schedule.hooks is not Hooks.NONE:
        mine += [r.error for (r,) in results.values() if r.error is not None]
        mine += [
            r.return_value
            for (r,) in results.values()
            if isinstance(r.return_value, list)
        ]
    assert len(set(map(id, mine))) == len(mine), "two messages share what may change"


def _check_each_step_sees_the_context_of_its_message_and_no_other(facts: Facts) -> None:
    is_set_before = facts.schedule.has_own_callback or not facts.is_listening
    for event in facts.record.events:
        if event.step in {"deliver", "cancelled", "life ended", "call"}:
            continue  # nobody's, or told once more as "called"
        kind = None if event.number < 0 else facts.sent(event.number).kind
        is_of_batch = event.step in {"batch starts", "batch ended"} or (
            event.step in {"called", "call ended"} and kind in BATCHED
        )
        if is_of_batch:
            assert event.seen is None, event
        elif facts.has_all_hooks and event.step in _AFTER_PRE_EXECUTE:
            assert event.seen == event.number, event
        elif is_set_before or (facts.has_all_hooks and event.step in _ACKS):
            assert event.seen in {None, event.number}, event
        else:
            assert event.seen is None, event


_AFTER_PRE_EXECUTE: Final = {
    "pre_executed",
    "called",
    "call ended",
    "on_error",
    "post_execute",
    "hook ended",
    "save",
    "saved",
    "save failed",
    "save interrupted",
    "post_save",
}
_ACKS: Final = {"ack", "acked", "ack failed", "ack interrupted"}


def _check_no_call_is_empty_or_too_large_or_of_two_groups(facts: Facts) -> None:
    for call in facts.record.calls:
        sent = [facts.sent(number) for number in call.numbers]
        assert sent
        assert {(each.kind, each.key) for each in sent} == {(call.kind, call.key)}
        assert len({each.timeout for each in sent}) == 1
        if call.kind not in BATCHED:
            assert len(sent) == 1
    for kind, numbers in _batches(facts):
        limits = facts.limits[kind]
        sent = [facts.sent(number) for number in numbers]
        assert len(sent) <= limits.size
        assert len({each.key for each in sent}) == 1
        assert not limits.has_key or len({each.weight % 2 for each in sent}) == 1
        if limits.max_weight is not None and len(sent) > 1:
            assert sum(each.weight for each in sent) <= limits.max_weight


def _batches(facts: Facts) -> Iterator[tuple[Kind, tuple[int, ...]]]:
    """The task and the messages of each batch, in the order in which they began."""
    is_told = facts.schedule.hooks is not Hooks.NONE
    for each in facts.record.batches if is_told else facts.record.calls:
        kind = facts.sent(each.numbers[0]).kind
        if kind in BATCHED:
            yield kind, each.numbers


def _check_a_group_is_called_in_order_of_arrival(facts: Facts) -> None:
    """But for batches with a higher priority than others of their group."""
    if facts.record.entrance is Entrance.IN_PLACE:
        return
    called: dict[tuple[Any, ...], list[int]] = {}
    for kind, numbers in _batches(facts):
        sent = facts.sent(numbers[0])
        own = sent.weight % 2 if facts.limits[kind].has_key else None
        group = called.setdefault((kind, sent.key, sent.timeout, own), [])
        group += [facts.joined[number].index for number in numbers]
    mixed = {
        facts.sent(number).kind
        for number in facts.delivered
        if facts.sent(number).priority is not None
    }
    for (kind, *_), order in called.items():
        assert kind in mixed or order == sorted(order)


def _check_calls_start_at_the_rate_of_their_task(facts: Facts) -> None:
    """Those that find culprits, too."""
    if facts.record.entrance is Entrance.IN_PLACE:
        return
    for kind, limits in facts.batch_limits():
        for earlier, later in itertools.pairwise(facts.paced_starts(kind)):
            assert later - earlier >= limits.interval - LATENESS - _ROUNDING


def _check_no_more_calls_run_at_once_than_allowed(facts: Facts) -> None:
    calls = facts.record.calls
    most = facts.schedule.max_async_tasks
    if facts.is_listening and most is not None:
        assert peak((call.started, call.ended) for call in calls) <= most
    if facts.record.entrance is Entrance.IN_PLACE:
        return
    for kind, limits in facts.batch_limits():
        own = peak((call.started, call.ended) for call in calls if call.kind is kind)
        assert limits.concurrency is None or own <= limits.concurrency


def _check_no_more_messages_are_held_than_allowed(facts: Facts) -> None:
    schedule = facts.schedule
    if not facts.is_listening or schedule.max_async_tasks is None:
        return
    deliveries = schedule.max_async_tasks + schedule.max_prefetch
    for number in facts.delivered:
        (delivery,) = facts.record.of(number, "deliver")
        held = [
            facts.state_at(other, delivery)
            for other in facts.delivered
            if facts.record.of(other, "deliver")[0].index <= delivery.index
            and facts.done[other].index > delivery.index
        ]
        in_batch = (MessageState.BUFFERED, MessageState.PARKED)
        assert sum(state not in in_batch for state in held) <= deliveries


def _check_a_task_holds_no_more_than_it_may(facts: Facts) -> None:
    if facts.record.entrance is Entrance.IN_PLACE:
        return
    for kind, limits in facts.batch_limits():
        own = [number for number in facts.admitted if facts.sent(number).kind is kind]
        held = peak((facts.admitted[each], facts.done[each]) for each in own)
        assert held <= limits.max_buffered
        parked = [
            event.time
            for event, state in facts.record.moves
            if state is MessageState.PARKED and facts.sent(event.number).kind is kind
        ]
        for earlier, later in itertools.pairwise(parked):
            assert later - earlier >= limits.patience - _ROUNDING


def _check_with_a_free_slot_nobody_waits_longer_than_the_timeout(facts: Facts) -> None:
    most = facts.schedule.max_async_tasks if facts.is_listening else None
    executions = list(facts.execution_spans())
    moments = sorted({event.time for event in facts.record.events})
    for call in facts.record.calls:
        numbers = _fellows(facts, call)
        if call.kind not in BATCHED or facts.calls_of[call.numbers[0]][0] is not call:
            continue
        limits = facts.limits[call.kind]
        own = list(facts.batch_spans(call.kind))
        paced = facts.paced_starts(call.kind)
        deadline = facts.admitted[numbers[0]].time + limits.timeout
        began = facts.beginning(call).time
        for start, end in itertools.pairwise(moments):
            middle = (max(start, deadline) + min(end, began)) / 2
            if not max(start, deadline) < middle < min(end, began):
                continue
            assert (
                count_at(middle, executions) >= (most or math.inf)
                or count_at(middle, own) >= (limits.concurrency or math.inf)
                or any(0 <= middle - each < limits.interval for each in paced)
            ), f"{call} waits at {middle}"


def _fellows(facts: Facts, call: CallRecord) -> tuple[int, ...]:
    batch = facts.batch_of.get(call.numbers[0])
    return call.numbers if batch is None else batch.numbers


def _check_batch_hooks_tell_the_truth(facts: Facts) -> None:
    if facts.schedule.hooks is Hooks.NONE:
        return
    for call in facts.record.calls:
        assert call.kind not in BATCHED or call.numbers[0] in facts.batch_of
    for batch in facts.record.batches:
        kind = facts.sent(batch.numbers[0]).kind
        assert batch.info.task_name == kind.value
        _reason_is_true(facts, batch, facts.limits[kind])
        if not any(map(facts.is_cancelled, facts.delivered)):
            waited = batch.started.time - facts.admitted[batch.numbers[0]].time
            assert batch.info.waited == pytest.approx(waited)
        if any(map(facts.is_done, batch.numbers)):
            assert batch.ended is not None
        if batch.ended is not None:
            assert len(_calls_of(facts, batch)) == 1 + batch.info.isolation_calls
            assert facts.limits[kind].isolates or not batch.info.isolation_calls
        for number, result in zip(batch.numbers, batch.results, strict=False):
            for saved in facts.record.results.get(number, ()):
                assert result is saved, "not aligned"


def _reason_is_true(facts: Facts, batch: BatchRecord, limits: Limits) -> None:
    reason, waited = batch.reason, batch.info.waited
    is_cancellable = any(map(facts.is_cancelled, facts.delivered))
    if reason is FlushReason.SIZE and not is_cancellable:
        assert len(batch.numbers) == limits.size
    elif reason is FlushReason.TIMEOUT:
        assert waited >= limits.timeout - _ROUNDING
    elif reason is FlushReason.IDLE:
        assert limits.idle is not None
        assert waited >= limits.idle - _ROUNDING
    elif reason is FlushReason.WEIGHT:
        assert limits.max_weight is not None
    elif reason is FlushReason.MANUAL:
        assert not facts.is_listening
    elif reason is FlushReason.SHUTDOWN:
        assert batch.started.time >= facts.record.lives[0].stops[0]
    if facts.record.entrance is Entrance.IN_PLACE:
        assert reason is FlushReason.MANUAL
        assert len(batch.numbers) == 1


def _check_who_is_cancelled_gets_no_call_no_result_and_no_ack(facts: Facts) -> None:
    """Unless he is late: a batch that was taken is called, a settling is finished."""
    not_settling = {"called", "call ended", "ack interrupted"}
    for number in facts.delivered:
        for cancelled in facts.record.of(number, "cancelled"):
            steps = facts.step_events(number)
            before = [e.step for e in steps if e.index < cancelled.index]
            after = [e.step for e in steps if _is_after(facts, e, cancelled)]
            if "called" in after and "called" not in before:
                began = facts.beginning(facts.calls_of[number][0])
                assert began.time <= cancelled.time
            allowed = not_settling.union(facts.admission(number))
            if allowed.issuperset(before):
                assert allowed.issuperset(after), number


def _is_after(facts: Facts, event: Event, cancelled: Event) -> bool:
    """Whether something happened after a cancellation had got there.

    One in place takes a turn of the loop to get from who waits to what runs.
    """
    if facts.record.entrance is Entrance.IN_PLACE:
        return event.time > cancelled.time
    return event.index > cancelled.index


def _check_what_was_stopped_early_had_no_time_left(facts: Facts) -> None:
    for life in facts.record.lives:
        if life.left is None:  # it ended with its loop
            continue
        latest = _latest_end(facts, life)
        assert latest is None or life.ended_at <= latest
        unexcused = _unexcused(facts, life)
        if unexcused:
            assert latest is not None, f"not run to the end: {unexcused}"
            assert life.ended_at == latest, f"cut short with time left: {unexcused}"


def _unexcused(facts: Facts, life: Life) -> list[int]:
    """Those that a life has not run to their end, though it had to within its time."""
    lives, stop = facts.record.lives, facts.schedule.stop
    is_last = life is lives[-1]
    is_told = facts.is_listening and life is lives[0]
    if is_told and stop is Stop.BROKER_FAILS:
        return []  # they run on meanwhile
    cut = [
        number
        for number in facts.delivered
        if (number in life.numbers or (is_last and stop is Stop.BROKER_FAILS))
        and not facts.is_complete(number)
        and not facts.is_cancelled(number)
    ]
    # What has not begun by then is left to be delivered again.
    is_excused = stop in {Stop.BROKER_FAILS, Stop.CANCELLATION} and facts.is_listening
    first = lives[0].numbers
    return [
        number
        for number in cut
        if not (is_excused and number in first and not facts.has_begun(number))
    ]


def _latest_end(facts: Facts, life: Life) -> float | None:
    """The moment at which a life has to be over, if there is one."""
    stop, stops, grace = facts.schedule.stop, life.stops, life.grace
    is_told = facts.is_listening and life is facts.record.lives[0]
    if is_told and stop is Stop.CANCELLATION:
        return min(stops[0] + (grace or 0), *stops[1:], sys.maxsize)
    if is_told and stop is Stop.BROKER_FAILS:
        return stops[0]
    return None if grace is None or not facts.is_listening else stops[0] + grace


def _check_nobody_waits_long_for_the_settling_of_others(facts: Facts) -> None:
    """A message is over a moment after its last step, whatever its batch waits for."""
    for number in facts.delivered:
        steps = facts.step_events(number)
        if steps and facts.is_done(number):
            assert facts.done[number].time - steps[-1].time <= _PATIENCE


#: Seconds within which the slow members of a batch are left to themselves, at most.
_PATIENCE: Final = 6.0


def _check_listening_ends_as_it_was_told(facts: Facts) -> None:
    for life in facts.record.lives:
        stop = facts.schedule.stop if life is facts.record.lives[0] else None
        if not facts.is_listening:
            assert life.error is None
        elif stop is Stop.CANCELLATION:
            assert isinstance(life.error, asyncio.CancelledError)
        elif stop is Stop.BROKER_FAILS:
            assert isinstance(life.error, BaseExceptionGroup)
            assert life.error.subgroup(BrokerLostError) is not None
        else:
            assert life.error is None, repr(life.error)


def _check_nothing_is_left_behind(facts: Facts) -> None:
    most, schedule = facts.schedule.max_async_tasks, facts.schedule
    first = facts.record.lives[0]
    for life in facts.record.lives:
        left = life.left
        goes_on = facts.is_listening and schedule.stop is Stop.BROKER_FAILS
        if left is None or (goes_on and life is first):
            continue
        assert not left.tasks
        assert not left.timers
        assert all(statistics.is_idle for statistics in left.batches)
        if facts.is_listening:
            assert left.executions == most
            assert left.deliveries == (most or 1) + schedule.max_prefetch
    assert not facts.record.problems


_RULES: Final = [rule for name, rule in globals().items() if name.startswith("_check_")]


def _play(schedule: Schedule) -> list[Facts]:
    """Play a schedule, and check every rule in each of its loops."""
    all_facts = [Facts(record) for record in play(schedule)]
    for facts in all_facts:
        for rule in _RULES:
            rule(facts)
    return all_facts


def _play_to_the_end(schedule: Schedule) -> None:
    for facts in _play(schedule):
        for number in facts.delivered:
            assert facts.is_complete(number) or facts.is_cancelled(number), number


@pytest.fixture(autouse=True, scope="module")
def _no_threads() -> Iterator[None]:
    """Nothing outside the loop can wake it here: what is stuck is stuck at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(virtual_time, "_STUCK_AFTER", 0.0)
        yield


#: Of how many parts of all schedules each property plays its number.
_PARTS: Final = 18


def _often(parts: int) -> settings:
    """So many parts of all schedules: of the profile's, or of TASKIQ_SCHEDULES."""
    wanted = os.environ.get("TASKIQ_SCHEDULES")
    if wanted is None:
        return settings(max_examples=settings().max_examples * parts, deadline=None)
    return settings(
        max_examples=math.ceil(int(wanted) * parts / _PARTS),
        deadline=None,
        derandomize=False,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def test_the_model_mixes_every_argument_there_is() -> None:
    limits = find(_LIMITS, lambda _: True)
    functions = dict.fromkeys(("key", "weight", "coalesce"), repr)
    assert {"batch_results"} | set(arguments_of(limits, functions)) == {
        f"batch_{field.name}" for field in fields(BatchConfig)
    }


# Found by the properties below, each in its smallest form.
_MENDED: Final = {
    # `KeyError` stood in for the cancellation.
    "cancelled in place in the moment of its end": Schedule(
        sent=(Sent(cancelled_after=0.0),),
        entrance=Entrance.IN_PLACE,
        hooks=Hooks.NONE,
    ),
    # The second one failed, with what comparing the first one raised.
    "equal to one that cannot be compared": Schedule(
        sent=(Sent(fault=Fault.COMPARING), Sent()),
        alpha=Limits(coalesces=True),
    ),
    "of the group of one that cannot be compared": Schedule(
        sent=(Sent(fault=Fault.COMPARING_KEY, error=Error.PANIC), Sent()),
        alpha=Limits(has_key=True),
    ),
    # It was left, as the time of the other loop to stop was over.
    "beside a loop that has stopped": Schedule(
        sent=(Sent(gap=1.0),),
        beside=(Sent(gap=0.5), Sent(kind=Kind.PLAIN)),
        stop=Stop.FINISH_EVENT,
        wait_tasks_timeout=0,
    ),
}


@pytest.mark.parametrize("schedule", _MENDED.values(), ids=list(_MENDED))
def test_what_the_model_has_found_stays_mended(schedule: Schedule) -> None:
    _play_to_the_end(schedule)


@_often(3)
@given(_schedules(messages=_SENT, stops=GRACEFUL, graces=[None]))
def test_everything_that_arrives_is_called_once_and_settled(schedule: Schedule) -> None:
    _play_to_the_end(schedule)


@_often(5)
@given(_schedules(messages=_TROUBLED, stops=GRACEFUL, graces=[None]))
def test_the_trouble_of_one_message_is_the_trouble_of_no_other(
    schedule: Schedule,
) -> None:
    _play_to_the_end(schedule)


@_often(5)
@given(_schedules())
def test_a_stop_at_any_moment_leaves_nothing_behind(schedule: Schedule) -> None:
    _play(schedule)


@_often(2)
@given(_schedules(own_callbacks=True))
def test_it_all_holds_for_callbacks_of_ones_own(schedule: Schedule) -> None:
    _play(schedule)


@_often(2)
@given(
    _schedules(
        entrances=[Entrance.KICK, Entrance.KICK, Entrance.IN_PLACE],
        stops=[Stop.BROKER_ENDS],
        beside=6,
    ),
)
def test_it_all_holds_in_process_for_each_of_two_loops(schedule: Schedule) -> None:
    _play_to_the_end(schedule)


@_often(1)
@given(
    _schedules(beside=6)
    | _schedules(
        entrances=[Entrance.KICK, Entrance.IN_PLACE],
        stops=[Stop.CANCELLATION],
        beside=6,
    ),
)
def test_one_loop_works_on_however_another_one_stops(schedule: Schedule) -> None:
    _first, *others = _play(schedule)
    for facts in others:
        for number in facts.delivered:
            assert facts.is_complete(number) or facts.is_cancelled(number), number
