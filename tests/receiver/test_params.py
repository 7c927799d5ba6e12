"""How the arguments of a message become what its function asks for."""

# Annotations are wanted at run time here, and some of them are wrong on purpose.
import dataclasses
import datetime as dt
import inspect
import logging
import typing
import uuid
from collections.abc import Callable
from typing import Annotated, Any

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskiq import TaskiqMessage, TaskiqMiddleware, TaskiqResult
from taskiq.receiver import Receiver
from taskiq.receiver.params_parser import cast_for, parse_params
from tests.support.worker import CurrentContext, Worker, complaints


def cast(
    function: Callable[..., Any],
    *args: Any,
    **kwargs: Any,
) -> tuple[list[Any], dict[str, Any]]:
    """Cast arguments by the hints of a function."""
    message = TaskiqMessage(
        task_id="id",
        task_name="named",
        labels={},
        args=list(args),
        kwargs=kwargs,
    )
    hints = typing.get_type_hints(function, include_extras=True)
    parse_params(inspect.signature(function), hints, message)
    return message.args, message.kwargs


@dataclasses.dataclass
class Point:
    x: int
    y: int = 0


class Model(pydantic.BaseModel):
    name: str


class Foreign:
    """Pydantic knows nothing of it."""


# -- Which value belongs to which parameter ----------------------------------------


def test_without_a_signature_nothing_is_cast() -> None:
    message = TaskiqMessage(
        task_id="id",
        task_name="named",
        labels={},
        args=["1"],
        kwargs={"x": "2"},
    )

    parse_params(None, {"x": int}, message)

    assert message.args == ["1"]
    assert message.kwargs == {"x": "2"}


def test_a_message_is_cast_in_place() -> None:
    message = TaskiqMessage(
        task_id="id",
        task_name="named",
        labels={},
        args=["1"],
        kwargs={"y": "2"},
    )
    args, kwargs = message.args, message.kwargs

    def task(x: int, *, y: int) -> None: ...

    parse_params(inspect.signature(task), {"x": int, "y": int}, message)

    assert message.args is args
    assert message.kwargs is kwargs
    assert args == [1]
    assert kwargs == {"y": 2}


def test_each_positional_parameter_takes_one_index_annotated_or_not() -> None:
    def task(  # type: ignore[no-untyped-def] # the rule is about missing annotations
        first: int,
        /,
        second,
        third: int,
        context: CurrentContext,
        fifth: int,
    ) -> None: ...

    args, _ = cast(task, "1", "2", "3", "4", "5")

    assert args[:3] == [1, "2", 3]
    assert args[4] == 5


def test_a_positional_parameter_may_be_sent_by_name() -> None:
    def task(x: int, y: int = 0) -> None: ...

    assert cast(task, "1", y="2") == ([1], {"y": 2})
    assert cast(task, y="2", x="1") == ([], {"x": 1, "y": 2})


def test_a_value_sent_by_name_that_cannot_be_cast_stays_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def task(x: int) -> None: ...

    assert cast(task, x="one") == ([], {"x": "one"})
    [line] = complaints(caplog)
    assert "Can't parse argument x for task named" in line


def test_what_comes_before_variadic_values_is_not_cast_like_them() -> None:
    def task(x, *rest: int) -> None: ...  # type: ignore[no-untyped-def] # the rule

    assert cast(task, "1", "2") == (["1", 2], {})


def test_every_variadic_value_is_cast_to_the_one_annotation() -> None:
    def task(x: int, *rest: float) -> None: ...

    assert cast(task, "1", "2", "3.5") == ([1, 2.0, 3.5], {})


def test_a_parameter_without_an_annotation_takes_anything(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def task(x, *, y) -> None: ...  # type: ignore[no-untyped-def] # the rule

    assert cast(task, "1", y=[2]) == (["1"], {"y": [2]})
    assert complaints(caplog) == []


def test_variadic_values_without_an_annotation_stay_as_they_are() -> None:
    def task(x: int, *rest) -> None: ...  # type: ignore[no-untyped-def] # the rule

    assert cast(task, "1", "2") == ([1, "2"], {})


def test_keyword_only_values_are_cast_and_collected_keywords_are_not() -> None:
    def task(*, x: int, **others: int) -> None: ...

    assert cast(task, x="1", y="2") == ([], {"x": 1, "y": "2"})
    assert cast(task, y="2") == ([], {"y": "2"})


def test_more_arguments_than_parameters_stay_as_they_are() -> None:
    def task(x: int) -> None: ...

    assert cast(task, "1", "2") == ([1, "2"], {})


def test_a_missing_argument_is_not_made_up() -> None:
    def task(x: int, y: int = 3) -> None: ...

    assert cast(task) == ([], {})


def test_none_is_never_cast_and_never_reported(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def task(x: int, *rest: int, y: int, z: Model) -> None: ...

    assert cast(task, None, None, y=None, z=None) == (
        [None, None],
        {"y": None, "z": None},
    )
    assert complaints(caplog) == []


@pytest.mark.parametrize(
    ("annotation", "value", "expected"),
    [
        (int, "11", 11),
        (float, "1.5", 1.5),
        (bool, "true", True),
        (bytes, "text", b"text"),
        (Any, "11", "11"),
        (int | None, "11", 11),
        (list[int], ["1", "2"], [1, 2]),
        (tuple[int, str], ["1", "2"], (1, "2")),
        (Point, {"x": "1"}, Point(1)),
        (Model, {"name": "x"}, Model(name="x")),
        (dt.timedelta, 90, dt.timedelta(seconds=90)),
        (
            dt.datetime,
            "2020-01-02T03:04:05",
            dt.datetime(2020, 1, 2, 3, 4, 5),
        ),
        (uuid.UUID, "12345678" * 4, uuid.UUID("12345678" * 4)),
    ],
    ids=str,
)
def test_a_value_is_cast_as_pydantic_does_in_lax_mode(
    annotation: Any,
    value: Any,
    expected: Any,
) -> None:
    def task(x: Any) -> None: ...

    task.__annotations__["x"] = annotation

    args, _ = cast(task, value)

    assert args == [expected]
    assert type(args[0]) is type(expected)


@given(st.one_of(st.integers(), st.booleans(), st.text(), st.floats(allow_nan=False)))
def test_a_value_that_is_cast_already_stays(value: float | str) -> None:
    def task(x: Any, *, y: Any) -> None: ...

    task.__annotations__.update(x=type(value), y=type(value))

    args, kwargs = cast(task, value, y=value)

    assert args == [value]
    assert kwargs == {"y": value}
    assert type(args[0]) is type(kwargs["y"]) is type(value)


def test_what_is_of_the_right_class_is_checked_where_the_class_asks_for_it() -> None:
    class Strict(pydantic.BaseModel, revalidate_instances="always"):
        number: int

    def task(x: Strict) -> None: ...

    sent: Any = Strict.model_construct(number="1")

    [given], _ = cast(task, sent)
    assert given.number == 1


# -- Values that cannot be cast ----------------------------------------------------


def test_a_value_that_cannot_be_cast_stays_and_the_others_are_cast(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def task(a: int, b: int, *, c: int, d: int) -> None: ...

    given_args = cast(task, "1", "two", c="three", d="4")

    assert given_args == ([1, "two"], {"c": "three", "d": 4})
    positional, keyword = caplog.records
    assert "Can't parse argument 1 for task named" in positional.getMessage()
    assert "Can't parse argument c for task named" in keyword.getMessage()
    for record in caplog.records:
        assert record.levelno == logging.WARNING
        assert record.name == "taskiq.receiver.params_parser"
        assert record.exc_info is not None
        assert "valid integer" in record.getMessage()


def test_the_index_in_a_warning_is_the_position_in_the_message(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def task(a: int, *rest: int) -> None: ...

    cast(task, 1, 2, 3, "four")

    [line] = complaints(caplog)
    assert "Can't parse argument 3 " in line


def test_each_cast_is_told_at_debug_level(caplog: pytest.LogCaptureFixture) -> None:
    def task(a: int, *, b: int) -> None: ...

    with caplog.at_level(logging.DEBUG, "taskiq.receiver.params_parser"):
        cast(task, "1", b="2")

    assert [record.levelname for record in caplog.records] == ["DEBUG", "DEBUG"]


# -- Annotated ---------------------------------------------------------------------


def test_constraints_in_annotated_are_enforced_leniently(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def task(
        age: Annotated[int, pydantic.Field(ge=18)],
        name: Annotated[str, pydantic.StringConstraints(to_upper=True)],
    ) -> None: ...

    assert cast(task, "19", "ann") == ([19, "ANN"], {})
    assert complaints(caplog) == []
    assert cast(task, "17", "ann") == (["17", "ANN"], {})
    [line] = complaints(caplog)
    assert "greater than or equal to 18" in line


def test_metadata_that_cannot_be_hashed_is_no_error() -> None:
    def task(x: Annotated[int, {"unit": "m"}], *, y: Annotated[int, []]) -> None: ...

    assert cast(task, "1", y="2") == ([1], {"y": 2})


async def test_a_task_may_have_metadata_that_cannot_be_hashed() -> None:
    worker = Worker()

    @worker.broker.task
    async def task(x: Annotated[int, {"unit": "m"}]) -> int:
        return x

    result = await worker.deliver(task, "1")

    assert result is not None
    assert result.return_value == 1


def must_be_even(value: int) -> int:
    if value % 2:
        raise TypeError(f"{value} is odd")
    return value


Even = Annotated[int, pydantic.AfterValidator(must_be_even)]


async def test_another_error_of_a_validator_becomes_the_error_of_its_message(
    caplog: pytest.LogCaptureFixture,
) -> None:
    worker = Worker()
    calls: list[int] = []

    @worker.broker.task
    async def halve(number: Even) -> int:
        calls.append(number)
        return number // 2

    odd = await worker.deliver(halve, "3", task_id="odd")
    even = await worker.deliver(halve, "4", task_id="even")

    assert odd is not None
    assert isinstance(odd.error, TypeError)
    assert even is not None
    assert even.return_value == 2
    assert calls == [4]
    assert worker.steps("odd") == [
        "pre_execute",
        "on_error",
        "post_execute",
        "save",
        "post_save",
        "ack",
    ]
    [line] = complaints(caplog)
    assert "halve with ID odd" in line


# -- Classes pydantic knows nothing of ---------------------------------------------


@dataclasses.dataclass
class HoldsForeign:
    """Pydantic can make no schema of it, not even one that checks instances."""

    thing: Foreign


async def test_a_class_foreign_to_pydantic_is_warned_about_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    worker = Worker()

    @worker.broker.task
    async def kind(thing: Foreign, other: Foreign) -> str:
        return type(thing).__name__

    results = [await worker.deliver(kind, {}, {}, task_id=str(n)) for n in range(3)]

    assert [r.return_value for r in results if r is not None] == ["dict"] * 3
    assert [line[:24] for line in complaints(caplog)] == [
        "Can't parse argument 0 f",
        "Can't parse argument 1 f",
    ]


def test_what_pydantic_cannot_build_stays_as_it_is_and_is_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    convert = cast_for("thing", {"thing": HoldsForeign})
    assert convert is not None
    value: dict[str, Any] = {}
    assert convert(value) is value
    assert convert(value) is value
    [line] = complaints(caplog)
    assert "thing" in line
    assert "HoldsForeign" in line


@pytest.mark.parametrize("foreign", [Foreign, HoldsForeign])
async def test_a_class_foreign_to_pydantic_is_looked_at_once(
    foreign: type[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    built: list[Any] = []

    def counting(annotation: Any, **options: Any) -> pydantic.TypeAdapter[Any]:
        built.append(annotation)
        return pydantic.TypeAdapter(annotation, **options)

    monkeypatch.setattr("taskiq.receiver.params_parser.TypeAdapter", counting)
    worker = Worker()

    @worker.broker.task
    async def kind(thing: foreign) -> None: ...  # type: ignore[valid-type] # at run time

    for number in range(3):
        await worker.deliver(kind, {}, task_id=str(number))

    # Once as pydantic would have it, once checked by instance.
    assert built == [foreign, foreign]


async def test_a_class_nothing_can_be_made_of_is_warned_about_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    worker = Worker()

    @worker.broker.task
    async def kind(holder: HoldsForeign, number: int) -> str:
        return f"{type(holder).__name__} {number}"

    results = [await worker.deliver(kind, {}, "1", task_id=str(n)) for n in range(3)]

    assert [r.return_value for r in results if r is not None] == ["dict 1"] * 3
    [line] = complaints(caplog)
    assert "Can't parse argument 0" in line


def test_a_value_of_a_foreign_class_is_no_reason_for_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def task(thing: Foreign, things: list[Foreign]) -> None: ...

    thing = Foreign()

    assert cast(task, thing, [thing]) == ([thing, [thing]], {})
    assert complaints(caplog) == []


async def test_a_wrong_value_of_an_ordinary_type_is_warned_about_every_time(
    caplog: pytest.LogCaptureFixture,
) -> None:
    worker = Worker()

    @worker.broker.task
    async def kind(number: int) -> str:
        return type(number).__name__

    for n in range(3):
        await worker.deliver(kind, "no number", task_id=str(n))

    assert len(complaints(caplog)) == 3


# -- Through the callback ----------------------------------------------------------


async def test_a_function_gets_cast_arguments_and_hooks_see_them_afterwards() -> None:
    seen: list[tuple[str, list[Any]]] = []

    class Watching(TaskiqMiddleware):
        def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
            seen.append(("before", list(message.args)))
            return message

        def post_execute(
            self,
            message: TaskiqMessage,
            result: TaskiqResult[Any],
        ) -> None:
            seen.append(("after", list(message.args)))

    worker = Worker(Watching(), is_recording=False)

    @worker.broker.task
    async def sum_up(point: Point, factor: float = 1) -> float:
        return (point.x + point.y) * factor

    result = await worker.deliver(sum_up, {"x": "1", "y": "2"}, factor="2")

    assert result is not None
    assert result.return_value == 6.0
    assert seen == [
        ("before", [{"x": "1", "y": "2"}]),
        ("after", [Point(1, 2)]),
    ]


async def test_casting_can_be_switched_off(caplog: pytest.LogCaptureFixture) -> None:
    worker = Worker(validate_params=False)

    @worker.broker.task
    async def kind(number: int, thing: Foreign) -> str:
        return f"{type(number).__name__} {type(thing).__name__}"

    result = await worker.deliver(kind, "1", {})

    assert result is not None
    assert result.return_value == "str dict"
    assert complaints(caplog) == []


async def test_the_hints_of_a_task_are_those_of_its_function() -> None:
    worker = Worker()

    @worker.broker.task
    async def task(x: int, y: "Point", z=1) -> None: ...  # type: ignore[no-untyped-def] # the rule

    receiver = Receiver(worker.broker, max_async_tasks=1)

    assert receiver.task_hints[task.task_name]["x"] is int
    assert receiver.task_hints[task.task_name]["y"] is Point
    assert "z" not in receiver.task_hints[task.task_name]
