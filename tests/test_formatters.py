import dataclasses
import enum
import math
import threading
from collections.abc import Callable
from contextlib import nullcontext
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from taskiq import InMemoryBroker
from taskiq.abc.formatter import TaskiqFormatter
from taskiq.abc.serializer import TaskiqSerializer
from taskiq.formatters.json_formatter import JSONFormatter
from taskiq.formatters.proxy_formatter import ProxyFormatter
from taskiq.message import TaskiqMessage
from taskiq.serializers import (
    CBORSerializer,
    JSONSerializer,
    MSGPackSerializer,
    ORJSONSerializer,
    PickleSerializer,
)


class Colour(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Point:
    x: int


class Model(BaseModel):
    day: date


def proxy(serializer: TaskiqSerializer) -> ProxyFormatter:
    """A formatter of a broker that has nothing but a serializer."""
    return ProxyFormatter(SimpleNamespace(serializer=serializer))


def message(
    *args: Any,
    labels: dict[str, Any] | None = None,
    labels_types: dict[str, int] | None = None,
    **kwargs: Any,
) -> TaskiqMessage:
    return TaskiqMessage(
        task_id="id",
        task_name="pkg.mod:func",
        labels=labels if labels is not None else {},
        labels_types=labels_types,
        args=list(args),
        kwargs=kwargs,
    )


FORMATTERS: list[Callable[[], TaskiqFormatter]] = [
    JSONFormatter,
    lambda: proxy(JSONSerializer()),
    lambda: proxy(ORJSONSerializer()),
    lambda: proxy(MSGPackSerializer()),
    lambda: proxy(CBORSerializer()),
    lambda: proxy(PickleSerializer()),
]

#: What every formatter can carry: JSON within 64-bit integers and finite floats.
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


def test_the_default_wire_format_is_the_one_of_taskiq_0_13() -> None:
    sent = proxy(JSONSerializer()).dumps(
        message(1, a="é", labels={"prio": "3"}, labels_types={"prio": 2}),
    )
    assert sent.message == (
        b'{"task_id": "id", "task_name": "pkg.mod:func", "labels": {"prio": "3"}, '
        b'"labels_types": {"prio": 2}, "args": [1], "kwargs": {"a": "\\u00e9"}}'
    )


def test_the_json_formatter_writes_compact_utf_8() -> None:
    sent = JSONFormatter().dumps(message(1, a="é", labels={"prio": "3"}))
    assert (
        sent.message
        == (
            '{"task_id":"id","task_name":"pkg.mod:func","labels":{"prio":"3"},'
            '"labels_types":null,"args":[1],"kwargs":{"a":"é"}}'
        ).encode()
    )


@pytest.mark.parametrize("make_formatter", FORMATTERS)
def test_a_broker_message_is_addressed_like_its_message(
    make_formatter: Callable[[], TaskiqFormatter],
) -> None:
    original = message(labels={"raw": b"x", "prio": 3})
    sent = make_formatter().dumps(original)
    assert (sent.task_id, sent.task_name) == ("id", "pkg.mod:func")
    assert sent.labels == original.labels
    assert sent.labels is not original.labels


@given(
    index=st.integers(0, len(FORMATTERS) - 1),
    args=st.lists(json_values),
    kwargs=st.dictionaries(st.text(), json_values),
    labels=st.dictionaries(st.text(), json_values),
)
def test_json_values_arrive_as_they_were_sent(
    index: int,
    args: list[Any],
    kwargs: dict[str, Any],
    labels: dict[str, Any],
) -> None:
    formatter = FORMATTERS[index]()
    sent = TaskiqMessage(
        task_id="id",
        task_name="name",
        labels=labels,
        args=args,
        kwargs=kwargs,
    )
    assert formatter.loads(formatter.dumps(sent).message) == sent


@pytest.mark.parametrize("make_formatter", FORMATTERS)
@pytest.mark.parametrize(
    ("value", "arrives_as"),
    [
        ((1, 2), [1, 2]),
        ({1}, [1]),
        ({1: "a"}, {"1": "a"}),
        ({True: 1, None: 2}, {"true": 1, "None": 2}),
        (datetime(2024, 2, 29, 12, tzinfo=timezone.utc), "2024-02-29T12:00:00Z"),
        (date(2024, 2, 29), "2024-02-29"),
        (timedelta(hours=1), "PT1H"),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (Decimal("1.10"), "1.10"),
        (Colour.RED, "red"),
        ("é".encode(), "é"),
        (Point(1), {"x": 1}),
        ([Model(day=date(2024, 2, 29))], [{"day": "2024-02-29"}]),
    ],
)
def test_every_formatter_sends_what_json_can_hold_whatever_its_serializer(
    make_formatter: Callable[[], TaskiqFormatter],
    value: object,
    arrives_as: object,
) -> None:
    formatter = make_formatter()
    sent = formatter.dumps(message(value, key=value)).message
    arrived = formatter.loads(sent)
    assert arrived.args == [arrives_as]
    assert arrived.kwargs == {"key": arrives_as}


@pytest.mark.parametrize("make_formatter", FORMATTERS)
def test_what_no_format_knows_is_refused_when_it_is_sent(
    make_formatter: Callable[[], TaskiqFormatter],
) -> None:
    with pytest.raises(Exception, match=r"[Ss]erializ|encode|pickle"):
        make_formatter().dumps(message(threading.Lock()))


class Own:
    """Something that JSON cannot hold."""

    def __init__(self, name: str = "own") -> None:
        self.name = name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Own) and self.name == other.name

    def __hash__(self) -> int:
        return hash(self.name)


@pytest.mark.parametrize(
    "value",
    [Own(), Point(cast("int", Own())), {"rows": [1, {"own": Own()}]}, {Own(): 1}],
)
def test_a_serializer_is_given_what_only_it_can_write(value: object) -> None:
    formatter = proxy(PickleSerializer())
    arrived = formatter.loads(formatter.dumps(message(value, key=value)).message)
    assert arrived.args == [value]
    assert arrived.kwargs == {"key": value}


def test_the_rest_of_such_a_message_is_what_it_is_without() -> None:
    day, foreign = date(2024, 2, 29), Own()
    formatter = proxy(PickleSerializer())
    shared = [day]
    values = (
        (day, {1: b"text"}),
        {foreign: {day}},
        [foreign, math.nan],
        [shared, shared],
    )

    arrived = formatter.loads(formatter.dumps(message(*values)).message)

    text = "2024-02-29"
    assert arrived.args[0] == [text, {"1": "text"}]
    assert arrived.args[1] == {foreign: [text]}
    assert arrived.args[2] == [foreign, None]
    assert arrived.args[3] == [[text], [text]]


@pytest.mark.parametrize(
    ("serializer", "arrives"),
    [
        (PickleSerializer(), True),
        (MSGPackSerializer(), True),
        (CBORSerializer(), True),
        (JSONSerializer(), False),
        (ORJSONSerializer(), False),
    ],
)
def test_bytes_that_are_no_text_arrive_or_are_refused(
    serializer: TaskiqSerializer,
    arrives: bool,
) -> None:
    formatter = proxy(serializer)
    expectation = nullcontext() if arrives else pytest.raises(TypeError, match="bytes")
    with expectation:
        sent = formatter.dumps(message([b"\xff\x00"], labels={"raw": b"\xff"}))
        arrived = formatter.loads(sent.message)
        assert arrived.args == [[b"\xff\x00"]]
        assert arrived.labels == {"raw": b"\xff"}


def test_the_default_of_a_json_serializer_is_asked_first() -> None:
    serializer = JSONSerializer(default=lambda value: value.hex())
    formatter = proxy(serializer)

    arrived = formatter.loads(formatter.dumps(message(b"\xff", b"text")).message)

    assert arrived.args == ["ff", "text"]


def test_what_contains_itself_is_left_to_the_serializer() -> None:
    circle: list[Any] = [Own()]
    circle.append(circle)

    formatter = proxy(PickleSerializer())
    [[first, inner]] = formatter.loads(formatter.dumps(message(circle)).message).args

    assert first == inner[0] == Own()
    assert inner[1] is inner
    circle.pop(0)
    with pytest.raises(ValueError, match="Circular"):
        proxy(JSONSerializer()).dumps(message(circle))


def test_an_iterator_that_was_read_is_not_sent_as_an_empty_one() -> None:
    with pytest.raises(TypeError, match="generator"):
        proxy(PickleSerializer()).dumps(message((n for n in "ab"), Own()))


def test_a_label_type_code_may_be_text_on_the_wire() -> None:
    arrived = proxy(JSONSerializer()).loads(
        b'{"task_id":"id","task_name":"f","labels":{"prio":"3"},'
        b'"labels_types":{"prio":"2"},"args":[],"kwargs":{}}',
    )
    assert arrived.labels_types == {"prio": 2}
    assert arrived.labels == {"prio": "3"}


@pytest.mark.parametrize("make_formatter", FORMATTERS[:2])
@pytest.mark.parametrize("received", [b"", b"[]", b"{}", b"\xff", b"not json"])
def test_bytes_that_are_no_message_are_refused(
    make_formatter: Callable[[], TaskiqFormatter],
    received: bytes,
) -> None:
    with pytest.raises(ValueError, match=r"JSON|TaskiqMessage|utf-8|Expecting|input"):
        make_formatter().loads(received)


def test_the_proxy_formatter_uses_the_serializer_its_broker_has_now() -> None:
    broker = SimpleNamespace(serializer=JSONSerializer())
    formatter = ProxyFormatter(broker)
    broker.serializer = PickleSerializer()
    sent = formatter.dumps(message(1)).message
    assert PickleSerializer().loadb(sent)["args"] == [1]
    assert formatter.loads(sent) == message(1)


def test_the_json_formatter_reads_only_json_messages() -> None:
    with pytest.raises(ValidationError, match="JSON"):
        JSONFormatter().loads(PickleSerializer().dumpb({}))


def test_a_nan_argument_does_not_break_the_message() -> None:
    formatter = JSONFormatter()
    assert formatter.loads(formatter.dumps(message(math.nan)).message).args == [None]


def test_changing_a_received_message_leaves_the_next_one_as_it_was() -> None:
    broker = InMemoryBroker()
    sent = TaskiqMessage(task_id="1", task_name="t", labels={}, args=[], kwargs={})
    data = broker.formatter.dumps(sent).message
    first, second = broker.formatter.loads(data), broker.formatter.loads(data)
    first.labels = {"changed": True}
    first.args.append(1)
    assert second.labels == {}
    assert second.args == []
    assert first.model_fields_set == second.model_fields_set == set(sent.__dict__)
    assert first.model_copy(deep=True) == first
