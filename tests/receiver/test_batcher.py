"""The rules of batching alone: which members share a call, and when it may start."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from taskiq.batch import BatchConfig, FlushReason
from taskiq.receiver.batcher import MOVES, Batch, Batcher, BatchState
from taskiq.testing import ManualClock

if TYPE_CHECKING:
    from collections.abc import Iterator

_UNLIMITED = 1000


class Bench:
    """A batcher of one task on a clock of its own, and what it has said so far."""

    def __init__(
        self,
        *,
        size: int = 10,
        timeout: float = 10,
        max_buffered: int = _UNLIMITED,
        **limits: Any,
    ) -> None:
        self.clock = ManualClock()
        self.config = BatchConfig(
            size=size,
            timeout=timeout,
            max_buffered=max_buffered,
            **limits,
        )
        self.admitted: list[str] = []
        self.wakes = 0
        self.batcher: Batcher[str] = Batcher(
            self.clock,
            wake=self._woken,
            admitted=self.admitted.append,
        )

    def _woken(self) -> None:
        self.wakes += 1

    def offer(
        self,
        members: str,
        group: str = "group",
        weight: float = 0.0,
        owner: str = "task",
    ) -> None:
        """Offer each letter as a member."""
        for member in members:
            if self.batcher.offer(owner, self.config, group, member, weight):
                self.admitted.append(member)

    def take(self) -> Batch[str]:
        batch = self.batcher.take()
        assert batch is not None, "there is no batch to take"
        return batch

    def take_nothing(self) -> bool:
        return not self.batcher.is_ready and self.batcher.take() is None

    def finish(self, batch: Batch[str]) -> None:
        """Run a batch that was taken to its end."""
        batch.move(BatchState.RUNNING)
        self.batcher.call_ended(batch)
        for _ in batch.members:
            self.batcher.member_settled(batch)

    def left(self) -> list[tuple[str, FlushReason | None]]:
        """Run everything that may start: the members of each call and its reason."""
        calls: list[tuple[str, FlushReason | None]] = []
        while (batch := self.batcher.take()) is not None:
            calls.append(("".join(batch.members), batch.reason))
            self.finish(batch)
        return calls

    def assert_nothing_is_left(self) -> None:
        assert self.batcher.statistics().is_idle
        assert self.batcher.is_empty
        assert self.clock.armed == 0


# -- When a batch leaves ------------------------------------------------------------


def test_a_full_batch_leaves_at_once() -> None:
    bench = Bench(size=3)
    bench.offer("ab")
    assert not bench.batcher.is_ready
    bench.offer("c")
    assert bench.batcher.is_ready
    assert bench.left() == [("abc", FlushReason.SIZE)]
    bench.assert_nothing_is_left()


def test_a_batch_of_one_never_waits() -> None:
    bench = Bench(size=1)
    bench.offer("ab")
    assert bench.clock.armed == 0
    assert bench.left() == [("a", FlushReason.SIZE), ("b", FlushReason.SIZE)]


def test_what_is_beyond_the_size_is_the_next_batch_of_the_group() -> None:
    bench = Bench(size=3)
    bench.offer("abcde")
    assert bench.left() == [("abc", FlushReason.SIZE)]
    bench.clock.advance(10)
    assert bench.left() == [("de", FlushReason.TIMEOUT)]


def test_a_batch_leaves_when_its_weight_is_reached() -> None:
    bench = Bench(max_weight=10)
    bench.offer("ab", weight=5)
    assert bench.left() == [("ab", FlushReason.WEIGHT)]
    bench.assert_nothing_is_left()


def test_a_member_that_would_overflow_starts_the_next_batch() -> None:
    bench = Bench(max_weight=10)
    bench.offer("ab", weight=4)
    bench.offer("c", weight=3)
    assert bench.left() == [("ab", FlushReason.WEIGHT)]
    bench.clock.advance(10)
    assert bench.left() == [("c", FlushReason.TIMEOUT)]


def test_a_member_heavier_than_the_limit_runs_alone() -> None:
    bench = Bench(max_weight=10)
    bench.offer("a", weight=1)
    bench.offer("b", weight=99)
    bench.offer("c", weight=1)
    assert bench.left() == [("a", FlushReason.WEIGHT), ("b", FlushReason.WEIGHT)]
    bench.clock.advance(10)
    assert bench.left() == [("c", FlushReason.TIMEOUT)]


def test_a_member_that_is_withdrawn_takes_its_weight_with_it() -> None:
    bench = Bench(max_weight=10)
    bench.offer("a", weight=8)
    bench.offer("b", weight=1)
    assert bench.batcher.withdraw("task", "group", "a", 8)
    bench.offer("c", weight=8)
    assert not bench.batcher.is_ready
    bench.offer("d", weight=1)
    assert bench.left() == [("bcd", FlushReason.WEIGHT)]


def test_the_first_member_waits_no_longer_than_the_timeout() -> None:
    bench = Bench(timeout=10)
    bench.offer("a")
    bench.clock.advance(9.999)
    assert not bench.batcher.is_ready
    bench.clock.advance(0.001)
    assert bench.left() == [("a", FlushReason.TIMEOUT)]
    bench.assert_nothing_is_left()


def test_a_later_member_never_postpones_the_timeout() -> None:
    bench = Bench(timeout=10, idle_timeout=4)
    for member in "abcd":
        bench.offer(member)
        bench.clock.advance(3)
    assert bench.left() == [("abcd", FlushReason.TIMEOUT)]
    assert bench.clock.time() == 12


def test_with_a_timeout_of_0_what_is_there_is_the_batch() -> None:
    bench = Bench(timeout=0)
    bench.offer("ab")
    assert bench.clock.armed == 0
    assert bench.left() == [("ab", FlushReason.TIMEOUT)]


def test_a_batch_leaves_when_nobody_joined_for_the_idle_timeout() -> None:
    bench = Bench(timeout=10, idle_timeout=4)
    bench.offer("a")
    bench.clock.advance(3)
    bench.offer("b")
    bench.clock.advance(3.999)
    assert not bench.batcher.is_ready
    bench.clock.advance(0.001)
    assert bench.left() == [("ab", FlushReason.IDLE)]


def test_the_idle_timeout_counts_from_the_first_member_too() -> None:
    bench = Bench(timeout=10, idle_timeout=4)
    bench.offer("a")
    bench.clock.advance(4)
    assert bench.left() == [("a", FlushReason.IDLE)]


@pytest.mark.parametrize("idle_timeout", [10, 99])
def test_an_idle_timeout_no_shorter_than_the_timeout_changes_nothing(
    idle_timeout: float,
) -> None:
    bench = Bench(timeout=10, idle_timeout=idle_timeout)
    bench.offer("a")
    bench.clock.advance(10)
    assert bench.left() == [("a", FlushReason.TIMEOUT)]


def test_the_first_reason_to_leave_stays() -> None:
    bench = Bench(size=2, timeout=10)
    bench.offer("a")
    bench.clock.advance(10)
    bench.offer("b")
    bench.batcher.flush(FlushReason.MANUAL)
    assert bench.left() == [("ab", FlushReason.TIMEOUT)]


def test_a_flush_takes_every_open_batch_and_no_later_one() -> None:
    bench = Bench()
    bench.offer("a", group="one")
    bench.offer("b", group="two")
    bench.batcher.flush(FlushReason.MANUAL)
    assert bench.left() == [("a", FlushReason.MANUAL), ("b", FlushReason.MANUAL)]
    bench.offer("c")
    assert bench.left() == []


def test_after_a_drain_each_batch_is_due_as_soon_as_it_is_opened() -> None:
    bench = Bench()
    bench.offer("a", group="one")
    bench.batcher.drain(FlushReason.SHUTDOWN)
    bench.offer("b", group="two")
    assert bench.clock.armed == 0
    assert bench.left() == [("a", FlushReason.SHUTDOWN), ("b", FlushReason.SHUTDOWN)]


def test_after_resume_batches_wait_for_company_again() -> None:
    bench = Bench()
    bench.batcher.drain(FlushReason.MANUAL)
    bench.batcher.resume()
    bench.offer("a")
    assert not bench.batcher.is_ready
    assert bench.clock.armed == 1


def test_each_group_is_a_batch_of_its_own() -> None:
    bench = Bench(size=2)
    for member, group in zip("abcd", ("one", "two", "one", "two"), strict=True):
        bench.offer(member, group=group)
    assert bench.left() == [("ac", FlushReason.SIZE), ("bd", FlushReason.SIZE)]


def test_equal_groups_of_two_tasks_share_nothing() -> None:
    bench = Bench(size=2)
    bench.offer("a", owner="one")
    bench.offer("b", owner="two")
    assert not bench.batcher.is_ready


# -- Alarms -------------------------------------------------------------------------


def test_a_full_batch_takes_its_alarm_with_it() -> None:
    """The next batch gets its whole wait, not what was left of the last one's."""
    bench = Bench(size=2, timeout=10)
    bench.offer("a")
    bench.clock.advance(9)
    bench.offer("bc")
    assert bench.left() == [("ab", FlushReason.SIZE)]
    bench.clock.advance(9.999)
    assert not bench.batcher.is_ready
    bench.clock.advance(0.001)
    assert bench.left() == [("c", FlushReason.TIMEOUT)]


def test_there_is_one_alarm_for_each_open_batch() -> None:
    bench = Bench(size=100, idle_timeout=4)
    for _ in range(5):
        bench.offer("ab", group="one")
        bench.offer("c", group="two")
        bench.clock.advance(0.5)
        assert bench.clock.armed == 2
    assert bench.batcher.statistics().armed_alarms == 2


def test_a_member_that_joins_sets_no_alarm() -> None:
    """Arrivals cost no timer each: the idle alarm is moved on when it rings."""
    bench = Bench(idle_timeout=4)
    bench.offer("a")
    asked: list[float] = []
    call_at = bench.clock.call_at
    bench.clock.call_at = lambda when, callback: (  # type: ignore[method-assign]
        asked.append(when) or call_at(when, callback)  # type: ignore[func-returns-value]
    )
    bench.clock.advance(1)
    bench.offer("b")
    bench.clock.advance(1)
    bench.offer("c")
    assert asked == []
    bench.clock.advance(2)
    assert asked == [6]


def test_a_due_batch_has_no_alarm() -> None:
    bench = Bench(concurrency=1)
    bench.offer("a")
    bench.batcher.flush(FlushReason.MANUAL)
    assert bench.clock.armed == 0
    bench.offer("b")
    assert bench.clock.armed == 0


# -- Capacity -----------------------------------------------------------------------


def test_at_the_bound_the_oldest_group_leaves() -> None:
    bench = Bench(max_buffered=3)
    bench.offer("a", group="old")
    bench.offer("b", group="young")
    assert not bench.batcher.is_ready
    bench.offer("c", group="young")
    assert bench.left() == [("a", FlushReason.PRESSURE)]


def test_beyond_the_bound_members_wait_to_be_admitted_in_their_order() -> None:
    bench = Bench(size=2, max_buffered=2)
    bench.offer("abcde")
    assert bench.admitted == ["a", "b"]
    assert bench.batcher.statistics().waiting == 3
    bench.finish(bench.take())
    assert bench.admitted == ["a", "b", "c", "d"]
    bench.finish(bench.take())
    assert bench.admitted == ["a", "b", "c", "d", "e"]


def test_a_place_is_free_when_its_member_is_settled_not_when_its_call_ends() -> None:
    bench = Bench(size=2, max_buffered=2)
    bench.offer("abc")
    batch = bench.take()
    bench.batcher.call_ended(batch)
    assert bench.admitted == ["a", "b"]
    bench.batcher.member_settled(batch)
    assert bench.admitted == ["a", "b", "c"]


def test_at_the_bound_nothing_is_flushed_while_no_call_may_start() -> None:
    """The open batch is left to fill: flushed now, it could not start anyway."""
    bench = Bench(size=2, max_buffered=4, concurrency=1)
    bench.offer("ab", group="one")
    running = bench.take()
    bench.offer("c", group="two")
    bench.offer("de", group="three")
    assert bench.take_nothing()
    bench.finish(running)
    assert [members for members, _ in bench.left()] == ["de"]


def test_who_waits_for_a_place_gets_one_though_no_batch_fills() -> None:
    bench = Bench(size=2, max_buffered=2)
    for member in "abcd":
        bench.offer(member, group=member)
    assert bench.left() == [
        ("a", FlushReason.PRESSURE),
        ("b", FlushReason.PRESSURE),
    ]
    bench.clock.advance(10)
    assert [members for members, _ in bench.left()] == ["c", "d"]
    bench.assert_nothing_is_left()


def test_pressure_makes_no_batches_of_one_out_of_a_full_load() -> None:
    """A batch that settles gives its places back one by one, to the next full batch."""
    bench = Bench(size=4, max_buffered=8)
    bench.offer("abcdefghijklmnopqrstuvwx")
    sizes: list[int] = []
    running = [bench.take(), bench.take()]
    while running:
        batch = running.pop(0)
        sizes.append(len(batch.members))
        bench.batcher.call_ended(batch)
        for _ in batch.members:
            bench.batcher.member_settled(batch)
            while (started := bench.batcher.take()) is not None:
                running.append(started)
    assert sizes == [4] * 6


def test_pressure_waits_for_the_places_of_all_calls_that_have_ended() -> None:
    bench = Bench(size=3, max_buffered=5)
    bench.offer("abcde")
    bench.batcher.flush(FlushReason.MANUAL)
    three, two = bench.take(), bench.take()
    bench.offer("fghij")
    for batch in (three, two):
        bench.batcher.call_ended(batch)
    for _ in two.members:
        bench.batcher.member_settled(two)
        assert bench.take_nothing()
    bench.batcher.member_settled(three)
    assert bench.take().members == ["f", "g", "h"]


def test_tasks_do_not_use_up_each_others_bound() -> None:
    bench = Bench(size=2, max_buffered=2)
    bench.offer("abc", owner="busy")
    bench.offer("d", owner="quiet")
    assert bench.admitted == ["a", "b", "d"]


def test_no_more_calls_of_a_task_run_than_its_concurrency() -> None:
    bench = Bench(size=1, concurrency=2)
    bench.offer("abc")
    first = bench.take()
    bench.take()
    assert bench.batcher.take() is None
    assert not bench.batcher.is_ready
    wakes = bench.wakes
    bench.batcher.call_ended(first)
    assert bench.wakes == wakes + 1
    assert bench.take().members == ["c"]


def test_concurrency_counts_calls_not_the_settling_after_them() -> None:
    bench = Bench(size=1, concurrency=1)
    bench.offer("ab")
    first = bench.take()
    bench.batcher.call_ended(first)
    assert bench.take().members == ["b"]
    assert bench.batcher.statistics().buffered == 2


def test_a_task_at_its_limit_does_not_hold_up_another() -> None:
    bench = Bench(size=1, concurrency=1)
    bench.offer("ab", owner="busy")
    bench.take()
    bench.offer("c", owner="quiet")
    assert bench.take().members == ["c"]


def test_a_due_batch_fills_while_it_cannot_start() -> None:
    bench = Bench(size=3, timeout=10)
    bench.offer("a")
    bench.clock.advance(10)
    bench.offer("bcd")
    assert bench.left() == [("abc", FlushReason.TIMEOUT)]
    bench.clock.advance(10)
    assert bench.left() == [("d", FlushReason.TIMEOUT)]


def test_a_batch_that_was_taken_takes_no_more_members() -> None:
    bench = Bench()
    bench.offer("a")
    bench.batcher.flush(FlushReason.MANUAL)
    batch = bench.take()
    bench.offer("b")
    assert batch.members == ["a"]
    assert bench.batcher.statistics().open_groups == 1


def test_the_longest_waiting_batch_starts_first_so_no_key_starves_another() -> None:
    bench = Bench(size=2, concurrency=1)
    bench.offer("ab", group="busy")
    running = bench.take()
    bench.offer("c", group="quiet")
    bench.offer("defghi", group="busy")
    bench.clock.advance(10)
    bench.finish(running)
    assert [members for members, _ in bench.left()] == ["c", "de", "fg", "hi"]


def test_the_longest_waiting_batch_starts_first_among_tasks_too() -> None:
    bench = Bench(size=2)
    bench.offer("a", owner="quiet")
    bench.offer("bcde", owner="busy")
    bench.batcher.flush(FlushReason.MANUAL)
    assert [members for members, _ in bench.left()] == ["a", "bc", "de"]


def test_a_busy_group_takes_turns_with_the_others_however_much_of_it_is_due() -> None:
    bench = Bench(size=2, concurrency=1)
    bench.offer("abcdefgh", group="busy")
    running = bench.take()
    bench.offer("q", group="quiet")
    bench.offer("r", group="other")
    bench.clock.advance(10)
    bench.finish(running)
    # The others came while the busy group was served: they wait for no more of it.
    assert [members for members, _ in bench.left()] == ["q", "r", "cd", "ef", "gh"]


def test_whatever_call_of_a_group_ends_its_next_one_is_behind_who_came_meanwhile() -> (
    None
):
    bench = Bench(size=1, concurrency=2)
    bench.offer("abc", group="busy")
    bench.offer("q", group="quiet")
    first, second = bench.take(), bench.take()
    assert [first.members, second.members] == [["a"], ["q"]]
    bench.finish(second)
    bench.offer("r", group="other")
    third = bench.take()
    assert third.members == ["b"]
    bench.finish(first)
    bench.finish(third)
    assert [members for members, _ in bench.left()] == ["r", "c"]
    bench.assert_nothing_is_left()


def test_a_batch_that_fills_while_its_group_is_served_has_no_older_right() -> None:
    bench = Bench(size=2, concurrency=1)
    bench.offer("abc", group="busy")
    bench.offer("q", group="quiet")
    running = bench.take()
    bench.offer("d", group="busy")
    bench.clock.advance(10)
    bench.finish(running)
    assert [members for members, _ in bench.left()] == ["q", "cd"]


def test_a_batch_that_is_open_while_its_group_is_served_has_no_older_right() -> None:
    bench = Bench(size=2)
    bench.offer("abc", group="busy")
    bench.offer("q", group="quiet")
    bench.finish(bench.take())
    bench.clock.advance(10)
    assert [members for members, _ in bench.left()] == ["q", "c"]


def test_the_turn_of_a_batch_that_is_withdrawn_is_that_of_the_next() -> None:
    bench = Bench(size=1)
    bench.offer("abc", group="busy")
    running = bench.take()
    bench.offer("q", group="quiet")
    assert bench.batcher.withdraw("task", "busy", "b")
    assert [members for members, _ in bench.left()] == ["c", "q"]
    bench.finish(running)
    bench.assert_nothing_is_left()


def test_a_due_batch_can_be_withdrawn_after_its_turn_was_put_off() -> None:
    bench = Bench(size=1, concurrency=1)
    bench.offer("abc", group="busy")
    running = bench.take()
    bench.offer("q", group="quiet")
    bench.finish(running)
    assert bench.batcher.withdraw("task", "busy", "b")
    assert [members for members, _ in bench.left()] == ["q", "c"]
    bench.assert_nothing_is_left()


def test_what_is_withdrawn_behind_others_of_its_group_changes_no_turn() -> None:
    bench = Bench(size=1)
    bench.offer("abc", group="busy")
    bench.offer("q", group="quiet")
    assert bench.batcher.withdraw("task", "busy", "b")
    assert [members for members, _ in bench.left()] == ["a", "q", "c"]
    bench.assert_nothing_is_left()


# -- Withdrawing and abandoning -----------------------------------------------------


def test_a_member_that_is_withdrawn_is_in_no_call() -> None:
    bench = Bench()
    bench.offer("abc")
    assert bench.batcher.withdraw("task", "group", "b")
    bench.batcher.flush(FlushReason.MANUAL)
    assert bench.left() == [("ac", FlushReason.MANUAL)]
    bench.assert_nothing_is_left()


def test_the_last_member_that_is_withdrawn_takes_its_batch_with_it() -> None:
    bench = Bench()
    bench.offer("a")
    assert bench.batcher.withdraw("task", "group", "a")
    bench.assert_nothing_is_left()


def test_an_empty_due_batch_is_never_taken() -> None:
    bench = Bench(size=2)
    bench.offer("ab")
    bench.offer("c")
    bench.batcher.flush(FlushReason.MANUAL)
    for member in "abc":
        assert bench.batcher.withdraw("task", "group", member)
    assert bench.batcher.take() is None
    bench.assert_nothing_is_left()


def test_a_member_can_be_withdrawn_before_it_is_admitted() -> None:
    bench = Bench(size=2, max_buffered=2)
    bench.offer("abcd")
    assert bench.batcher.withdraw("task", "group", "c")
    assert [members for members, _ in bench.left()] == ["ab"]
    assert bench.admitted == ["a", "b", "d"]


def test_the_place_of_a_withdrawn_member_is_given_to_the_next() -> None:
    bench = Bench(size=2, max_buffered=2)
    bench.offer("abc")
    assert bench.batcher.withdraw("task", "group", "a")
    assert bench.admitted == ["a", "b", "c"]
    assert bench.take().members == ["b"]


def test_a_sealed_batch_keeps_its_members() -> None:
    bench = Bench(size=2)
    bench.offer("ab")
    batch = bench.take()
    assert not bench.batcher.withdraw("task", "group", "a")
    assert batch.members == ["a", "b"]


def test_nobody_can_be_withdrawn_twice_or_from_where_he_is_not() -> None:
    bench = Bench()
    bench.offer("ab")
    assert not bench.batcher.withdraw("other task", "group", "a")
    assert not bench.batcher.withdraw("task", "other group", "a")
    assert bench.batcher.withdraw("task", "group", "a")
    assert not bench.batcher.withdraw("task", "group", "a")


def test_abandoning_gives_back_who_is_in_no_call_and_disarms() -> None:
    bench = Bench(size=2, max_buffered=5)
    bench.offer("ab")
    running = bench.take()
    bench.offer("cd")
    bench.offer("efg", group="other")
    assert sorted(bench.batcher.abandon()) == list("cdefg")
    assert bench.clock.armed == 0
    assert bench.batcher.take() is None
    bench.finish(running)
    bench.assert_nothing_is_left()


def test_an_emptied_group_leaves_nothing_behind() -> None:
    bench = Bench(size=2)
    for number in range(100):
        bench.offer("ab", group=f"key {number}")
        bench.offer("c", group=f"other key {number}")
    bench.batcher.flush(FlushReason.MANUAL)
    bench.left()
    bench.assert_nothing_is_left()
    assert not bench.batcher._lanes


def test_a_group_without_a_batch_costs_nothing_while_its_task_is_busy() -> None:
    bench = Bench(size=1)
    bench.offer("a", group="stays")
    running = bench.take()
    for number in range(100):
        bench.offer("b", group=f"key {number}")
        bench.finish(bench.take())
    lane = running.lane
    assert not lane.open
    assert not lane.due
    assert not lane.waiting


# -- States -------------------------------------------------------------------------


def _batch_in(state: BatchState) -> Batch[str]:
    bench = Bench(size=1)
    bench.offer("a")
    batch = bench.take()
    batch.state = state
    return batch


@pytest.mark.parametrize("state", BatchState)
@pytest.mark.parametrize("target", BatchState)
def test_an_illegal_move_raises_and_changes_nothing(
    state: BatchState,
    target: BatchState,
) -> None:
    batch = _batch_in(state)
    if target in MOVES[state]:
        batch.move(target)
        assert batch.state is target
        return
    with pytest.raises(RuntimeError, match=f"from {state} to {target}"):
        batch.move(target)
    assert batch.state is state


def test_a_batch_is_open_then_sealed_then_running_then_settled() -> None:
    bench = Bench(size=2)
    bench.offer("a")
    (opened,) = bench.batcher._lanes["task"].open.values()
    assert opened.state is BatchState.OPEN
    bench.offer("b")
    batch = bench.take()
    assert batch is opened
    seen = [batch.state]
    batch.move(BatchState.RUNNING)
    bench.batcher.call_ended(batch)
    bench.batcher.member_settled(batch)
    seen.append(batch.state)
    bench.batcher.member_settled(batch)
    seen.append(batch.state)
    assert seen == [BatchState.SEALED, BatchState.RUNNING, BatchState.SETTLED]


def test_a_batch_that_never_ran_can_be_settled() -> None:
    bench = Bench(size=1)
    bench.offer("a")
    batch = bench.take()
    bench.batcher.call_ended(batch)
    bench.batcher.member_settled(batch)
    assert batch.state is BatchState.SETTLED
    bench.assert_nothing_is_left()


def test_a_member_that_runs_alone_waits_for_nobody_and_counts_like_others() -> None:
    bench = Bench(size=2, concurrency=1)
    bench.offer("ab")
    running = bench.take()

    alone = bench.batcher.take_alone("task", bench.config, "group", "c")

    assert alone.members == ["c"]
    assert alone.group == "group"
    assert alone.reason is FlushReason.MANUAL
    assert alone.state is BatchState.SEALED
    assert alone.lane is running.lane
    assert bench.batcher.statistics().buffered == 3
    bench.finish(alone)
    bench.finish(running)
    bench.assert_nothing_is_left()


def test_a_member_that_runs_alone_opens_its_task_as_any_other() -> None:
    bench = Bench(max_buffered=10)

    alone = bench.batcher.take_alone("task", bench.config, "group", "a")

    assert alone.lane.owner == "task"
    assert alone.lane.config is bench.config
    bench.offer("b")
    assert bench.batcher.statistics().buffered == 2


def test_the_repr_of_a_batch_says_whether_it_is_due() -> None:
    bench = Bench()
    bench.offer("a")
    [batch] = next(iter(bench.batcher._lanes.values())).open.values()
    assert repr(batch) == "<Batch of 'task': 1 members, OPEN, not due>"


def test_the_repr_shows_live_counts() -> None:
    bench = Bench(size=2)
    bench.offer("abc")
    assert "2 members, SEALED, size" in repr(bench.take())
    assert "open_groups=1" in repr(bench.batcher)
    assert "running_calls=1" in repr(bench.batcher)


# -- All of it at once, against a plain model ---------------------------------------

_SECONDS = st.sampled_from([0.0, 0.5, 1.0, 1.5, 2.0, 4.0])
_OWNERS = ("one", "two", "three")
_CONFIGS = st.builds(
    lambda size, spare, **limits: BatchConfig(
        size=size,
        max_buffered=size + spare,
        **limits,
    ),
    size=st.integers(1, 4),
    spare=st.integers(0, 4),
    timeout=_SECONDS,
    idle_timeout=st.none() | _SECONDS,
    concurrency=st.none() | st.integers(1, 2),
    max_weight=st.none() | st.just(5.0),
)


@dataclass
class ExpectedBatch:
    """What the model knows of one batch."""

    owner: str
    group: int
    opened_at: float
    joined_at: float
    turn: int
    members: list[int] = field(default_factory=list)
    weight: float = 0
    is_full: bool = False
    reason: FlushReason | None = None


@dataclass(frozen=True)
class Offered:
    """One member, as it was offered."""

    number: int
    owner: str
    group: int
    weight: float


class BatcherModel(RuleBasedStateMachine):
    """The batcher beside a model that scans lists where the batcher keeps indexes.

    As in the receiver, whatever is ready is known to a starter that was woken: a batch
    that could start and of which nobody was told is found by `nobody_sleeps_late`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.batcher: Batcher[int] = Batcher(
            self.clock,
            wake=self._wake,
            admitted=self._admitted,
        )
        self.configs: dict[str, BatchConfig] = {}
        self.count = 0
        self.turns = 0
        self.is_woken = False
        self.draining: FlushReason | None = None
        # Batches not yet taken, in the order they were opened; and who waits outside.
        self.open: list[ExpectedBatch] = []
        self.outside: list[Offered] = []
        self.offered: dict[int, Offered] = {}
        self.expected_admissions: list[int] = []
        self.admissions: list[int] = []
        # Batches taken: each with how many of its members are not settled, by state.
        self.running: list[Batch[int]] = []
        self.settling: list[tuple[Batch[int], list[int]]] = []
        self.taken: list[int] = []

    def _wake(self) -> None:
        self.is_woken = self.is_woken or self.batcher.is_ready

    def _admitted(self, number: int) -> None:
        self.admissions.append(number)

    # -- The model --

    def _buffered(self, owner: str) -> int:
        return (
            sum(len(batch.members) for batch in self.open if batch.owner == owner)
            + sum(len(b.members) for b in self.running if b.lane.owner == owner)
            + sum(len(left) for b, left in self.settling if b.lane.owner == owner)
        )

    def _has_room(self, owner: str) -> bool:
        return self._buffered(owner) < self.configs[owner].max_buffered

    def _may_start(self, owner: str) -> bool:
        limit = self.configs[owner].concurrency
        running = sum(batch.lane.owner == owner for batch in self.running)
        return limit is None or running < limit

    def _due(self) -> list[ExpectedBatch]:
        return [
            batch
            for batch in self.open
            if batch.reason is not None and self._may_start(batch.owner)
        ]

    def _next_turn(self) -> int:
        self.turns += 1
        return self.turns

    def _following(self, owner: object, group: object) -> ExpectedBatch | None:
        """The oldest batch of a group that has not left."""
        for other in self.open:
            if (other.owner, other.group) == (owner, group):
                return other
        return None

    def _expect_turn(self, owner: object, group: object) -> None:
        """What is next of a group that was served is behind all who wait now."""
        following = self._following(owner, group)
        if following is not None:
            following.turn = self._next_turn()

    def _filling(self, owner: str, group: int) -> ExpectedBatch | None:
        for batch in self.open:
            if (batch.owner, batch.group, batch.is_full) == (owner, group, False):
                return batch
        return None

    def _expect_admission(self, offered: Offered) -> None:
        config = self.configs[offered.owner]
        limit = config.max_weight
        batch = self._filling(offered.owner, offered.group)
        if batch and limit is not None and batch.weight + offered.weight > limit:
            self._expect_full(batch, FlushReason.WEIGHT)
            batch = None
        now = self.clock.time()
        if batch is None:
            turn = self._next_turn()
            batch = ExpectedBatch(offered.owner, offered.group, now, now, turn)
            self.open.append(batch)
        batch.joined_at = now
        batch.members.append(offered.number)
        batch.weight += offered.weight
        self.expected_admissions.append(offered.number)
        if len(batch.members) == config.size:
            self._expect_full(batch, FlushReason.SIZE)
        elif limit is not None and batch.weight >= limit:
            self._expect_full(batch, FlushReason.WEIGHT)
        elif config.timeout == 0 or self.draining:
            batch.reason = batch.reason or self.draining or FlushReason.TIMEOUT

    @staticmethod
    def _expect_full(batch: ExpectedBatch, reason: FlushReason) -> None:
        batch.is_full = True
        batch.reason = batch.reason or reason

    def _expect_relief(self, owner: str) -> None:
        """At the bound the oldest group leaves, unless something leaves anyway."""
        held = [batch for batch in self.open if batch.owner == owner]
        if (
            held
            and not self._has_room(owner)
            and not any(batch.lane.owner == owner for batch, _ in self.settling)
            and self._may_start(owner)
            and all(batch.reason is None for batch in held)
        ):
            held[0].reason = FlushReason.PRESSURE

    def _expect_places_taken(self, owner: str) -> None:
        for offered in [each for each in self.outside if each.owner == owner]:
            if not self._has_room(owner):
                break
            self.outside.remove(offered)
            self._expect_admission(offered)
        if any(offered.owner == owner for offered in self.outside):
            self._expect_relief(owner)

    def _expect_time(self) -> None:
        """Say which batches have waited long enough by now."""
        for batch in self.open:
            if batch.reason is None:
                moment, reason = self._deadline(batch)
                if moment <= self.clock.time():
                    batch.reason = reason

    def _deadline(self, batch: ExpectedBatch) -> tuple[float, FlushReason]:
        config = self.configs[batch.owner]
        timeout = batch.opened_at + config.timeout
        if config.idle_timeout is None:
            return timeout, FlushReason.TIMEOUT
        idle = batch.joined_at + config.idle_timeout
        if idle < timeout:
            return idle, FlushReason.IDLE
        return timeout, FlushReason.TIMEOUT

    # -- What happens --

    @initialize(configs=st.tuples(_CONFIGS, _CONFIGS, _CONFIGS))
    def begins(self, configs: tuple[BatchConfig, ...]) -> None:
        self.configs = dict(zip(_OWNERS, configs, strict=True))

    @rule(
        owner=st.sampled_from(_OWNERS),
        group=st.integers(0, 2),
        weights=st.lists(st.sampled_from([0.0, 1.0, 2.0, 6.0]), min_size=1, max_size=4),
    )
    def arrive(self, owner: str, group: int, weights: list[float]) -> None:
        for weight in weights:
            offered = Offered(self.count, owner, group, weight)
            self.count += 1
            self.offered[offered.number] = offered
            if self._has_room(owner):
                self._expect_admission(offered)
            else:
                self.outside.append(offered)
            self._expect_relief(owner)
            is_admitted = self.batcher.offer(
                owner,
                self.configs[owner],
                group,
                offered.number,
                weight,
            )
            if is_admitted:
                self._admitted(offered.number)

    @rule(seconds=_SECONDS)
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self._expect_time()

    @precondition(lambda self: self.is_woken)
    @rule()
    def take(self) -> None:
        due = self._due()
        batch = self.batcher.take()
        self.is_woken = self.batcher.is_ready
        if batch is None:
            assert not due
            return
        # The first of each group has a turn; those behind it have to wait for theirs.
        first = {(each.owner, each.group): each for each in reversed(due)}
        expected = min(first.values(), key=lambda each: each.turn)
        assert batch.members == expected.members
        assert batch.reason is expected.reason
        assert batch.opened_at == expected.opened_at
        self.open.remove(expected)
        self._expect_turn(expected.owner, expected.group)
        self.running.append(batch)
        self._check_taken(batch)

    def _check_taken(self, batch: Batch[int]) -> None:
        config = batch.lane.config
        members = [self.offered[number] for number in batch.members]
        assert 1 <= len(members) <= config.size
        assert {(m.owner, m.group) for m in members} == {
            (batch.lane.owner, batch.group),
        }
        weight = sum(member.weight for member in members)
        if config.max_weight is not None and len(members) > 1:
            assert weight <= config.max_weight
        assert batch.members == sorted(batch.members), "not in order of arrival"
        assert not set(batch.members) & set(self.taken), "in two batches"
        self.taken += batch.members

    @precondition(lambda self: self.running)
    @rule(data=st.data(), is_run=st.booleans())
    def end_call(self, data: st.DataObject, is_run: bool) -> None:
        self._end_call(data.draw(st.integers(0, len(self.running) - 1)), is_run=is_run)

    def _end_call(self, index: int, *, is_run: bool) -> None:
        batch = self.running.pop(index)
        if is_run:
            batch.move(BatchState.RUNNING)
        self.settling.append((batch, list(batch.members)))
        self._expect_turn(batch.lane.owner, batch.group)
        self.batcher.call_ended(batch)

    @precondition(lambda self: self.settling)
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        self._settle(data.draw(st.integers(0, len(self.settling) - 1)))

    def _settle(self, index: int) -> None:
        batch, left = self.settling[index]
        left.pop()
        if not left:
            del self.settling[index]
        self._expect_places_taken(str(batch.lane.owner))
        self.batcher.member_settled(batch)
        if left:
            assert batch.state is not BatchState.SETTLED
        else:
            assert batch.state is BatchState.SETTLED

    @precondition(lambda self: self.offered)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        number = data.draw(st.integers(0, self.count - 1))
        offered = self.offered[number]
        was_waiting = self._expect_withdrawal(offered)
        assert was_waiting == self.batcher.withdraw(
            offered.owner,
            offered.group,
            number,
            offered.weight,
        )

    def _expect_withdrawal(self, offered: Offered) -> bool:
        if offered in self.outside:
            self.outside.remove(offered)
            return True
        for batch in self.open:
            if offered.number in batch.members:
                batch.members.remove(offered.number)
                batch.weight -= offered.weight
                if not batch.members:
                    self._expect_emptied(batch)
                self._expect_places_taken(offered.owner)
                return True
        return False

    def _expect_emptied(self, batch: ExpectedBatch) -> None:
        """A due batch that loses its members leaves its turn to the next one."""
        was_first = self._following(batch.owner, batch.group) is batch
        self.open.remove(batch)
        following = self._following(batch.owner, batch.group)
        if was_first and following is not None and following.reason is not None:
            following.turn = batch.turn

    @rule()
    def flush(self) -> None:
        for batch in self.open:
            batch.reason = batch.reason or FlushReason.MANUAL
        self.batcher.flush(FlushReason.MANUAL)

    @rule()
    def drain(self) -> None:
        self.draining = FlushReason.SHUTDOWN
        for batch in self.open:
            batch.reason = batch.reason or FlushReason.SHUTDOWN
        self.batcher.drain(FlushReason.SHUTDOWN)

    @rule()
    def resume(self) -> None:
        self.draining = None
        self.batcher.resume()

    @precondition(lambda self: self.count > 8)  # else it would end most runs too soon
    @rule()
    def abandon(self) -> None:
        inside = [number for batch in self.open for number in batch.members]
        expected = inside + [offered.number for offered in self.outside]
        assert sorted(self.batcher.abandon()) == sorted(expected)
        self.open.clear()
        self.outside.clear()
        self.is_woken = self.batcher.is_ready

    # -- What is always true --

    @invariant()
    def nobody_sleeps_late(self) -> None:
        assert self.batcher.is_ready == bool(self._due())
        assert self.is_woken or not self.batcher.is_ready, "nobody was woken"
        now = self.clock.time()
        for batch in self.open:
            waited = now - batch.opened_at
            if waited >= self.configs[batch.owner].timeout:
                assert batch.reason is not None, "waits longer than its timeout"

    @invariant()
    def an_alarm_is_armed_exactly_for_what_is_open_and_not_due(self) -> None:
        waiting = [batch for batch in self.open if batch.reason is None]
        assert all(batch.members for batch in self.open)
        assert self.clock.armed == len(waiting)
        assert self.batcher.statistics().armed_alarms == len(waiting)

    @invariant()
    def no_bound_is_exceeded(self) -> None:
        for owner, config in self.configs.items():
            assert self._buffered(owner) <= config.max_buffered
            running = [batch for batch in self.running if batch.lane.owner == owner]
            assert config.concurrency is None or len(running) <= config.concurrency

    @invariant()
    def the_counts_are_the_models(self) -> None:
        assert self.admissions == self.expected_admissions
        counts = self.batcher.statistics()
        assert counts.open_groups == sum(not batch.is_full for batch in self.open)
        assert counts.due_batches == sum(b.reason is not None for b in self.open)
        assert counts.running_calls == len(self.running)
        assert counts.buffered == sum(self._buffered(owner) for owner in self.configs)
        assert counts.waiting == len(self.outside)
        assert self.batcher.is_empty == (counts.buffered == 0)

    def teardown(self) -> None:
        if not self.configs:
            return
        if self.count % 2:
            self.abandon()
        else:
            self.drain()
        for _ in self._until_nothing_is_held():
            self.nobody_sleeps_late()
            self.the_counts_are_the_models()
        assert self.batcher.statistics().is_idle
        assert self.batcher.is_empty
        assert self.clock.armed == 0

    def _until_nothing_is_held(self) -> Iterator[None]:
        while self.open or self.outside or self.running or self.settling:
            if self.is_woken:
                self.take()
            elif self.running:
                self._end_call(0, is_run=True)
            else:
                assert self.settling, "members are held and nothing can happen"
                self._settle(0)
            yield


def test_the_batcher_does_what_a_plain_model_does() -> None:
    examples = settings().max_examples * 4
    run_state_machine_as_test(
        BatcherModel,
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            deadline=None,
        ),
    )
