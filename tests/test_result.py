import json
import pickle
from typing import Any, TypeVar

import pydantic
import pytest

from taskiq.exceptions import NoResultError, SecurityError, TaskiqResultTimeoutError
from taskiq.result import TaskiqResult
from taskiq.serialization import _UnpickleableExceptionWrapper as Wrapper

_T = TypeVar("_T")


class TwoPartError(Exception):
    """Its constructor does not accept its own `args`."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code}: {text}")


def failed(error: BaseException) -> TaskiqResult[None]:
    return TaskiqResult(
        is_err=True, return_value=None, execution_time=0.01, error=error
    )


def test_a_result_has_the_fields_of_0_13_0_in_order() -> None:
    assert list(TaskiqResult.model_fields) == [
        "is_err",
        "log",
        "return_value",
        "execution_time",
        "labels",
        "error",
    ]


def test_log_labels_and_error_may_be_left_out() -> None:
    first: TaskiqResult[int]
    first, second = (
        TaskiqResult(is_err=False, return_value=1, execution_time=1.0) for _ in range(2)
    )

    assert (first.log, first.labels, first.error) == (None, {}, None)
    assert first.labels is not second.labels


@pytest.mark.parametrize("missing", ["is_err", "return_value", "execution_time"])
def test_the_other_fields_are_required(missing: str) -> None:
    data = {"is_err": False, "return_value": 1, "execution_time": 0.1}
    del data[missing]

    with pytest.raises(pydantic.ValidationError, match=missing):
        TaskiqResult.model_validate(data)


def test_only_a_parametrised_result_validates_its_value() -> None:
    data: dict[str, Any] = {"is_err": False, "return_value": "x", "execution_time": 0.1}

    assert TaskiqResult.model_validate(data).return_value == "x"
    assert TaskiqResult[_T].model_validate(data).return_value == "x"  # type: ignore[valid-type]
    with pytest.raises(pydantic.ValidationError):
        TaskiqResult[int].model_validate(data)


def test_attributes_are_assigned_without_validation() -> None:
    result = failed(ValueError())
    result.log = None
    result.error = error = KeyError()

    assert result.error is error


def test_unknown_keys_are_ignored() -> None:
    data = failed(ValueError()).model_dump() | {"unknown": 1}

    assert isinstance(TaskiqResult.model_validate(data).error, ValueError)


def test_the_json_of_an_ordinary_error_is_the_one_of_0_13_0() -> None:
    assert failed(ValueError("x")).model_dump_json() == (
        '{"is_err":true,"log":null,"return_value":null,"execution_time":0.01,'
        '"labels":{},"error":{"exc_type":"ValueError","exc_message":["x"],'
        '"exc_module":"builtins","exc_cause":null,"exc_context":null,'
        '"exc_suppress_context":false}}'
    )


def test_an_error_is_dumped_as_a_plain_dict_in_python_mode_too() -> None:
    error = failed(ValueError("x")).model_dump()["error"]

    assert type(error) is dict
    assert error["exc_message"] == ("x",)
    assert failed(ValueError("x")).model_dump(mode="json")["error"] == {
        **error,
        "exc_message": ["x"],
    }


def test_no_error_is_dumped_as_none() -> None:
    result = TaskiqResult(is_err=False, return_value=1, execution_time=0.1)

    assert result.model_dump()["error"] is None
    assert result.serialize_error(None) is None


@pytest.mark.parametrize("stored_by", ["json", "pickle"])
@pytest.mark.parametrize(
    "error",
    [
        ValueError("x"),
        NoResultError(),
        TaskiqResultTimeoutError(timeout=1.5),
        TwoPartError(5, "x"),
    ],
    ids=repr,
)
def test_a_stored_error_comes_back_as_it_was(
    error: BaseException,
    stored_by: str,
) -> None:
    result = failed(error)

    back = (
        TaskiqResult.model_validate_json(result.model_dump_json())
        if stored_by == "json"
        else pickle.loads(pickle.dumps(result))  # noqa: S301 - just dumped
    )

    assert type(back.error) is type(error)
    assert repr(back.error) == repr(error)
    assert str(back.error) == str(error)


@pytest.mark.parametrize(
    "error",
    [None, ValueError("x"), TwoPartError(5, "x")],
    ids=repr,
)
def test_pickling_leaves_the_result_as_it_is(error: BaseException | None) -> None:
    result: TaskiqResult[int] = TaskiqResult(
        is_err=error is not None,
        return_value=1,
        execution_time=0.1,
        error=error,
    )

    pickle.dumps(result)

    assert result.error is error


def test_unpickling_sets_no_further_fields() -> None:
    result = TaskiqResult(is_err=False, return_value=1, execution_time=0.1)

    back = pickle.loads(pickle.dumps(result))  # noqa: S301 - just dumped

    assert back == result
    assert back.model_fields_set == {"is_err", "return_value", "execution_time"}


def test_a_pickled_exit_does_not_end_its_reader() -> None:
    result = failed(SystemExit(3))

    back = pickle.loads(pickle.dumps(result))  # noqa: S301 - just dumped

    assert repr(result.error) == "SystemExit(3)"
    assert repr(back.error) == repr(Exception("<class 'SystemExit'>((3,))"))


def test_a_wrapper_left_in_a_pickled_result_is_restored() -> None:
    result = failed(ValueError())
    result.error = Wrapper(__name__, "TwoPartError", ("5: x",))
    state = {**pydantic.BaseModel.__getstate__(result)}
    back: TaskiqResult[None] = TaskiqResult.__new__(TaskiqResult)

    back.__setstate__(state)

    assert type(back.error) is TwoPartError


def test_a_wrapper_given_as_error_is_restored() -> None:
    wrapper = Wrapper(__name__, "TwoPartError", ("5: x",))

    assert type(failed(wrapper).error) is TwoPartError


def test_an_error_of_another_type_is_a_validation_error() -> None:
    with pytest.raises(pydantic.ValidationError, match="error"):
        failed("x")  # type: ignore[arg-type]


def test_a_forged_error_type_is_a_security_error() -> None:
    data = failed(ValueError("x")).model_dump()
    data["error"].update(exc_type="system", exc_module="os")

    with pytest.raises(SecurityError, match=r"os\.system"):
        TaskiqResult.model_validate(data)


def test_raise_for_error_raises_the_very_error() -> None:
    error = KeyError("x")

    with pytest.raises(KeyError) as caught:
        failed(error).raise_for_error()

    assert caught.value is error


def test_raise_for_error_returns_the_result_when_there_is_no_error() -> None:
    result = TaskiqResult(is_err=True, return_value=1, execution_time=0.1)

    assert result.raise_for_error() is result


def test_a_result_stored_by_0_13_0_is_read() -> None:
    stored = json.dumps(
        {
            "is_err": True,
            "log": None,
            "return_value": None,
            "execution_time": 0.01,
            "labels": {"a": "b"},
            "error": {
                "exc_type": "NoResultError",
                "exc_message": ["User doesn't want to set result"],
                "exc_module": "taskiq.exceptions",
                "exc_cause": None,
                "exc_context": None,
                "exc_suppress_context": False,
            },
        },
    )

    result: TaskiqResult[Any] = TaskiqResult.model_validate(json.loads(stored))

    assert type(result.error) is NoResultError
    assert str(result.error) == "User doesn't want to set result"
    assert result.labels == {"a": "b"}


def test_a_schema_of_what_is_dumped_can_be_made() -> None:
    schema = TaskiqResult[int].model_json_schema(mode="serialization")

    assert schema["properties"]["return_value"]["type"] == "integer"
