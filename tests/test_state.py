import copy
import pickle
from collections.abc import Callable

import pytest

from taskiq.state import TaskiqState


@pytest.fixture
def state() -> TaskiqState:
    return TaskiqState()


def test_attributes_and_items_are_the_same_data(state: TaskiqState) -> None:
    state.x = 1
    state["y"] = 2
    assert (state["x"], state.y) == (1, 2)
    assert state.data == {"x": 1, "y": 2}

    del state.x
    assert "x" not in state


def test_a_missing_attribute_is_an_attribute_error_that_names_it(
    state: TaskiqState,
) -> None:
    with pytest.raises(AttributeError, match=r"'TaskiqState' .* 'pool'"):
        _ = state.pool
    with pytest.raises(AttributeError, match=r"'TaskiqState' .* 'pool'"):
        del state.pool
    assert not hasattr(state, "pool")


def test_a_missing_item_is_a_key_error(state: TaskiqState) -> None:
    with pytest.raises(KeyError, match="pool"):
        _ = state["pool"]
    assert state.get("pool") is None


def test_its_text_shows_what_is_in_it(state: TaskiqState) -> None:
    state.x = 1
    assert str(state) == "TaskiqState({'x': 1})"
    assert repr(state) == "{'x': 1}"


def _pickled(state: TaskiqState) -> TaskiqState:
    return pickle.loads(pickle.dumps(state))  # type: ignore[no-any-return] # noqa: S301 - our own


@pytest.mark.parametrize("make_copy", [copy.copy, copy.deepcopy, _pickled])
def test_a_copy_has_the_same_items_and_is_independent(
    make_copy: Callable[[TaskiqState], TaskiqState],
    state: TaskiqState,
) -> None:
    state.x = 1
    twin = make_copy(state)
    twin.y = 2
    assert twin == {"x": 1, "y": 2}
    assert state == {"x": 1}


def test_data_names_the_backing_dict_unless_it_is_written_as_an_item(
    state: TaskiqState,
) -> None:
    state.data = 3  # type: ignore[assignment]
    assert state.data == {"data": 3}
    assert state["data"] == 3


def test_it_starts_empty_and_takes_no_arguments(state: TaskiqState) -> None:
    assert state == {}
    with pytest.raises(TypeError):
        TaskiqState({})  # type: ignore[call-arg]
