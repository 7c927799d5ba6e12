"""What is stored in the place of a result that cannot be stored."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import pickle
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pytest

from taskiq.abc.result_backend import AsyncResultBackend
from taskiq.abc.serializer import TaskiqSerializer
from taskiq.brokers.inmemory_broker import InmemoryResultBackend
from taskiq.exceptions import ResultSetError, UnstorableResultError
from taskiq.result import TaskiqResult
from taskiq.serializers import (
    CBORSerializer,
    JSONSerializer,
    MSGPackSerializer,
    ORJSONSerializer,
    PickleSerializer,
)
from taskiq.unstorable import storable_instead

if TYPE_CHECKING:
    from collections.abc import Callable

SERIALIZERS = [
    JSONSerializer,
    ORJSONSerializer,
    MSGPackSerializer,
    CBORSerializer,
    PickleSerializer,
]


class ProxyOfNothing:
    """Stands for an object that is there only while a request is served."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError("there is no request")


class ClosedShelf(Mapping[str, int]):
    """A mapping whose items can no longer be read."""

    def __getitem__(self, key: str) -> int:
        raise ValueError("invalid operation on closed shelf")

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[str]:
        raise ValueError("invalid operation on closed shelf")


class SerializingBackend(AsyncResultBackend[Any]):
    """Stores what its serializer makes of a result, as backends of plugins do."""

    def __init__(self, serializer: TaskiqSerializer) -> None:
        self.serializer = serializer
        self.stored: dict[str, bytes] = {}

    async def set_result(self, task_id: str, result: TaskiqResult[Any]) -> None:
        self.stored[task_id] = self.serializer.dumpb(result.model_dump(mode="json"))

    async def is_result_ready(self, task_id: str) -> bool:
        return task_id in self.stored

    async def get_result(
        self,
        task_id: str,
        with_logs: bool = False,
    ) -> TaskiqResult[Any]:
        return TaskiqResult.model_validate(self.serializer.loadb(self.stored[task_id]))


class WritingBackend(InmemoryResultBackend[Any]):
    """Writes results in a way of its own, or fails to."""

    def __init__(self, write: Callable[[TaskiqResult[Any]], object]) -> None:
        super().__init__()
        self.write = write

    async def set_result(self, task_id: str, result: TaskiqResult[Any]) -> None:
        self.write(result)
        await super().set_result(task_id, result)


class MaxPayloadError(Exception):
    """Named like the one of a library that is not installed."""


@dataclasses.dataclass
class Row:
    number: int
    handle: Any


def returned(value: Any, **labels: Any) -> TaskiqResult[Any]:
    return TaskiqResult(
        is_err=False,
        return_value=value,
        execution_time=1.5,
        labels=labels,
    )


def failed(error: BaseException) -> TaskiqResult[Any]:
    return TaskiqResult(is_err=True, return_value=None, execution_time=1, error=error)


async def stored_of(
    backend: AsyncResultBackend[Any],
    result: TaskiqResult[Any],
) -> TaskiqResult[Any]:
    """Store a result, or what is to be stored instead, and read it back."""
    before = result.model_copy()
    try:
        await backend.set_result("id", result)
    except Exception as failure:  # noqa: BLE001 - a backend may raise anything
        instead = storable_instead(result, failure, backend)
        assert instead is not None
        assert result.__dict__ == before.__dict__
        await backend.set_result("id", instead)
    return await backend.get_result("id")


def unstorable(result: TaskiqResult[Any]) -> UnstorableResultError:
    assert result.is_err
    assert result.return_value is None
    assert isinstance(result.error, UnstorableResultError)
    return result.error


@pytest.mark.parametrize("make_serializer", SERIALIZERS)
async def test_the_error_names_the_type_and_the_path_of_what_was_refused(
    make_serializer: type[TaskiqSerializer],
) -> None:
    backend = SerializingBackend(make_serializer())
    value = {"rows": [0, 1, 2, Row(3, slice(1))]}

    result = await stored_of(backend, returned(value, number=5))

    error = unstorable(result)
    assert (error.path, error.kind) == ('return_value["rows"][3].handle', "slice")
    assert 'return_value["rows"][3].handle is of type slice: ' in str(error)
    assert isinstance(error, ResultSetError)
    assert (result.labels, result.execution_time) == ({"number": 5}, 1.5)


@pytest.mark.parametrize(
    ("make_serializer", "value", "path", "kind"),
    [
        *((each, lambda: None, "return_value", "function") for each in SERIALIZERS),
        *((each, [b"\xff"], "return_value[0]", "bytes") for each in SERIALIZERS),
        (ORJSONSerializer, [2**80], "return_value[0]", "int"),
        (MSGPackSerializer, [2**80], "return_value[0]", "int"),
        (ORJSONSerializer, {"a": "\ud800"}, 'return_value["a"]', "str"),
        (MSGPackSerializer, {"a": "\ud800"}, 'return_value["a"]', "str"),
        (CBORSerializer, {"a": "\ud800"}, 'return_value["a"]', "str"),
    ],
)
async def test_what_one_serializer_refuses_is_named(
    make_serializer: type[TaskiqSerializer],
    value: Any,
    path: str,
    kind: str,
) -> None:
    backend = SerializingBackend(make_serializer())

    error = unstorable(await stored_of(backend, returned(value)))

    assert (error.path, error.kind) == (path, kind)


@pytest.mark.parametrize("make_serializer", SERIALIZERS)
@pytest.mark.parametrize("make_value", [ProxyOfNothing, ClosedShelf])
async def test_what_raises_when_it_is_looked_into_is_named_itself(
    make_serializer: type[TaskiqSerializer],
    make_value: Callable[[], object],
) -> None:
    backend = SerializingBackend(make_serializer())

    error = unstorable(await stored_of(backend, returned([make_value()])))

    kind = f"{__name__}.{make_value.__name__}"
    assert (error.path, error.kind) == ("return_value[0]", kind)


@pytest.mark.parametrize("mode", ["w", "r"])
async def test_an_open_file_is_refused_or_stored_as_its_lines(
    mode: str,
    tmp_path: Any,
) -> None:
    """Pydantic reads what can be read, so only a file to be written is refused."""
    path = tmp_path / "file"
    path.write_text("a line\n")
    with path.open(mode) as file:
        result = await stored_of(SerializingBackend(JSONSerializer()), returned(file))

    if mode == "r":
        assert result.return_value == ["a line\n"]
    else:
        assert unstorable(result).kind == "_io.TextIOWrapper"


@pytest.mark.parametrize("make_serializer", SERIALIZERS)
async def test_labels_that_cannot_be_stored_become_text_and_the_value_stays(
    make_serializer: type[TaskiqSerializer],
) -> None:
    backend = SerializingBackend(make_serializer())

    result = await stored_of(backend, returned(5, raw=b"\xff", number=3))

    assert (result.return_value, result.is_err) == (5, False)
    assert result.labels == {"raw": "/w==", "number": 3}


async def test_labels_become_text_beside_a_value_that_is_refused() -> None:
    backend = SerializingBackend(JSONSerializer())

    result = await stored_of(backend, returned(b"\xff", raw=b"\xff"))

    assert unstorable(result).path == "return_value"
    assert result.labels == {"raw": "/w=="}


@pytest.mark.parametrize(
    "make_serializer", [ORJSONSerializer, MSGPackSerializer, CBORSerializer]
)
async def test_an_error_that_cannot_be_stored_is_told_in_the_one_that_is(
    make_serializer: type[TaskiqSerializer],
) -> None:
    error = KeyError("outer")
    error.__cause__ = ValueError("fine", "\ud800")

    result = await stored_of(SerializingBackend(make_serializer()), failed(error))

    told = unstorable(result)
    assert (told.path, told.kind) == ("error.exc_cause.exc_message[1]", "str")
    assert told.reason.endswith("; the task failed with KeyError: 'outer'")


# -- Backends without a serializer to ask ------------------------------------------


@pytest.mark.parametrize(
    ("write", "value", "path"),
    [
        (
            lambda result: json.dumps(result.return_value, allow_nan=False),
            {"a": [1, math.nan]},
            'return_value["a"][1]',
        ),
        (pickle.dumps, {"a": [1, lambda: None]}, 'return_value["a"][1]'),
        (TaskiqResult.model_dump_json, {"a": [1, slice(1)]}, 'return_value["a"][1]'),
        (lambda result: 1 << result.return_value["a"], {"a": -1}, "return_value"),
    ],
)
async def test_a_backend_of_its_own_making_is_understood_by_its_error(
    write: Callable[[TaskiqResult[Any]], object],
    value: Any,
    path: str,
) -> None:
    def write_values(result: TaskiqResult[Any]) -> object:
        return None if result.is_err else write(result)

    error = unstorable(await stored_of(WritingBackend(write_values), returned(value)))

    assert error.path == path


async def test_memory_takes_everything() -> None:
    value = slice(1)

    result = await stored_of(InmemoryResultBackend[Any](), returned(value))

    assert result.return_value is value


# -- What happens behind the serializer --------------------------------------------


def refusing(error: Exception, cause: Exception | None = None) -> WritingBackend:
    def write(result: TaskiqResult[Any]) -> None:
        if not result.is_err:
            raise error from cause

    return WritingBackend(write)


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (MaxPayloadError("too large"), None),
        (ResultSetError(), MaxPayloadError("too large")),
        (RuntimeError("ERR string exceeds maximum allowed size: too large"), None),
    ],
)
async def test_what_is_too_large_is_named(
    error: Exception,
    cause: Exception | None,
) -> None:
    value = {"rows": [1, "x" * 100], "small": "x"}

    told = unstorable(await stored_of(refusing(error, cause), returned(value)))

    assert (told.path, told.kind) == ('return_value["rows"][1]', "str")
    assert "too large" in told.reason


class DataError(Exception):
    """Named like those of libraries for databases."""


async def test_what_a_database_refuses_is_named_as_a_whole() -> None:
    refusal = DataError("no such character")

    told = unstorable(await stored_of(refusing(refusal), returned({"a": "x"})))

    assert (told.path, told.kind) == ("return_value", "dict")
    assert told.reason == "no such character"


@pytest.mark.parametrize(
    "failure",
    [
        ConnectionError("gone"),
        TimeoutError(),
        OSError("disk"),
        io.UnsupportedOperation("a ValueError, too"),
        RuntimeError("OOM command not allowed"),
        ResultSetError(),
        KeyboardInterrupt(),
    ],
)
def test_a_failure_that_is_not_about_the_value_leaves_the_result_alone(
    failure: BaseException,
) -> None:
    backend = SerializingBackend(JSONSerializer())
    assert storable_instead(returned([1]), failure, backend) is None
    assert storable_instead(returned([1]), failure, WritingBackend(repr)) is None


def test_more_than_redis_takes_is_too_large_though_it_only_hangs_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("taskiq.unstorable._MOST_BYTES", 1000)
    backend = SerializingBackend(JSONSerializer())
    gone = ConnectionError("Connection reset by peer")

    assert storable_instead(returned("x" * 500), gone, backend) is None
    instead = storable_instead(returned(["x" * 1000]), gone, backend)

    assert instead is not None
    told = unstorable(instead)
    assert told.path == "return_value[0]"
    assert told.reason.endswith("bytes are too many: Connection reset by peer")
