import copy
import enum
import json
import pickle
import re
import sys
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import cbor2
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskiq.abc.serializer import TaskiqSerializer
from taskiq.serializers import (
    CBORSerializer,
    JSONSerializer,
    MSGPackSerializer,
    ORJSONSerializer,
    PickleSerializer,
)

SERIALIZERS: list[type[TaskiqSerializer]] = [
    CBORSerializer,
    JSONSerializer,
    MSGPackSerializer,
    ORJSONSerializer,
    PickleSerializer,
]

NOON = datetime(2024, 2, 29, 12, tzinfo=timezone.utc)

plain_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


class Opaque:
    """Nothing that a serializer knows."""


def _describe(_: Any) -> Any:
    return "opaque"


def _describe_to_encoder(encoder: Any, _: Any) -> None:
    encoder.encode("opaque")


@given(serializer=st.sampled_from(SERIALIZERS), value=plain_values)
def test_plain_values_survive_a_round_trip(
    serializer: type[TaskiqSerializer],
    value: Any,
) -> None:
    assert serializer().loadb(serializer().dumpb(value)) == value


@pytest.mark.parametrize(
    "serializer",
    [CBORSerializer(), MSGPackSerializer(), PickleSerializer()],
)
def test_aware_datetimes_survive_in_binary_formats(
    serializer: TaskiqSerializer,
) -> None:
    assert serializer.loadb(serializer.dumpb([NOON])) == [NOON]


@pytest.mark.parametrize(
    ("serializer", "arrives_as"),
    [
        (CBORSerializer(), UUID(int=1)),
        (PickleSerializer(), UUID(int=1)),
        (ORJSONSerializer(), str(UUID(int=1))),
    ],
)
def test_uuids_are_accepted_where_the_format_knows_them(
    serializer: TaskiqSerializer,
    arrives_as: object,
) -> None:
    assert serializer.loadb(serializer.dumpb(UUID(int=1))) == arrives_as


@pytest.mark.parametrize(
    "serializer",
    [
        CBORSerializer(default=_describe_to_encoder),
        JSONSerializer(default=_describe),
        MSGPackSerializer(default=_describe),
        ORJSONSerializer(default=_describe),
    ],
)
def test_the_default_option_handles_what_the_format_does_not_know(
    serializer: TaskiqSerializer,
) -> None:
    assert serializer.loadb(serializer.dumpb(Opaque())) == "opaque"


def test_json_is_escaped_unless_told_otherwise() -> None:
    assert JSONSerializer().dumpb({"a": "é", "b": 1}) == b'{"a": "\\u00e9", "b": 1}'
    assert JSONSerializer(ensure_ascii=False).dumpb("é") == '"é"'.encode()


class Text(str):
    """No plain text, but JSON all the same."""


class Level(enum.IntEnum):
    HIGH = 3


json_keys = st.text() | st.integers() | st.booleans() | st.none() | st.floats()
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(categories=None))
    | st.builds(Text, st.text())
    | st.sampled_from(Level),
    lambda inner: (
        st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(json_keys, inner)
    ),
    max_leaves=10,
)


@given(value=json_values)
def test_json_is_what_the_standard_library_writes(value: Any) -> None:
    assert JSONSerializer().dumpb(value) == json.dumps(value).encode()


def _nest(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def _circle() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    "value",
    [Opaque(), {("a", "b"): 1}, {1, 2}, [b"bytes"], _circle(), _nest(100_000)],
    ids=["object", "key", "set", "bytes", "circle", "depth"],
)
def test_what_json_cannot_write_is_the_standard_library_s_error(value: Any) -> None:
    with pytest.raises((TypeError, ValueError, RecursionError)) as expected:
        json.dumps(value)
    with pytest.raises(expected.type, match=re.escape(str(expected.value))):
        JSONSerializer().dumpb(value)


def test_json_is_read_from_bytes_only() -> None:
    with pytest.raises(AttributeError):
        JSONSerializer().loadb("{}")  # type: ignore[arg-type]


def test_orjson_gets_its_options() -> None:
    assert ORJSONSerializer(option=orjson.OPT_SORT_KEYS).dumpb({"b": 1, "a": 2}) == (
        b'{"a":2,"b":1}'
    )


def test_msgpack_gets_its_options() -> None:
    assert MSGPackSerializer(use_single_float=True).dumpb(1.5) == b"\xca?\xc0\x00\x00"
    assert MSGPackSerializer(use_bin_type=False).dumpb(b"a") == b"\xa1a"
    with pytest.raises(TypeError, match="datetime"):
        MSGPackSerializer(datetime=False).dumpb(NOON)


CBOR_DEFAULTS = {
    "datetime_as_timestamp": True,
    "date_as_datetime": True,
    "string_referencing": True,
}


@pytest.mark.parametrize(
    ("value", "option"),
    [
        (NOON, {"datetime_as_timestamp": False}),
        (NOON.date(), {"timezone": timezone(timedelta(hours=1))}),
        ({"bb": 1, "a": 2}, {"canonical": True}),
        (["long text"] * 2, {"string_referencing": False}),
    ],
)
def test_cbor_gets_its_options(value: object, option: dict[str, Any]) -> None:
    written = CBORSerializer(**option).dumpb(value)
    assert written == cbor2.dumps(value, **(CBOR_DEFAULTS | option))
    assert written != CBORSerializer(timezone=timezone.utc).dumpb(value)


def test_cbor_writes_dates_as_datetimes_unless_told_otherwise() -> None:
    day = NOON.date()
    as_date = CBORSerializer(date_as_datetime=False)
    assert as_date.loadb(as_date.dumpb(day)) == day
    as_datetime = CBORSerializer(timezone=timezone.utc)
    assert as_datetime.loadb(as_datetime.dumpb(day)) == NOON.replace(hour=0)


def test_cbor_writes_shared_values_once_when_told_to() -> None:
    shared = ["x" * 100]
    serializer = CBORSerializer(value_sharing=True)
    first, second = serializer.loadb(serializer.dumpb([shared, shared]))
    assert first is second


def test_cbor_hooks_see_what_is_read() -> None:
    data = CBORSerializer().dumpb([cbor2.CBORTag(6000, "a"), {"b": 1}])
    serializer = CBORSerializer(
        tag_hook=lambda *_: "tag",
        object_hook=lambda *_: "object",
    )
    assert serializer.loadb(data) == ["tag", "object"]


def test_constructor_arguments_are_attributes_that_can_be_changed_later() -> None:
    serializer = JSONSerializer()
    serializer.ensure_ascii = False
    assert serializer.dumpb("é") == '"é"'.encode()
    assert vars(PickleSerializer()) == {}


@pytest.mark.parametrize("serializer", SERIALIZERS)
@pytest.mark.parametrize("copied", [copy.deepcopy, pickle.dumps])
def test_a_serializer_can_be_copied_and_pickled(
    serializer: type[TaskiqSerializer],
    copied: Callable[[object], object],
) -> None:
    assert copied(serializer())


@pytest.mark.parametrize(
    ("library", "serializer"),
    [
        ("cbor2", CBORSerializer),
        ("msgpack", MSGPackSerializer),
        ("orjson", ORJSONSerializer),
    ],
)
def test_a_missing_library_is_named_by_the_constructor(
    library: str,
    serializer: type[TaskiqSerializer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=rf"^{library} is not installed"):
        serializer()
