"""Where in a value the part stands that cannot be serialised."""

from __future__ import annotations

import dataclasses
import json
from typing import Any, NamedTuple

import pytest
from pydantic import BaseModel, TypeAdapter

from taskiq.faults import find_fault, kind_of, largest_part, reason_of

BAD = object()


class Model(BaseModel):
    rows: Any


@dataclasses.dataclass
class Row:
    number: int
    handle: Any


class UnshowableError(Exception):
    def __str__(self) -> str:
        raise LookupError


class Pair(NamedTuple):
    left: Any
    right: Any


def dump(value: Any) -> object:
    return json.dumps(TypeAdapter[Any](Any).dump_python(value, mode="json"))


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (BAD, "value"),
        ([1, BAD], "value[1]"),
        ((1, (BAD,)), "value[1][0]"),
        ({"rows": [0, 1, 2, Row(1, BAD)]}, 'value["rows"][3].handle'),
        ({2: {"a": BAD}}, 'value[2]["a"]'),
        ({'"': BAD}, r'value["\""]'),
        (Model(rows={"a": BAD}), 'value.rows["a"]'),
        (Pair(1, BAD), "value[1]"),
        ({BAD: 1}, f"value (the key {BAD!r})"),
    ],
    ids=lambda given: str(given).replace(repr(BAD), "BAD"),
)
def test_the_path_is_what_one_would_write_in_python(value: object, path: str) -> None:
    fault = find_fault(value, "value", dump)

    assert fault is not None
    assert (fault.path, fault.kind) == (path, "object")
    assert "unknown type" in str(fault.error)


def test_what_can_be_dumped_has_no_fault() -> None:
    assert find_fault({"a": [Row(1, Model(rows=None))]}, "value", dump) is None


def test_the_first_of_several_faults_is_told() -> None:
    fault = find_fault([0, [1, BAD], BAD], "value", dump)

    assert fault is not None
    assert fault.path == "value[1][1]"


def test_what_contains_itself_is_the_fault() -> None:
    circle: list[Any] = [1]
    circle.append({"again": circle})

    fault = find_fault(circle, "value", dump)

    assert fault is not None
    assert (fault.path, fault.kind) == ("value[1]", "dict")
    assert "Circular" in str(fault.error)


def test_a_long_path_and_a_long_key_are_cut() -> None:
    value: Any = {"k" * 1000: BAD}
    for _ in range(100):
        value = [value]

    fault = find_fault(value, "value", dump)

    assert fault is not None
    assert "[...]" in fault.path
    assert fault.path.endswith('kkk..."]')
    assert len(fault.path) < 150


def test_an_error_that_is_long_has_lines_or_cannot_be_written_is_put_into_a_line() -> (
    None
):
    assert reason_of(ValueError("a\n  b\tc")) == "a b c"
    assert reason_of(ValueError("\ud800")) == r"\ud800"
    assert reason_of(ValueError("x" * 1000)) == "x" * 200 + "..."
    assert reason_of(ValueError()) == "ValueError"
    assert reason_of(UnshowableError()) == "UnshowableError"


def test_a_class_given_by_mistake_is_named() -> None:
    assert kind_of(Row) == f"the class {__name__}.Row"
    assert kind_of(b"") == "bytes"


@pytest.mark.parametrize(
    ("value", "path", "kind"),
    [
        ("x" * 1000, "value", "str"),
        ({"a": [1, b"x" * 1000]}, 'value["a"][1]', "bytes"),
        ([Row(1, "x" * 1000)], "value[0].handle", "str"),
        ({"a": ["x" * 10] * 100, "b": 1}, 'value["a"]', "list"),
        ([], "value", "list"),
    ],
)
def test_what_is_too_large_is_the_innermost_part_with_most_of_it(
    value: object,
    path: str,
    kind: str,
) -> None:
    assert largest_part(value, "value") == (path, kind)


def test_the_largest_part_of_what_contains_itself_is_found() -> None:
    circle: list[Any] = ["x" * 1000]
    circle.append(circle)

    assert largest_part(circle, "value") == ("value[0]", "str")
