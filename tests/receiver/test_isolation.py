"""Which parts of a failed batch are called again, and what becomes of each item."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskiq.receiver.isolation import Isolation, most_extra_calls

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence


class CallError(Exception):
    """What a call fails with; it knows the items of that call."""

    def __init__(self, items: Collection[int]) -> None:
        super().__init__(items)
        self.items = tuple(items)


class Search:
    """Isolates, calling a function that fails for some of its items.

    :ivar calls: the items of each call, the first one included.
    """

    def __init__(self, size: int, poison: Callable[[Sequence[int]], bool]) -> None:
        everything = tuple(range(size))
        self.calls: list[tuple[int, ...]] = [everything]
        self.succeeded: list[int] = []
        self.isolation = Isolation(size, CallError(everything))
        while called := tuple(self.isolation.next_call()):
            self.calls.append(called)
            if poison(called):
                self.isolation.failed(CallError(called), (), is_final=False)
            else:
                self.succeeded += called
                self.isolation.succeeded()

    @property
    def failed(self) -> set[int]:
        return set(self.isolation.errors)

    @property
    def extra_calls(self) -> int:
        return len(self.calls) - 1

    def assert_sound(self, size: int) -> None:
        """Each item has one outcome, in calls that are in order and within bounds."""
        assert len(set(self.succeeded)) == len(self.succeeded), "succeeded twice"
        assert self.failed.isdisjoint(self.succeeded)
        assert self.failed | set(self.succeeded) == set(range(size))
        assert all(list(call) == sorted(set(call)) for call in self.calls)
        assert self.isolation.calls == self.extra_calls <= bound(size)

    def assert_errors_are_of_the_smallest_calls(self) -> None:
        done = set(self.succeeded)
        for index, error in self.isolation.errors.items():
            assert isinstance(error, CallError)
            smallest = min(len(call) for call in self.calls if index in call)
            assert index not in done
            assert index in error.items
            assert len(error.items) == smallest


def with_poison(poison: Collection[int]) -> Callable[[Sequence[int]], bool]:
    bad = set(poison)
    return lambda items: not bad.isdisjoint(items)


def bound(size: int) -> int:
    return 4 * math.ceil(math.log2(size)) + 4


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 8, 9, 64, 65, 1000, 1024])
def test_the_bound_is_four_calls_for_each_halving_and_four_more(size: int) -> None:
    assert most_extra_calls(size) == bound(size)


@pytest.mark.parametrize("size", range(1, 10))
def test_exactly_the_culprits_fail_for_every_choice_of_them(size: int) -> None:
    for count in range(size + 1):
        for poison in itertools.combinations(range(size), count):
            search = Search(size, with_poison(poison))
            search.assert_sound(size)
            search.assert_errors_are_of_the_smallest_calls()
            assert set(poison) <= search.failed
            if search.extra_calls < bound(size) or count <= 3:
                assert search.failed == set(poison)
                assert all(len(e.items) == 1 for e in errors(search))


def errors(search: Search) -> list[CallError]:
    found = list(search.isolation.errors.values())
    return [error for error in found if isinstance(error, CallError)]


@pytest.mark.parametrize("size", [2, 64, 1000])
def test_one_culprit_is_found_wherever_it_is(size: int) -> None:
    for culprit in range(size):
        search = Search(size, with_poison([culprit]))
        search.assert_sound(size)
        assert search.failed == {culprit}
        # A search, its culprit alone, and all who waited for its end.
        assert search.extra_calls <= math.ceil(math.log2(size)) + 2


@given(st.data(), st.integers(2, 1000))
def test_up_to_three_culprits_are_found_within_the_bound(
    data: st.DataObject,
    size: int,
) -> None:
    poison = data.draw(st.sets(st.integers(0, size - 1), max_size=3))
    search = Search(size, with_poison(poison))
    search.assert_sound(size)
    assert search.failed == poison


@given(st.data(), st.integers(1, 300))
def test_any_number_of_culprits_keeps_to_the_bound_and_frees_no_culprit(
    data: st.DataObject,
    size: int,
) -> None:
    poison = data.draw(st.sets(st.integers(0, size - 1)))
    search = Search(size, with_poison(poison))
    search.assert_sound(size)
    search.assert_errors_are_of_the_smallest_calls()
    assert poison <= search.failed


@given(st.integers(1, 64), st.lists(st.booleans(), max_size=40))
def test_a_function_that_fails_at_random_gets_an_outcome_for_each_item_all_the_same(
    size: int,
    fails: list[bool],
) -> None:
    moods = iter(fails)
    search = Search(size, lambda _: next(moods, False))
    search.assert_sound(size)
    search.assert_errors_are_of_the_smallest_calls()


@pytest.mark.parametrize("size", [1, 2, 64, 1000])
def test_after_a_failure_that_does_not_come_again_everything_succeeds(
    size: int,
) -> None:
    search = Search(size, with_poison([]))
    search.assert_sound(size)
    assert search.failed == set()
    assert search.extra_calls <= math.ceil(math.log2(size)) + 1


@pytest.mark.parametrize("size", [1, 2, 64, 1000])
def test_an_outage_fails_each_item_with_the_error_of_the_smallest_call_it_was_in(
    size: int,
) -> None:
    search = Search(size, with_poison(range(size)))
    search.assert_sound(size)
    search.assert_errors_are_of_the_smallest_calls()
    assert search.failed == set(range(size))


@pytest.mark.parametrize("size", [64, 1000])
def test_an_outage_takes_all_calls_it_may_and_no_more(size: int) -> None:
    assert Search(size, with_poison(range(size))).extra_calls == bound(size)


def test_items_that_were_decided_in_a_failed_call_are_not_called_again() -> None:
    isolation = Isolation(4, CallError(range(4)))
    assert list(isolation.next_call()) == [0, 1]
    isolation.failed(CallError([0, 1]), [1], is_final=False)
    # What is left of that call is one item: it is the culprit.
    assert list(isolation.errors) == [0]
    assert list(isolation.next_call()) == [2, 3]
    isolation.succeeded()
    assert not isolation.next_call()
    assert isolation.calls == 2


def test_a_call_whose_items_were_all_decided_leaves_no_culprit() -> None:
    isolation = Isolation(4, CallError(range(4)))
    assert list(isolation.next_call()) == [0, 1]
    isolation.failed(CallError([0, 1]), [0, 1], is_final=False)
    assert isolation.errors == {}
    assert list(isolation.next_call()) == [2, 3]


def test_a_final_error_is_that_of_every_undecided_item_of_its_call_only() -> None:
    isolation = Isolation(8, CallError(range(8)))
    assert list(isolation.next_call()) == [0, 1, 2, 3]
    final = CallError([0, 1, 2, 3])
    isolation.failed(final, [2], is_final=True)
    assert isolation.errors == {0: final, 1: final, 3: final}
    assert list(isolation.next_call()) == [4, 5, 6, 7]


def test_nothing_is_called_where_nothing_is_left_to_find() -> None:
    isolation = Isolation(0, CallError([]))
    assert not isolation.next_call()
    assert isolation.calls == 0
