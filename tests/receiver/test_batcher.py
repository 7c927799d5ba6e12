"""The rules of batching alone: which members share a call, and when it may start."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
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
from taskiq.rates import Pace
from taskiq.receiver.batcher import Batch, Batcher, Group
from taskiq.receiver.paces import own_pace
from taskiq.receiver.placing import exact_weight
from taskiq.receiver.states import MOVES, BatchState
from taskiq.testing import ManualClock
from tests.support.work import Work

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from taskiq.receiver.paces import AnyPace, MakePace

_UNLIMITED = 1000


class Letter(str):
    """A member, which is told where it stands."""

    group: Group[Letter]
    weight: int | Decimal = 0
    priority: float = 0
    batch: Batch[Letter] | None = None
    is_parked = False

    def joined(self, batch: Batch[Letter]) -> None:
        self.batch = batch
        self.bench.admitted.append(self)

    def moved(self, batch: Batch[Letter]) -> None:
        self.batch = batch

    bench: Offering

    @property
    def sent_as(self) -> str:
        return self.lower()

    def waits(self) -> None:
        assert self.batch is None

    def parks(self) -> bool:
        assert not self.is_parked
        self.is_parked = True
        return True

    def leave(self) -> None:
        """Give its place back, if it has one."""
        batch, self.batch = self.batch, None
        if batch is not None:
            batch.release()


class Offering:
    """A batcher of one task on a clock of its own, and what it has said so far."""

    def __init__(
        self,
        *,
        size: int = 10,
        timeout: float = 10,
        max_buffered: int = _UNLIMITED,
        make_pace: MakePace = own_pace,
        **limits: Any,
    ) -> None:
        self.clock = ManualClock()
        self.config = BatchConfig(
            size=size,
            timeout=timeout,
            max_buffered=max_buffered,
            **limits,
        )
        self.offered: list[Letter] = []
        self.admitted: list[Letter] = []
        self.wakes = 0
        self.batcher: Batcher[Letter] = Batcher(self.clock, self._woken, make_pace)

    def _woken(self) -> None:
        self.wakes += 1

    def member(
        self,
        text: str,
        group: str = "group",
        weight: float = 0.0,
        owner: str = "task",
        priority: float | None = None,
    ) -> Letter:
        """Make a member that is to be offered."""
        letter = Letter(text)
        letter.bench = self
        letter.weight = exact_weight(weight)
        own = self.config.priority or 0
        letter.priority = own if priority is None else priority
        letter.group = self.batcher.group(owner, self.config, group)
        return letter

    def offer(
        self,
        members: str,
        group: str = "group",
        weight: float = 0.0,
        owner: str = "task",
        priority: float | None = None,
    ) -> None:
        """Offer each letter as a member."""
        for text in members:
            letter = self.member(text, group, weight, owner, priority)
            self.offered.append(letter)
            self.batcher.offer(letter)

    def withdraw(self, text: str) -> bool:
        """Take a member out, and let it give its place back."""
        letter = self.offered[self.offered.index(Letter(text))]
        was_waiting = self.batcher.withdraw(letter)
        if was_waiting:
            letter.leave()
        return was_waiting

    def take(self) -> Batch[Letter]:
        batch = self.batcher.take()
        assert batch is not None, "there is no batch to take"
        return batch

    def take_nothing(self) -> bool:
        return not self.batcher.is_ready and self.batcher.take() is None

    def settle(self, batch: Batch[Letter]) -> None:
        """Let one more member go."""
        next(letter for letter in batch.members if letter.batch is batch).leave()

    def finish(self, batch: Batch[Letter]) -> None:
        """Run a batch that was taken to its end."""
        batch.move(BatchState.RUNNING)
        self.batcher.call_ended(batch)
        for letter in batch.members:
            letter.leave()

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
        assert not self.batcher._by_id
        assert self.clock.armed == 0


# -- When a batch leaves ------------------------------------------------------------


def test_a_member_that_is_withdrawn_takes_its_weight_with_it() -> None:
    offering = Offering(max_weight=10)
    offering.offer("a", weight=8)
    offering.offer("b", weight=1)
    assert offering.withdraw("a")
    offering.offer("c", weight=8)
    assert not offering.batcher.is_ready
    offering.offer("d", weight=1)
    assert offering.left() == [("bcd", FlushReason.WEIGHT)]


def test_weights_are_added_exactly_be_they_whole_or_not() -> None:
    offering = Offering(max_weight=2)
    for member, weight in zip("abc", (1, 1e-40, 1), strict=True):
        offering.offer(member, weight=weight)
    offering.batcher.flush(FlushReason.MANUAL)
    assert [members for members, _ in offering.left()] == ["ab", "c"]


def test_the_first_reason_to_leave_stays() -> None:
    offering = Offering(size=2, timeout=10)
    offering.offer("a")
    offering.clock.advance(10)
    offering.offer("b")
    offering.batcher.flush(FlushReason.MANUAL)
    assert offering.left() == [("ab", FlushReason.TIMEOUT)]


def test_after_a_drain_each_batch_is_due_as_soon_as_it_is_opened() -> None:
    offering = Offering()
    offering.offer("a", group="one")
    offering.batcher.drain(FlushReason.SHUTDOWN)
    offering.offer("b", group="two")
    assert offering.clock.armed == 0
    assert offering.left() == [("a", FlushReason.SHUTDOWN), ("b", FlushReason.SHUTDOWN)]


def test_after_resume_batches_wait_for_company_again() -> None:
    offering = Offering()
    offering.batcher.drain(FlushReason.MANUAL)
    offering.batcher.resume()
    offering.offer("a")
    assert not offering.batcher.is_ready
    assert offering.clock.armed == 1


def test_equal_groups_of_two_tasks_share_nothing() -> None:
    offering = Offering(size=2)
    offering.offer("a", owner="one")
    offering.offer("b", owner="two")
    assert not offering.batcher.is_ready


# -- Alarms -------------------------------------------------------------------------


def test_a_member_that_joins_sets_no_alarm() -> None:
    """Arrivals cost no timer each: the idle alarm is moved on when it rings."""
    offering = Offering(idle_timeout=4)
    offering.offer("a")
    asked: list[float] = []
    call_at = offering.clock.call_at
    offering.clock.call_at = lambda when, callback: (  # type: ignore[method-assign]
        asked.append(when) or call_at(when, callback)  # type: ignore[func-returns-value]
    )
    offering.clock.advance(1)
    offering.offer("b")
    offering.clock.advance(1)
    offering.offer("c")
    assert asked == []
    offering.clock.advance(2)
    assert asked == [6]


def test_a_due_batch_has_no_alarm() -> None:
    offering = Offering(concurrency=1)
    offering.offer("a")
    offering.batcher.flush(FlushReason.MANUAL)
    assert offering.clock.armed == 0
    offering.offer("b")
    assert offering.clock.armed == 0


# -- Capacity -----------------------------------------------------------------------


def test_at_the_bound_the_oldest_group_leaves() -> None:
    offering = Offering(max_buffered=3)
    offering.offer("a", group="old")
    offering.offer("b", group="young")
    assert not offering.batcher.is_ready
    offering.offer("c", group="young")
    assert offering.left() == [("a", FlushReason.PRESSURE)]


def test_beyond_the_bound_members_wait_to_be_admitted_in_their_order() -> None:
    offering = Offering(size=2, max_buffered=2)
    offering.offer("abcde")
    assert offering.admitted == ["a", "b"]
    assert offering.batcher.statistics().waiting == 3
    offering.finish(offering.take())
    assert offering.admitted == ["a", "b", "c", "d"]
    offering.finish(offering.take())
    assert offering.admitted == ["a", "b", "c", "d", "e"]


def test_a_place_is_free_when_its_member_is_settled_not_when_its_call_ends() -> None:
    offering = Offering(size=2, max_buffered=2)
    offering.offer("abc")
    batch = offering.take()
    offering.batcher.call_ended(batch)
    assert offering.admitted == ["a", "b"]
    offering.settle(batch)
    assert offering.admitted == ["a", "b", "c"]


def test_at_the_bound_nothing_is_flushed_while_no_call_may_start() -> None:
    """The open batch is left to fill: flushed now, it could not start anyway."""
    offering = Offering(size=2, max_buffered=4, concurrency=1)
    offering.offer("ab", group="one")
    running = offering.take()
    offering.offer("c", group="two")
    offering.offer("de", group="three")
    assert offering.take_nothing()
    offering.finish(running)
    assert [members for members, _ in offering.left()] == ["de"]


def test_who_waits_for_a_place_gets_one_though_no_batch_fills() -> None:
    offering = Offering(size=2, max_buffered=2)
    for member in "abcd":
        offering.offer(member, group=member)
    assert offering.left() == [
        ("a", FlushReason.PRESSURE),
        ("b", FlushReason.PRESSURE),
    ]
    offering.clock.advance(10)
    assert [members for members, _ in offering.left()] == ["c", "d"]
    offering.assert_nothing_is_left()


def test_pressure_makes_no_batches_of_one_out_of_a_full_load() -> None:
    """A batch that settles gives its places back one by one, to the next full batch."""
    offering = Offering(size=4, max_buffered=8)
    offering.offer("abcdefghijklmnopqrstuvwx")
    sizes: list[int] = []
    running = [offering.take(), offering.take()]
    while running:
        batch = running.pop(0)
        sizes.append(len(batch.members))
        offering.batcher.call_ended(batch)
        for _ in batch.members:
            offering.settle(batch)
            while (started := offering.batcher.take()) is not None:
                running.append(started)
    assert sizes == [4] * 6


def test_pressure_waits_for_the_places_of_all_calls_that_have_ended() -> None:
    offering = Offering(size=3, max_buffered=5)
    offering.offer("abcde")
    offering.batcher.flush(FlushReason.MANUAL)
    three, two = offering.take(), offering.take()
    offering.offer("fghij")
    for batch in (three, two):
        offering.batcher.call_ended(batch)
    for _ in two.members:
        offering.settle(two)
        assert offering.take_nothing()
    offering.settle(three)
    assert list(offering.take().members) == ["f", "g", "h"]


def test_tasks_do_not_use_up_each_others_bound() -> None:
    offering = Offering(size=2, max_buffered=2)
    offering.offer("abc", owner="busy")
    offering.offer("d", owner="quiet")
    assert offering.admitted == ["a", "b", "d"]


def test_no_more_calls_of_a_task_run_than_its_concurrency() -> None:
    offering = Offering(size=1, concurrency=2)
    offering.offer("abc")
    first = offering.take()
    offering.take()
    assert offering.batcher.take() is None
    assert not offering.batcher.is_ready
    wakes = offering.wakes
    offering.batcher.call_ended(first)
    assert offering.wakes == wakes + 1
    assert list(offering.take().members) == ["c"]


def test_a_batch_that_everybody_has_left_is_settled_when_its_call_ends() -> None:
    offering = Offering(size=2)
    offering.offer("ab")
    batch = offering.take()
    batch.move(BatchState.RUNNING)
    for letter in batch.members:
        letter.leave()
    assert not offering.batcher.is_empty
    offering.batcher.call_ended(batch)
    assert batch.state is BatchState.SETTLED
    offering.assert_nothing_is_left()


def test_concurrency_counts_calls_not_the_settling_after_them() -> None:
    offering = Offering(size=1, concurrency=1)
    offering.offer("ab")
    first = offering.take()
    offering.batcher.call_ended(first)
    assert list(offering.take().members) == ["b"]
    assert offering.batcher.statistics().buffered == 2


def test_a_task_at_its_limit_does_not_hold_up_another() -> None:
    offering = Offering(size=1, concurrency=1)
    offering.offer("ab", owner="busy")
    offering.take()
    offering.offer("c", owner="quiet")
    assert list(offering.take().members) == ["c"]


def test_a_due_batch_fills_while_it_cannot_start() -> None:
    offering = Offering(size=3, timeout=10)
    offering.offer("a")
    offering.clock.advance(10)
    offering.offer("bcd")
    assert offering.left() == [("abc", FlushReason.TIMEOUT)]
    offering.clock.advance(10)
    assert offering.left() == [("d", FlushReason.TIMEOUT)]


def test_a_batch_that_was_taken_takes_no_more_members() -> None:
    offering = Offering()
    offering.offer("a")
    offering.batcher.flush(FlushReason.MANUAL)
    batch = offering.take()
    offering.offer("b")
    assert list(batch.members) == ["a"]
    assert offering.batcher.statistics().open_groups == 1


def test_the_longest_waiting_batch_starts_first_so_no_key_starves_another() -> None:
    offering = Offering(size=2, concurrency=1)
    offering.offer("ab", group="busy")
    running = offering.take()
    offering.offer("c", group="quiet")
    offering.offer("defghi", group="busy")
    offering.clock.advance(10)
    offering.finish(running)
    assert [members for members, _ in offering.left()] == ["c", "de", "fg", "hi"]


def test_a_batch_is_parted_into_batches_that_start_next_and_count_for_every_limit() -> (
    None
):
    offering = Offering(size=6, concurrency=2)
    offering.offer("abcdef")
    offering.offer("uvwxyz", weight=1)
    offering.offer("1", group="other")
    offering.batcher.flush(FlushReason.MANUAL)
    batch = offering.take()
    a, b, c, d, *_ = batch.members
    offering.batcher.part(batch, [[b, c], [d]])
    assert list(batch.members) == ["a", "e", "f"]
    parts = [offering.take()]
    assert offering.take_nothing()
    for ended in (batch, *parts):
        offering.finish(ended)
    # The other group has waited longer than what is next of this one.
    assert offering.left() == [
        ("1", FlushReason.MANUAL),
        ("d", FlushReason.SIZE),
        ("uvwxyz", FlushReason.SIZE),
    ]
    assert list(parts[0].members) == ["b", "c"]
    assert parts[0].opened_at == batch.opened_at
    assert a.batch is None
    offering.assert_nothing_is_left()


def test_what_was_parted_can_be_found_and_taken_out_until_it_starts() -> None:
    offering = Offering(size=4, concurrency=1)
    offering.offer("abcd")
    offering.offer("efgh")
    assert offering.batcher.find(["b"]) == offering.offered[1:2]
    batch = offering.take()
    _, b, c, d = batch.members
    assert offering.batcher.find(["b"]) == []
    offering.batcher.part(batch, [[b], [c, d]])
    assert offering.batcher.find(["b"]) == [b]
    assert offering.withdraw("b")
    assert offering.withdraw("c")
    offering.finish(batch)
    assert [members for members, _ in offering.left()] == ["d", "efgh"]
    offering.assert_nothing_is_left()


def test_the_longest_waiting_batch_starts_first_among_tasks_too() -> None:
    offering = Offering(size=2)
    offering.offer("a", owner="quiet")
    offering.offer("bcde", owner="busy")
    offering.batcher.flush(FlushReason.MANUAL)
    assert [members for members, _ in offering.left()] == ["a", "bc", "de"]


def test_a_busy_group_takes_turns_with_the_others_however_much_of_it_is_due() -> None:
    offering = Offering(size=2, concurrency=1)
    offering.offer("abcdefgh", group="busy")
    running = offering.take()
    offering.offer("q", group="quiet")
    offering.offer("r", group="other")
    offering.clock.advance(10)
    offering.finish(running)
    # The others came while the busy group was served: they wait for no more of it.
    assert [members for members, _ in offering.left()] == ["q", "r", "cd", "ef", "gh"]


def test_whatever_call_of_a_group_ends_its_next_one_is_behind_who_came_meanwhile() -> (
    None
):
    offering = Offering(size=1, concurrency=2)
    offering.offer("abc", group="busy")
    offering.offer("q", group="quiet")
    first, second = offering.take(), offering.take()
    assert [list(first.members), list(second.members)] == [["a"], ["q"]]
    offering.finish(second)
    offering.offer("r", group="other")
    third = offering.take()
    assert list(third.members) == ["b"]
    offering.finish(first)
    offering.finish(third)
    assert [members for members, _ in offering.left()] == ["r", "c"]
    offering.assert_nothing_is_left()


def test_a_batch_that_fills_while_its_group_is_served_has_no_older_right() -> None:
    offering = Offering(size=2, concurrency=1)
    offering.offer("abc", group="busy")
    offering.offer("q", group="quiet")
    running = offering.take()
    offering.offer("d", group="busy")
    offering.clock.advance(10)
    offering.finish(running)
    assert [members for members, _ in offering.left()] == ["q", "cd"]


def test_a_batch_that_is_open_while_its_group_is_served_has_no_older_right() -> None:
    offering = Offering(size=2)
    offering.offer("abc", group="busy")
    offering.offer("q", group="quiet")
    offering.finish(offering.take())
    offering.clock.advance(10)
    assert [members for members, _ in offering.left()] == ["q", "c"]


def test_the_turn_of_a_batch_that_is_withdrawn_is_that_of_the_next() -> None:
    offering = Offering(size=1)
    offering.offer("abc", group="busy")
    running = offering.take()
    offering.offer("q", group="quiet")
    assert offering.withdraw("b")
    assert [members for members, _ in offering.left()] == ["c", "q"]
    offering.finish(running)
    offering.assert_nothing_is_left()


def test_a_due_batch_can_be_withdrawn_after_its_turn_was_put_off() -> None:
    offering = Offering(size=1, concurrency=1)
    offering.offer("abc", group="busy")
    running = offering.take()
    offering.offer("q", group="quiet")
    offering.finish(running)
    assert offering.withdraw("b")
    assert [members for members, _ in offering.left()] == ["q", "c"]
    offering.assert_nothing_is_left()


def test_what_is_withdrawn_behind_others_of_its_group_changes_no_turn() -> None:
    offering = Offering(size=1)
    offering.offer("abc", group="busy")
    offering.offer("q", group="quiet")
    assert offering.withdraw("b")
    assert [members for members, _ in offering.left()] == ["a", "q", "c"]
    offering.assert_nothing_is_left()


# -- Rates --------------------------------------------------------------------------


def test_calls_start_an_interval_apart_whatever_is_due() -> None:
    offering = Offering(size=1, rate="2/s")
    offering.offer("abcd")
    starts: list[tuple[float, str]] = []
    while not offering.batcher.is_empty:
        starts += [(offering.clock.time(), text) for text, _ in offering.left()]
        offering.clock.advance(0.125)
    assert starts == [(0, "a"), (0.5, "b"), (1, "c"), (1.5, "d")]
    offering.assert_nothing_is_left()


def test_a_batch_fills_while_it_waits_for_its_rate() -> None:
    offering = Offering(size=3, timeout=10, rate="2/m")
    offering.offer("abcd")
    offering.finish(offering.take())
    offering.clock.advance(10)
    assert offering.take_nothing()
    offering.offer("e")
    offering.clock.advance(19.9)
    assert offering.take_nothing()
    offering.clock.advance(0.1)
    assert offering.left() == [("de", FlushReason.TIMEOUT)]


def test_the_moment_for_the_next_call_wakes_whoever_starts_it() -> None:
    offering = Offering(size=1, rate="1/s")
    offering.offer("ab")
    offering.take()
    wakes = offering.wakes
    assert offering.batcher.is_paced
    offering.clock.advance(1)
    assert offering.wakes == wakes + 1
    assert not offering.batcher.is_paced
    assert offering.batcher.is_ready


def test_a_rate_holds_while_nothing_is_held_and_not_for_another_task() -> None:
    offering = Offering(size=1, rate="1/s")
    offering.offer("a")
    assert len(offering.left()) == 1
    assert offering.batcher.is_empty
    offering.offer("b")
    offering.offer("c", owner="other")
    assert [members for members, _ in offering.left()] == ["c"]


def test_the_rate_is_that_of_all_keys_of_a_task() -> None:
    offering = Offering(size=1, rate="1/s")
    offering.offer("a", group="one")
    offering.offer("b", group="two")
    assert [members for members, _ in offering.left()] == ["a"]


@pytest.mark.parametrize("end", ["withdraw", "abandon"])
def test_who_waits_for_the_rate_and_leaves_takes_the_alarm_along(end: str) -> None:
    offering = Offering(size=1, rate="1/h")
    offering.offer("ab")
    offering.finish(offering.take())
    wakes = offering.wakes
    if end == "withdraw":
        assert offering.withdraw("b")
    else:
        for letter in offering.batcher.abandon():
            letter.leave()
    assert offering.wakes == wakes + 1
    offering.assert_nothing_is_left()


def test_a_member_that_runs_alone_is_waited_for_by_the_next() -> None:
    offering = Offering(size=1, rate="1/s")
    offering.finish(offering.batcher.take_alone(offering.member("a")))
    offering.offer("b")
    assert offering.take_nothing()
    assert offering.batcher.is_paced


def test_a_drain_exceeds_no_rate() -> None:
    offering = Offering(size=2, rate="1/s")
    offering.offer("a", group="one")
    offering.offer("b", group="two")
    offering.batcher.drain(FlushReason.SHUTDOWN)
    assert offering.left() == [("a", FlushReason.SHUTDOWN)]
    offering.clock.advance(1)
    assert offering.left() == [("b", FlushReason.SHUTDOWN)]


def test_one_more_call_of_a_batch_has_its_turn_before_a_batch_that_is_due() -> None:
    offering, starts = Offering(size=1, rate="1/s"), list[tuple[str, float]]()
    offering.offer("ab")
    running = offering.take()
    for name in ("second", "third"):
        offering.batcher.call_again(
            running,
            lambda name=name: starts.append((name, offering.clock.time())),  # type: ignore[misc]
        )
    for _ in range(3):
        assert offering.take_nothing()
        assert offering.batcher.is_paced
        offering.clock.advance(1)
    assert starts == [("second", 1), ("third", 2)]
    offering.finish(running)
    assert offering.left() == [("b", FlushReason.SIZE)]
    offering.assert_nothing_is_left()


def test_one_more_call_starts_at_once_where_its_moment_has_come() -> None:
    offering, starts = Offering(size=1, rate="1/s"), list[float]()
    offering.offer("a")
    running = offering.take()
    offering.clock.advance(5)
    offering.batcher.call_again(running, lambda: starts.append(offering.clock.time()))
    assert starts == [5]
    offering.finish(running)
    offering.offer("b")
    assert offering.take_nothing()


@pytest.mark.parametrize("seconds", [0, 1], ids=["before", "in the moment of"])
def test_who_gives_up_one_more_call_leaves_no_alarm(seconds: float) -> None:
    """Also when it may start just then."""
    offering, starts = Offering(size=1, rate="1/s"), list[float]()
    offering.offer("a")
    running = offering.take()

    def go() -> None:
        starts.append(offering.clock.time())

    offering.batcher.call_again(running, go)
    offering.clock.advance(seconds)
    offering.batcher.call_no_more(running, go)
    assert len(starts) == seconds
    assert not offering.batcher.is_paced
    offering.finish(running)
    offering.clock.advance(10)
    assert len(starts) == seconds
    offering.assert_nothing_is_left()


class ToldPace(Pace):
    """A pace that somebody else counts, too."""

    def __init__(self, owner: object, rate: str, changed: Callable[[], object]) -> None:
        super().__init__(rate)
        self.owner, self.changed = owner, changed
        self.wanted: list[tuple[float, int]] = []

    def want(self, now: float, count: int) -> None:
        self.wanted.append((now, count))


def told_pace() -> tuple[MakePace, list[ToldPace]]:
    """Give what makes such paces, and those that it has made."""
    made: list[ToldPace] = []

    def make(*told: Any) -> AnyPace:
        made.append(ToldPace(*told))
        return made[-1]

    return make, made


def test_what_a_store_says_of_a_task_that_waits_for_nothing_changes_nothing() -> None:
    make_pace, paces = told_pace()
    offering = Offering(size=1, rate="1/s", make_pace=make_pace)
    offering.offer("a")
    [pace] = paces
    pace.changed()  # it may start already
    assert offering.left() == [("a", FlushReason.SIZE)]
    wakes = offering.wakes
    pace.changed()  # nothing is held
    assert offering.wakes == wakes
    offering.assert_nothing_is_left()


def test_what_a_store_says_is_the_moment_that_a_call_waits_for() -> None:
    make_pace, paces = told_pace()
    offering = Offering(size=1, rate="1/m", make_pace=make_pace)
    offering.offer("abc")
    offering.take()
    offering.clock.advance(1)
    [pace] = paces
    assert pace.owner == "task"
    pace.wanted.clear()
    pace.next_at = 3
    pace.changed()
    assert pace.wanted == [(1, 2)]
    assert offering.take_nothing()
    offering.clock.advance(2)
    assert offering.batcher.is_ready


# -- Priorities ---------------------------------------------------------------------


def test_the_batch_with_the_highest_priority_starts_first_whatever_its_turn() -> None:
    offering = Offering(size=1, priority=2)
    offering.offer("a", group="one", priority=1)
    offering.offer("b", group="two")
    offering.offer("c", group="three", priority=2.5)
    assert [members for members, _ in offering.left()] == ["c", "b", "a"]


def test_the_priorities_of_two_tasks_are_compared() -> None:
    """Neither has a label: each task has one priority for all of its batches."""
    offering = Offering(size=1)
    offering.offer("ad", owner="usual")
    offering.config = BatchConfig(size=1, priority=1)
    offering.offer("b", owner="urgent")
    offering.config = BatchConfig(size=1, priority=-1)
    offering.offer("c", owner="idle")
    assert [members for members, _ in offering.left()] == ["b", "a", "d", "c"]


def test_a_batch_has_the_highest_priority_of_its_members() -> None:
    offering = Offering(size=3)
    for member, priority in zip("abc", (1, 7, 2), strict=True):
        offering.offer(member, group="one", priority=priority)
    offering.offer("def", group="two", priority=5)
    offering.offer("ghi", group="one", priority=6)
    offering.offer("j", group="three", priority=-2)
    offering.offer("klm", group="four", priority=-1)
    offering.offer("no", group="three")
    left = [members for members, _ in offering.left()]
    assert left == ["abc", "ghi", "def", "jno", "klm"]


def test_a_part_of_a_batch_has_the_highest_priority_of_its_own_members() -> None:
    offering = Offering(size=3)
    for member, priority in zip("abc", (0, 0, 9), strict=True):
        offering.offer(member, group="one", priority=priority)
    batch = offering.take()
    offering.offer("def", group="two", priority=5)
    _, b, c = batch.members
    offering.batcher.part(batch, [[b], [c]])
    assert [members for members, _ in offering.left()] == ["c", "def", "b"]


def test_a_member_that_is_withdrawn_takes_its_priority_with_it() -> None:
    offering = Offering(size=2)
    offering.offer("a", group="one")
    offering.offer("b", group="one", priority=9)
    offering.offer("cd", group="two", priority=1)
    offering.offer("e", group="three")
    offering.offer("f", group="three", priority=8)
    assert offering.withdraw("b")
    assert offering.withdraw("e")
    assert [members for members, _ in offering.left()] == ["f", "cd", "a"]


def test_of_a_group_the_higher_priority_starts_first_too() -> None:
    offering = Offering(size=2)
    offering.offer("abcd")
    offering.offer("ef", priority=1)
    assert [members for members, _ in offering.left()] == ["ef", "ab", "cd"]
    offering.assert_nothing_is_left()


def test_a_task_that_may_not_start_holds_up_no_lower_priority() -> None:
    offering = Offering(size=1, concurrency=1)
    offering.offer("ab", owner="urgent", priority=1)
    offering.take()
    offering.offer("c", owner="usual")
    assert list(offering.take().members) == ["c"]


@pytest.mark.parametrize(("timeout", "seconds"), [(2, 10), (0, 5)])
def test_a_batch_has_aged_after_five_times_its_timeout(
    timeout: float,
    seconds: float,
) -> None:
    offering = Offering(size=1, timeout=timeout)
    offering.offer("a", group="one")
    offering.offer("b", group="two")
    offering.clock.advance(seconds - 0.5)
    offering.offer("pqr", group="urgent", priority=1)
    started = [offering.take()]
    offering.clock.advance(0.5)
    started += [offering.take() for _ in range(4)]
    assert ["".join(batch.members) for batch in started] == ["p", "a", "b", "q", "r"]


_Arrivals = list[tuple[int, float]]
_WAITING = st.lists(
    st.tuples(st.integers(-3, 2), st.floats(0, 30)),
    min_size=1,
    max_size=5,
)


@given(waiting=_WAITING, urgent_groups=st.integers(1, 3), timeout=st.floats(0.1, 10))
def test_nothing_waits_beyond_ten_times_its_timeout_however_much_is_more_urgent(
    waiting: _Arrivals,
    urgent_groups: int,
    timeout: float,
) -> None:
    """One slot, and as much work of a higher priority as it could ever do.

    A call takes as long as lets the worker begin one for each group in five times the
    timeout.
    """
    offering = Offering(size=1, timeout=timeout)
    arrivals = sorted((at * timeout, priority) for priority, at in waiting)
    seconds = 5 * timeout / (len(waiting) + urgent_groups + 1)
    waits = 0
    for number in range(urgent_groups):
        offering.offer("uu", group=f"urgent {number}", priority=9)
    while waits < len(waiting):
        now = offering.clock.time()
        while arrivals and arrivals[0][0] <= now:
            _, priority = arrivals.pop(0)
            offering.offer("w", group=f"group {len(arrivals)}", priority=priority)
        waited = offering.batcher.longest_wait()
        assert waited is not None
        assert waited <= 10 * timeout
        batch = offering.take()
        if "w" in batch.members:
            waits += 1
        else:
            offering.offer("u", group=str(batch.group.key), priority=9)
        offering.clock.advance(seconds)
        offering.finish(batch)


# -- Withdrawing and abandoning -----------------------------------------------------


def test_a_member_that_is_withdrawn_is_in_no_call() -> None:
    offering = Offering()
    offering.offer("abc")
    assert offering.withdraw("b")
    offering.batcher.flush(FlushReason.MANUAL)
    assert offering.left() == [("ac", FlushReason.MANUAL)]
    offering.assert_nothing_is_left()


def test_the_last_member_that_is_withdrawn_takes_its_batch_with_it() -> None:
    offering = Offering()
    offering.offer("a")
    assert offering.withdraw("a")
    offering.assert_nothing_is_left()


def test_an_empty_due_batch_is_never_taken() -> None:
    offering = Offering(size=2)
    offering.offer("ab")
    offering.offer("c")
    offering.batcher.flush(FlushReason.MANUAL)
    for member in "abc":
        assert offering.withdraw(member)
    assert offering.batcher.take() is None
    offering.assert_nothing_is_left()


def test_a_member_can_be_withdrawn_before_it_is_admitted() -> None:
    offering = Offering(size=2, max_buffered=2)
    offering.offer("abcd")
    assert offering.withdraw("c")
    assert [members for members, _ in offering.left()] == ["ab"]
    assert offering.admitted == ["a", "b", "d"]


def test_the_place_of_a_withdrawn_member_is_given_to_the_next() -> None:
    offering = Offering(size=2, max_buffered=2)
    offering.offer("abc")
    assert offering.withdraw("a")
    assert offering.admitted == ["a", "b", "c"]
    assert list(offering.take().members) == ["b"]


def test_a_sealed_batch_keeps_its_members() -> None:
    offering = Offering(size=2)
    offering.offer("ab")
    batch = offering.take()
    assert not offering.withdraw("a")
    assert list(batch.members) == ["a", "b"]


def test_nobody_can_be_withdrawn_twice_or_from_where_he_is_not() -> None:
    offering = Offering()
    offering.offer("ab")
    assert offering.withdraw("a")
    assert not offering.withdraw("a")
    stranger = offering.member("a", group="other")
    assert not offering.batcher.withdraw(stranger)


def test_abandoning_gives_back_who_is_in_no_call_and_disarms() -> None:
    offering = Offering(size=2, max_buffered=5)
    offering.offer("ab")
    running = offering.take()
    offering.offer("cd")
    offering.offer("efg", group="other")
    abandoned = offering.batcher.abandon()
    assert sorted(abandoned) == list("cdefg")
    for letter in abandoned:
        letter.leave()
    assert offering.clock.armed == 0
    assert offering.batcher.take() is None
    assert list(running.lane.groups.values()) == [[running.group]]
    offering.finish(running)
    offering.assert_nothing_is_left()


def test_an_emptied_group_leaves_nothing_behind() -> None:
    offering = Offering(size=2)
    for number in range(100):
        offering.offer("ab", group=f"key {number}")
        offering.offer("c", group=f"other key {number}")
    offering.batcher.flush(FlushReason.MANUAL)
    offering.left()
    offering.assert_nothing_is_left()
    assert not offering.batcher._lanes


def test_a_group_without_a_batch_costs_nothing_while_its_task_is_busy() -> None:
    offering = Offering(size=1)
    offering.offer("a", group="stays")
    running = offering.take()
    for number in range(100):
        offering.offer("b", group=f"key {number}")
        offering.finish(offering.take())
    lane = running.lane
    assert not lane.open
    assert not lane.due
    assert not lane.waiting
    assert list(lane.groups.values()) == [[running.group]]


def test_without_a_timeout_each_batch_is_due_at_once() -> None:
    offering = Offering(timeout=0)
    offering.offer("a")
    assert offering.left() == [("a", FlushReason.TIMEOUT)]


def test_whom_there_is_no_weight_left_for_makes_the_batch_before_due() -> None:
    offering = Offering(max_weight=3)
    offering.offer("ab", weight=2)
    assert offering.left() == [("a", FlushReason.WEIGHT)]


def test_a_group_lives_until_the_last_of_its_calls_has_ended() -> None:
    offering = Offering(size=1)
    offering.offer("ab")
    first, second = offering.take(), offering.take()
    offering.finish(first)
    assert list(first.lane.groups.values()) == [[second.group]]
    offering.finish(second)
    offering.assert_nothing_is_left()


def test_a_group_lives_exactly_while_a_member_of_it_waits() -> None:
    offering = Offering(max_buffered=1)
    offering.offer("a")
    offering.offer("bc", group="outside")
    inside, _, outside = (letter.group for letter in offering.offered)
    groups = inside.lane.groups
    assert offering.withdraw("b")
    assert offering.member("d", group="outside").group is outside
    assert offering.withdraw("c")
    assert list(groups.values()) == [[inside]]


def test_a_group_lives_no_longer_for_those_who_have_waited() -> None:
    offering = Offering(size=1, max_buffered=2)
    offering.offer("a", group="stays")
    running = offering.take()
    offering.offer("b", group="inside")
    offering.offer("c", group="outside")
    assert offering.batcher.statistics().waiting == 1
    assert [members for members, _ in offering.left()] == ["b", "c"]
    assert list(running.lane.groups.values()) == [[running.group]]


class Alike(str):
    """A key with the hash of every other one."""

    def __hash__(self) -> int:
        return 0


def test_groups_of_one_hash_are_told_apart_and_forgotten_one_by_one() -> None:
    offering = Offering(size=2)
    for member, key in zip("abcd", "xyxy", strict=True):
        offering.offer(member, group=Alike(key))
    first, second = offering.take(), offering.take()
    assert [list(batch.members) for batch in (first, second)] == [
        ["a", "c"],
        ["b", "d"],
    ]
    offering.finish(second)
    assert first.lane.groups == {0: [first.group]}
    offering.finish(first)
    offering.assert_nothing_is_left()


# -- What withdrawing costs ---------------------------------------------------------


@dataclass(frozen=True)
class Crowd:
    """Members that wait, and where.

    :ivar has_keys: whether each of them is in a group of its own.
    :ivar each: how many are offered to a group in turn.
    :ivar room: how many of them their task may hold, as a part of all.
    :ivar priorities: of them, in turn.
    """

    has_keys: bool = False
    each: int = 1
    room: float = 1
    priorities: tuple[float | None, ...] = (None,)
    limits: dict[str, Any] = field(default_factory=dict)

    def offered(self, count: int) -> Offering:
        offering = Offering(
            **{"size": count, "max_buffered": max(int(count * self.room), 1)}
            | self.limits,
        )
        for number in range(count):
            group = f"key {number // self.each}" if self.has_keys else "group"
            priority = self.priorities[number % len(self.priorities)]
            member = offering.member(str(number), group, 1.0, priority=priority)
            offering.offered.append(member)
            offering.batcher.offer(member)
        return offering


_CROWDS = {
    "outside": Crowd(room=0),
    "outside, with keys": Crowd(room=0, has_keys=True),
    "in an open batch": Crowd(limits={"size": 1000}),
    "in an open batch with weight": Crowd(limits={"size": 1000, "max_weight": 1000}),
    "in a batch of mixed priorities": Crowd(priorities=(3, None, 1, 2, 3)),
    "in open batches of many keys": Crowd(has_keys=True),
    "in due batches of one key": Crowd(limits={"size": 1}),
    "in due batches of many keys": Crowd(has_keys=True, limits={"size": 1}),
    "in two due batches for each key": Crowd(has_keys=True, each=2, limits={"size": 1}),
    "in due batches before as many outside": Crowd(
        room=0.5,
        has_keys=True,
        limits={"size": 1},
    ),
    "in due batches that wait for a rate": Crowd(
        has_keys=True,
        limits={"size": 1, "rate": "1/s"},
    ),
}


@pytest.mark.parametrize("crowd", _CROWDS.values(), ids=list(_CROWDS))
@pytest.mark.parametrize("order", [1, -1], ids=["first to last", "last to first"])
def test_finding_and_withdrawing_one_costs_the_same_however_many_wait(
    crowd: Crowd,
    order: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # So that looking for a batch among others runs lines, too.
    monkeypatch.setattr(Batch, "__eq__", lambda self, other: self is other)
    lines: list[float] = []
    for count in (50, 400):
        offering = crowd.offered(count)
        work = Work()
        with work:
            for member in offering.offered[::order]:
                assert offering.batcher.find([member.sent_as]) == [member]
                assert offering.batcher.withdraw(member)
                member.leave()
        lines.append(work.lines / count)
        offering.assert_nothing_is_left()
    few, many = lines
    assert many <= few * 1.1


def test_groups_that_were_withdrawn_stand_in_no_line() -> None:
    offering = Offering(size=1)
    offering.offer("ab", group="busy")
    offering.offer("c", group="next")
    lane = offering.offered[0].group.lane
    for number in range(100):
        offering.offer("x", group=f"key {number}")
        assert len(lane.turns) <= 2 * len(lane.due) + 16
        letter = offering.offered.pop()
        assert offering.batcher.withdraw(letter)
        letter.leave()
    assert offering.left() == [(each, FlushReason.SIZE) for each in "acb"]
    offering.assert_nothing_is_left()


# -- Waiting for room ---------------------------------------------------------------


def test_one_of_those_who_wait_makes_way_for_others_in_each_timeout() -> None:
    offering = Offering(size=1, timeout=10, max_buffered=1, concurrency=1)
    offering.offer("abcd")
    running = offering.take()
    parked: list[list[bool]] = []
    for seconds in (9, 1, 10):
        offering.clock.advance(seconds)
        parked.append([letter.is_parked for letter in offering.offered])
    assert parked == [
        [False, False, False, False],
        [False, True, False, False],
        [False, True, True, False],
    ]
    offering.finish(running)
    offering.left()
    offering.assert_nothing_is_left()


# -- States -------------------------------------------------------------------------


def _batch_in(state: BatchState) -> Batch[Letter]:
    offering = Offering(size=1)
    offering.offer("a")
    batch = offering.take()
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


def test_a_batch_fills_is_sealed_runs_and_is_settled() -> None:
    offering = Offering(size=2)
    offering.offer("a")
    (opened,) = offering.batcher._lanes["task"].open.values()
    assert opened.state is BatchState.FILLING
    offering.offer("b")
    batch = offering.take()
    assert batch is opened
    seen = [batch.state]
    batch.move(BatchState.RUNNING)
    offering.batcher.call_ended(batch)
    offering.settle(batch)
    seen.append(batch.state)
    offering.settle(batch)
    seen.append(batch.state)
    assert seen == [BatchState.SEALED, BatchState.SETTLING, BatchState.SETTLED]


def test_a_batch_that_never_ran_can_be_settled() -> None:
    offering = Offering(size=1)
    offering.offer("a")
    batch = offering.take()
    offering.batcher.call_ended(batch)
    offering.settle(batch)
    assert batch.state is BatchState.SETTLED
    offering.assert_nothing_is_left()


def test_a_member_that_runs_alone_waits_for_nobody_and_counts_like_others() -> None:
    offering = Offering(size=2, concurrency=1)
    offering.offer("ab")
    running = offering.take()

    alone = offering.batcher.take_alone(offering.member("c"))

    assert list(alone.members) == ["c"]
    assert alone.group.key == "group"
    assert alone.reason is FlushReason.MANUAL
    assert alone.state is BatchState.SEALED
    assert alone.lane is running.lane
    assert offering.batcher.statistics().buffered == 3
    offering.finish(alone)
    offering.finish(running)
    offering.assert_nothing_is_left()


def test_a_member_that_runs_alone_is_not_to_be_found() -> None:
    """Nor is it with others of its id, which are, or with none."""
    offering = Offering()
    for text in ("", "a", "b"):
        offering.offer(text)
        batch = offering.batcher.take_alone(offering.member("A"))
        assert offering.batcher.find(["a"]) == offering.offered[:1]
        offering.finish(batch)
    offering.batcher.flush(FlushReason.MANUAL)
    assert offering.left() == [("ab", FlushReason.MANUAL)]
    offering.assert_nothing_is_left()


def test_a_member_that_runs_alone_opens_its_task_as_any_other() -> None:
    offering = Offering(max_buffered=10)

    alone = offering.batcher.take_alone(offering.member("a"))

    assert alone.lane.owner == "task"
    assert alone.lane.config is offering.config
    offering.offer("b")
    assert offering.batcher.statistics().buffered == 2


def test_the_repr_of_a_batch_says_whether_it_is_due() -> None:
    offering = Offering()
    offering.offer("a")
    [batch] = next(iter(offering.batcher._lanes.values())).open.values()
    assert repr(batch) == "<Batch of 'task': 1 members, FILLING, not due>"


def test_the_repr_shows_live_counts() -> None:
    offering = Offering(size=2)
    offering.offer("abc")
    assert "2 members, SEALED, size" in repr(offering.take())
    assert "open_groups=1" in repr(offering.batcher)
    assert "running_calls=1" in repr(offering.batcher)


# -- All of it at once, against a plain model ---------------------------------------

_SECONDS = st.sampled_from([0.0, 0.5, 1.0, 1.5, 2.0, 4.0])
_PRIORITIES = st.integers(-1, 1)
_INTERVALS = {"1/s": 1.0, "20/m": 3.0}
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
    priority=st.none() | _PRIORITIES,
    rate=st.none() | st.sampled_from(list(_INTERVALS)),
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
    priorities: list[float] = field(default_factory=list)
    weight: float = 0
    is_full: bool = False
    is_part: bool = False
    reason: FlushReason | None = None


@dataclass(frozen=True)
class Offered:
    """One member, as it was offered."""

    number: int
    owner: str
    group: int
    weight: float
    priority: float


class Entrant:
    """A member of the real batcher."""

    batch: Batch[Entrant] | None = None

    def __init__(self, offered: Offered, group: Group[Entrant]) -> None:
        self.number = offered.number
        self.group = group
        self.weight = exact_weight(offered.weight)
        self.priority = offered.priority
        self.steps: list[str] = []

    @property
    def sent_as(self) -> str:
        """One id for several, as items of a chunk have it."""
        return str(self.number % 5)

    def joined(self, batch: Batch[Entrant]) -> None:
        self.batch = batch
        self.steps.append("joined")

    def moved(self, batch: Batch[Entrant]) -> None:
        assert "joined" in self.steps
        self.batch = batch

    def waits(self) -> None:
        assert self.steps == []
        self.steps.append("waits")

    def parks(self) -> bool:
        assert self.steps == ["waits"]
        self.steps.append("parks")
        return True

    def leave(self) -> None:
        batch, self.batch = self.batch, None
        if batch is not None:
            batch.release()


class BatcherModel(RuleBasedStateMachine):
    """The batcher beside a model that scans lists where the batcher keeps indexes.

    As in the receiver, whatever is ready is known to a starter that was woken: a batch
    that could start and of which nobody was told is found by `nobody_sleeps_late`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.batcher: Batcher[Entrant] = Batcher(self.clock, wake=self._wake)
        self.entrants: dict[int, Entrant] = {}
        self.configs: dict[str, BatchConfig] = {}
        self.count = 0
        self.turns = 0
        self.is_woken = False
        self.draining: FlushReason | None = None
        # Batches not yet taken, in the order they were opened; and who waits outside.
        self.open: list[ExpectedBatch] = []
        self.outside: list[Offered] = []
        self.offered: dict[int, Offered] = {}
        # When a call of a task with a rate may start next.
        self.next_at: dict[str, float] = {}
        # When the members of a task that wait outside make way for others next.
        self.rings: dict[str, float] = {}
        self.expected_admissions: list[int] = []
        # Batches taken: each with how many of its members are not settled, by state.
        self.running: list[Batch[Entrant]] = []
        # As they were expected, those that may be parted still.
        self.whole: dict[Batch[Entrant], ExpectedBatch] = {}
        self.settling: list[tuple[Batch[Entrant], list[Entrant]]] = []
        self.taken: list[int] = []

    def _wake(self) -> None:
        self.is_woken = self.is_woken or self.batcher.is_ready

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
        return self._has_slot(owner) and not self._is_too_early(owner)

    def _is_too_early(self, owner: str) -> bool:
        return self.clock.time() < self.next_at.get(owner, 0)

    def _expect_pace(self, owner: str) -> None:
        """The next call may start an interval after this one.

        Time moves on by half seconds here: no call is so little late that the next one
        would make up for it.
        """
        rate, now = self.configs[owner].rate, self.clock.time()
        if rate is not None:
            self.next_at[owner] = now + _INTERVALS[rate]

    def _has_slot(self, owner: str) -> bool:
        limit = self.configs[owner].concurrency
        running = sum(batch.lane.owner == owner for batch in self.running)
        return limit is None or running < limit

    def _due(self) -> list[ExpectedBatch]:
        return [
            batch
            for batch in self.open
            if batch.reason is not None and self._may_start(batch.owner)
        ]

    def _expect_next(self, due: list[ExpectedBatch]) -> ExpectedBatch:
        """Of the highest priority, the group whose turn it is; of that the oldest.

        What has waited for five times its timeout has the highest priority, too.
        """
        # The first of each group has its turn.
        turns = {(each.owner, each.group): each.turn for each in reversed(due)}
        highest = max(max(each.priorities) for each in due)
        candidates = [
            each
            for each in due
            if max(each.priorities) == highest or self._has_aged(each)
        ]
        return min(candidates, key=lambda each: turns[each.owner, each.group])

    def _has_aged(self, batch: ExpectedBatch) -> bool:
        timeout = self.configs[batch.owner].timeout or 1.0
        return self.clock.time() - batch.opened_at >= 5 * timeout

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
        batch.priorities.append(offered.priority)
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
            and self._has_slot(owner)
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
        while self.rings and min(self.rings.values()) <= self.clock.time():
            owner = min(self.rings, key=self.rings.__getitem__)
            self.rings[owner] += self._patience(owner)
        for batch in self.open:
            if batch.reason is None:
                moment, reason = self._deadline(batch)
                if moment <= self.clock.time():
                    batch.reason = reason

    def _patience(self, owner: str) -> float:
        return max(self.configs[owner].timeout, 1.0)

    def _expect_nobody_waits(self) -> None:
        """Those who wait outside have an alarm, and nobody else has."""
        owners = {offered.owner for offered in self.outside}
        for owner in owners - self.rings.keys():
            self.rings[owner] = self.clock.time() + self._patience(owner)
        for owner in self.rings.keys() - owners:
            del self.rings[owner]

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
        label=st.none() | _PRIORITIES,
    )
    def arrive(
        self,
        owner: str,
        group: int,
        weights: list[float],
        label: int | None,
    ) -> None:
        priority = label if label is not None else self.configs[owner].priority or 0
        for weight in weights:
            offered = Offered(self.count, owner, group, weight, priority)
            self.count += 1
            self.offered[offered.number] = offered
            if self._has_room(owner):
                self._expect_admission(offered)
            else:
                self.outside.append(offered)
            self._expect_relief(owner)
            found = self.batcher.group(owner, self.configs[owner], group)
            entrant = Entrant(offered, found)
            self.entrants[offered.number] = entrant
            self.batcher.offer(entrant)
            self._expect_nobody_waits()

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
        expected = self._expect_next(due)
        assert [each.number for each in batch.members] == expected.members
        assert batch.reason is expected.reason
        assert batch.opened_at == expected.opened_at
        self.open.remove(expected)
        self._expect_pace(expected.owner)
        self._expect_turn(expected.owner, expected.group)
        self.running.append(batch)
        assert batch.is_part == expected.is_part
        if not expected.is_part and len(expected.members) > 1:
            self.whole[batch] = expected
        self._check_taken(batch)

    @precondition(lambda self: self.whole)
    @rule(data=st.data())
    def part(self, data: st.DataObject) -> None:
        batch = data.draw(st.sampled_from(list(self.whole)))
        expected = self.whole.pop(batch)
        members = list(batch.members)
        places = data.draw(
            st.lists(st.integers(0, 2), min_size=len(members), max_size=len(members))
        )
        places[0] = 0
        parts = [
            [m for m, place in zip(members, places, strict=True) if place == number]
            for number in (1, 2)
        ]
        parts = [part for part in parts if part]
        if not parts:
            return
        for number, part in enumerate(parts):
            self.open.insert(number, self._expected_part(expected, part))
            for member in part:
                self.taken.remove(member.number)
        self.batcher.part(batch, parts)
        assert [m for m, p in zip(members, places, strict=True) if not p] == list(
            batch.members
        )

    def _expected_part(
        self, whole: ExpectedBatch, members: list[Entrant]
    ) -> ExpectedBatch:
        """It is as old as the whole, due for the same reason, and takes nobody."""
        return replace(
            whole,
            members=[each.number for each in members],
            priorities=[each.priority for each in members],
            weight=sum(self.offered[each.number].weight for each in members),
            is_full=True,
            is_part=True,
        )

    def _check_taken(self, batch: Batch[Entrant]) -> None:
        config = batch.lane.config
        numbers = [each.number for each in batch.members]
        members = [self.offered[number] for number in numbers]
        assert 1 <= len(members) <= config.size
        assert {(m.owner, m.group) for m in members} == {
            (batch.lane.owner, batch.group.key),
        }
        weight = sum(member.weight for member in members)
        if config.max_weight is not None and len(members) > 1:
            assert weight <= config.max_weight
        assert numbers == sorted(numbers), "not in order of arrival"
        assert not set(numbers) & set(self.taken), "in two batches"
        self.taken += numbers

    @precondition(lambda self: self.running)
    @rule(data=st.data(), is_run=st.booleans())
    def end_call(self, data: st.DataObject, is_run: bool) -> None:
        self._end_call(data.draw(st.integers(0, len(self.running) - 1)), is_run=is_run)

    def _end_call(self, index: int, *, is_run: bool) -> None:
        batch = self.running.pop(index)
        self.whole.pop(batch, None)
        if is_run:
            batch.move(BatchState.RUNNING)
        self.settling.append((batch, list(batch.members)))
        self._expect_turn(batch.lane.owner, batch.group.key)
        self.batcher.call_ended(batch)

    @precondition(lambda self: self.settling)
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        self._settle(data.draw(st.integers(0, len(self.settling) - 1)))

    def _settle(self, index: int) -> None:
        batch, left = self.settling[index]
        entrant = left.pop()
        if not left:
            del self.settling[index]
        self._expect_places_taken(str(batch.lane.owner))
        entrant.leave()
        self._expect_nobody_waits()
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
        entrant = self.entrants[number]
        assert was_waiting == self.batcher.withdraw(entrant)
        if was_waiting:
            entrant.leave()
        self._expect_nobody_waits()

    @rule(ids=st.sets(st.integers(0, 5).map(str)))
    def find(self, ids: set[str]) -> None:
        """Who can be withdrawn is found, and nobody else."""
        waiting = [each.number for each in self.outside]
        for batch in self.open:
            waiting += batch.members
        found = [each.number for each in self.batcher.find(ids)]
        assert sorted(found) == sorted(
            number for number in waiting if self.entrants[number].sent_as in ids
        )

    def _expect_withdrawal(self, offered: Offered) -> bool:
        if offered in self.outside:
            self.outside.remove(offered)
            return True
        for batch in self.open:
            if offered.number in batch.members:
                del batch.priorities[batch.members.index(offered.number)]
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
        abandoned = self.batcher.abandon()
        assert sorted(each.number for each in abandoned) == sorted(expected)
        for entrant in abandoned:
            entrant.leave()
        self.open.clear()
        self.outside.clear()
        self.rings.clear()
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
        armed = len(waiting) + len({offered.owner for offered in self.outside})
        # And one for each task with a batch that waits for its rate.
        due = {batch.owner for batch in self.open if batch.reason is not None}
        armed += sum(map(self._is_too_early, due))
        assert self.clock.armed == armed
        assert self.batcher.statistics().armed_alarms == armed

    @invariant()
    def no_bound_is_exceeded(self) -> None:
        for owner, config in self.configs.items():
            assert self._buffered(owner) <= config.max_buffered
            running = [batch for batch in self.running if batch.lane.owner == owner]
            assert config.concurrency is None or len(running) <= config.concurrency

    @invariant()
    def the_counts_are_the_models(self) -> None:
        admitted = {n for n, each in self.entrants.items() if "joined" in each.steps}
        assert admitted == set(self.expected_admissions)
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
            elif self.settling:
                self._settle(0)
            else:
                assert self.batcher.is_paced, "members are held and nothing can happen"
                self.wait(1.0)
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


def test_the_largest_batch_that_takes_more_is_known_of_each_task() -> None:
    bench = Offering(size=3)
    assert bench.batcher.most_open("task") == 0
    bench.offer("abc", group="full")
    assert bench.batcher.most_open("task") == 0
    bench.offer("d", group="one")
    bench.offer("ef", group="two")
    bench.offer("g", owner="other")
    assert bench.batcher.most_open("task") == 2
    assert bench.batcher.most_open("other") == 1


def test_the_oldest_batch_that_waits_is_that_of_any_task() -> None:
    bench = Offering(timeout=10)
    bench.offer("a")
    bench.clock.advance(3)
    bench.offer("b", owner="other")
    bench.clock.advance(1)
    assert bench.batcher.longest_wait() == 4


def test_the_oldest_batch_that_waits_is_known_whatever_it_waits_for() -> None:
    bench = Offering(size=2, timeout=10)
    assert bench.batcher.longest_wait() is None
    bench.offer("ab", group="full")
    bench.clock.advance(3)
    bench.offer("c", group="open")
    bench.clock.advance(4)
    assert bench.batcher.longest_wait() == 7
    full = bench.take()
    assert bench.batcher.longest_wait() == 4
    bench.clock.advance(9)  # it is due now, and takes more all the same
    assert bench.batcher.longest_wait() == 13
    bench.take()
    assert bench.batcher.longest_wait() is None
    bench.finish(full)
