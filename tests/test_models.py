"""Models made without validation are those that validation makes."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

from taskiq.models import maker_of
from taskiq.result import TaskiqResult

FIELDS: dict[str, Any] = {
    "is_err": False,
    "log": None,
    "return_value": [1, 2],
    "execution_time": 0.25,
    "labels": {"queue": "fast"},
    "error": None,
}


@pytest.fixture
def made() -> TaskiqResult[Any]:
    return maker_of(TaskiqResult)(dict(FIELDS))


@pytest.fixture
def validated() -> TaskiqResult[Any]:
    return TaskiqResult(**FIELDS)


def test_it_equals_one_that_was_validated(
    made: TaskiqResult[Any],
    validated: TaskiqResult[Any],
) -> None:
    assert made == validated
    assert repr(made) == repr(validated)
    assert type(made) is type(validated)
    assert made.model_fields_set == validated.model_fields_set
    assert made.model_extra == validated.model_extra
    assert made.model_dump(exclude_unset=True) == validated.model_dump()
    assert made.model_dump_json() == validated.model_dump_json()


def test_it_can_be_copied_and_pickled(
    made: TaskiqResult[Any],
    validated: TaskiqResult[Any],
) -> None:
    assert pickle.loads(pickle.dumps(made)) == validated  # noqa: S301 - our own
    assert copy.copy(made) == copy.deepcopy(made) == validated
    assert made.model_copy(update={"is_err": True}).is_err


def test_a_field_that_is_set_is_set_on_it_alone(made: TaskiqResult[Any]) -> None:
    other = maker_of(TaskiqResult)(dict(FIELDS))
    made.return_value = "changed"
    assert made.return_value == "changed"
    assert other.return_value == [1, 2]
    assert other.model_fields_set == set(FIELDS)
