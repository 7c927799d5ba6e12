"""The tables of states: every walk through them gives back exactly what it must."""

from __future__ import annotations

import itertools
import runpy
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskiq.receiver.states import (
    HOLDS,
    MOVES,
    BatchState,
    Holder,
    MessageState,
    Unit,
)


class Source:
    """Counts the units of one kind that it is given back."""

    def __init__(self) -> None:
        self.count = 0

    def release(self) -> None:
        self.count += 1


def sources() -> dict[Unit, Source]:
    return {unit: Source() for unit in Unit}


def counts(given_back: dict[Unit, Source]) -> dict[Unit, int]:
    return {unit: source.count for unit, source in given_back.items()}


def units(holder: Holder) -> list[Unit]:
    return [unit for unit in (holder.unit, holder.unit_2) if unit is not None]


#: Whatever one may hold, in the order it was acquired.
ACQUIRED: list[tuple[Unit, ...]] = [
    (),
    *((unit,) for unit in Unit),
    *itertools.product(Unit, repeat=2),
]


def holder_of(state: Any, acquired: tuple[Unit, ...], of: dict[Unit, Source]) -> Holder:
    holder = Holder(state)
    for unit in acquired:
        holder.hold(unit, of[unit])
    return holder


@pytest.mark.parametrize("state", [*MessageState, *BatchState])
def test_each_move_keeps_in_order_what_is_held_there_and_gives_back_the_rest(
    state: Any,
) -> None:
    for following, acquired in itertools.product(MOVES[state], ACQUIRED):
        given_back = sources()
        holder = holder_of(state, acquired, given_back)
        holder.move(following)
        kept = [unit for unit in acquired if unit in HOLDS[following]]
        first, second = (*kept, None, None)[:2]
        assert (holder.unit, holder.unit_2) == (first, second)
        held = [each for each in (holder.source, holder.source_2) if each is not None]
        assert held == [given_back[unit] for unit in kept]
        assert counts(given_back) == {
            unit: acquired.count(unit) - kept.count(unit) for unit in Unit
        }


def test_what_another_has_held_is_given_back_once_and_by_who_took_it_over() -> None:
    for acquired in ACQUIRED:
        given_back = sources()
        other = holder_of(MessageState.RUNNING, acquired, given_back)
        holder = Holder(MessageState.RUNNING)
        holder.take_over(other)
        assert units(holder) == list(acquired)
        assert (units(other), other.source, other.source_2) == ([], None, None)
        other.move(MessageState.LEFT)
        assert not any(counts(given_back).values())
        holder.move(MessageState.LEFT)
        assert counts(given_back) == {unit: acquired.count(unit) for unit in Unit}


@given(
    state=st.sampled_from([*MessageState, *BatchState]),
    acquired=st.lists(st.sampled_from(list(Unit)), max_size=2),
    path=st.lists(st.sampled_from([*MessageState, *BatchState]), max_size=30),
)
def test_a_move_gives_back_the_difference_and_any_other_changes_nothing(
    state: Any,
    acquired: list[Unit],
    path: list[Any],
) -> None:
    given_back = sources()
    held = Counter(acquired)
    holder = holder_of(state, tuple(acquired), given_back)
    for following in path:
        before = (holder.state, units(holder), counts(given_back))
        if following not in MOVES[holder.state]:
            with pytest.raises(RuntimeError, match="no way from"):
                holder.move(following)
            assert (holder.state, units(holder), counts(given_back)) == before
            continue
        holder.move(following)
        kept = Counter({u: n for u, n in held.items() if u in HOLDS[following]})
        assert holder.state is following
        assert Counter(units(holder)) == kept
        assert counts(given_back) == {
            unit: before[2][unit] + held[unit] - kept[unit] for unit in Unit
        }
        held = kept


@given(st.data())
def test_a_walk_to_an_end_gives_everything_back_once(data: st.DataObject) -> None:
    given_back = sources()
    holder = Holder(data.draw(st.sampled_from([each for each in MOVES if MOVES[each]])))
    first = sorted(HOLDS[holder.state], key=lambda unit: unit.name)[:2]
    for unit in first:
        holder.hold(unit, given_back[unit])
    while following := MOVES[holder.state]:
        in_order = sorted(following, key=lambda state: str(state.name))
        holder.move(data.draw(st.sampled_from(in_order)))
    assert units(holder) == []
    assert counts(given_back) == {unit: int(unit in first) for unit in Unit}


def test_every_state_is_in_both_tables_and_no_way_leads_to_another_kind() -> None:
    every = {*MessageState, *BatchState}
    assert MOVES.keys() == HOLDS.keys() == every
    for state, following in MOVES.items():
        assert all(type(each) is type(state) for each in following)


def test_the_picture_in_the_design_is_drawn_from_the_tables() -> None:
    path = Path(__file__).parents[2] / "docs" / "states.py"
    drawing = runpy.run_path(str(path))
    drawn = drawing["TARGET"].read_text(encoding="utf-8")
    assert drawn == drawing["draw"](), "run: python docs/states.py"
