import enum
from collections.abc import Callable
from datetime import date
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskiq.acks import AcknowledgeType
from taskiq.labels import LabelType, parse_label, prepare_label


class Priority(enum.IntEnum):
    HIGH = 9


class Queue(str, enum.Enum):
    MAIL = "mail"


@given(
    st.one_of(
        st.integers(),
        st.text(),
        st.floats(allow_nan=False),
        st.booleans(),
        st.binary(),
    ),
)
def test_a_label_arrives_as_the_value_and_type_it_was_sent_with(value: Any) -> None:
    arrived = parse_label(*prepare_label(value))
    assert arrived == value
    assert type(arrived) is type(value)


@pytest.mark.parametrize(
    ("value", "prepared"),
    [
        (3, ("3", 2)),
        ("3", ("3", 3)),
        (1.5, ("1.5", 4)),
        (True, ("True", 5)),
        (b"\x00\xff", ("AP8=", 6)),
        (None, ("None", 1)),
        (["a", 1], ("['a', 1]", 1)),
        (date(2024, 2, 29), ("2024-02-29", 1)),
        (bytearray(b"x"), ("bytearray(b'x')", 1)),
    ],
)
def test_labels_travel_as_text_with_the_code_of_their_type(
    value: object,
    prepared: tuple[str, int],
) -> None:
    assert prepare_label(value) == prepared
    assert type(prepare_label(value)[1]) is int


@pytest.mark.parametrize("member", [Priority.HIGH, Queue.MAIL])
def test_a_member_of_a_mixed_enum_travels_as_its_text(member: object) -> None:
    assert prepare_label(member) == (str(member), LabelType.ANY)


@pytest.mark.parametrize("member", list(AcknowledgeType))
def test_an_acknowledge_type_travels_as_the_value_workers_know(
    member: AcknowledgeType,
) -> None:
    assert prepare_label(member) == (member.value, LabelType.STR)


@pytest.mark.parametrize("value", ["3", 3, None, b"x"])
def test_a_label_without_a_type_stays_as_it_is(value: object) -> None:
    assert parse_label(value) is value


@pytest.mark.parametrize(
    ("value", "parsed"),
    [
        ("true", True),
        ("TRUE", True),
        (True, True),
        ("false", False),
        ("1", False),
        ("yes", False),
        ("", False),
    ],
)
def test_a_bool_is_true_only_when_it_says_true(value: object, parsed: bool) -> None:
    assert parse_label(value, LabelType.BOOL) is parsed


def test_an_any_label_stays_as_it_is() -> None:
    assert parse_label("None", LabelType.ANY) == "None"


def test_a_str_label_becomes_text() -> None:
    assert parse_label(3, LabelType.STR) == "3"


@pytest.mark.parametrize("code", [0, 7, -1])
def test_an_unknown_type_code_is_an_error_that_names_the_known_ones(code: int) -> None:
    with pytest.raises(ValueError, match=rf"{code} is not a valid .* 6 \(BYTES\)"):
        parse_label("x", code)


@pytest.mark.parametrize(
    "parse",
    [
        lambda: parse_label("three", LabelType.INT),
        lambda: parse_label("three", LabelType.FLOAT),
        lambda: parse_label("YQ", LabelType.BYTES),
    ],
)
def test_a_label_that_does_not_fit_its_type_is_an_error(
    parse: Callable[[], object],
) -> None:
    with pytest.raises(ValueError, match=r"three|padding"):
        parse()


def test_the_type_codes_are_the_ones_on_the_wire() -> None:
    assert {member.name: member.value for member in LabelType} == {
        "ANY": 1,
        "INT": 2,
        "STR": 3,
        "FLOAT": 4,
        "BOOL": 5,
        "BYTES": 6,
    }
