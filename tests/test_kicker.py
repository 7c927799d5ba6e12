"""Sending a task: arguments, labels, ids, middlewares, schedules, and the bytes."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import subprocess
from contextlib import contextmanager
from datetime import date, datetime, timedelta, timezone
from threading import Lock
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from taskiq import (
    BrokerMessage,
    InMemoryBroker,
    TaskiqFormatter,
    TaskiqMessage,
    TaskiqMiddleware,
)
from taskiq.exceptions import (
    SendTaskError,
    UnknownTaskError,
    UnsendableArgumentError,
    UnsendableBytesError,
)
from taskiq.formatters.json_formatter import JSONFormatter
from taskiq.kicker import AsyncKicker
from taskiq.scheduler.created_schedule import CreatedSchedule
from taskiq.scheduler.scheduled_task import CronSpec
from taskiq.serializers import PickleSerializer
from tests.support import wire
from tests.support.brokers import QueueBroker
from tests.support.environments import EnvironmentNotMadeError, released_python
from tests.support.recorders import RecordingBackend, RecordingSource
from tests.support.wire import Case, Colour, Document, Point

if TYPE_CHECKING:
    from collections.abc import Generator


class Described:
    """A class of an application, which the hints of a task name."""

    def __init__(self, name: str) -> None:
        self.name = name


_P = ParamSpec("_P")
_R = TypeVar("_R")

AnyKicker = AsyncKicker[..., Any]


class CountingIds:
    """Gives the ids "1", "2" and so on."""

    def __init__(self) -> None:
        self.drawn = 0

    def __call__(self) -> str:
        self.drawn += 1
        return str(self.drawn)


@pytest.fixture
def ids() -> CountingIds:
    return CountingIds()


@pytest.fixture
def broker(ids: CountingIds) -> QueueBroker:
    return QueueBroker().with_id_generator(ids)


@pytest.fixture
def kicker(broker: QueueBroker) -> AnyKicker:
    return AsyncKicker("name", broker, {})


def loaded(broker: QueueBroker) -> TaskiqMessage:
    """Take out the one message that was sent, as a worker reads it."""
    [message] = broker.take_all()
    return broker.formatter.loads(message.message)


# -- What is sent ------------------------------------------------------------------


async def test_a_message_has_the_name_a_new_id_and_the_arguments(
    kicker: AnyKicker,
    broker: QueueBroker,
) -> None:
    await kicker.kiq(1, "two", three=[3])

    [message] = broker.take_all()
    assert (message.task_id, message.task_name, message.labels) == ("1", "name", {})
    assert broker.formatter.loads(message.message) == TaskiqMessage(
        task_id="1",
        task_name="name",
        labels={},
        labels_types={},
        args=[1, "two"],
        kwargs={"three": [3]},
    )


async def test_labels_are_sent_as_text_with_the_code_of_their_type(
    broker: QueueBroker,
) -> None:
    values = {"i": 3, "s": "x", "f": 0.5, "b": True, "y": b"\x00\xff", "other": None}

    await AsyncKicker("name", broker, values).kiq()

    [sent] = broker.take_all()
    message = broker.formatter.loads(sent.message)
    assert sent.labels == message.labels
    assert sent.labels is not values
    assert message.labels == {
        "i": "3",
        "s": "x",
        "f": "0.5",
        "b": "True",
        "y": "AP8=",
        "other": "None",
    }
    assert message.labels_types == {"i": 2, "s": 3, "f": 4, "b": 5, "y": 6, "other": 1}
    message.parse_labels()
    assert message.labels == {**values, "other": "None"}


async def test_the_exceptions_to_retry_on_are_never_sent(broker: QueueBroker) -> None:
    labels = {"types_of_exceptions": (ValueError,), "max_retries": 3}

    await AsyncKicker("name", broker, labels).kiq()

    message = loaded(broker)
    assert message.labels == {"max_retries": "3"}
    assert message.labels_types == {"max_retries": 2}
    assert labels["types_of_exceptions"] == (ValueError,)


async def test_a_task_nobody_registered_can_be_sent(
    kicker: AnyKicker,
    broker: QueueBroker,
) -> None:
    assert broker.find_task("name") is None
    await kicker.kiq()
    assert len(broker.take_all()) == 1


async def test_what_is_sent_can_be_read_in_the_debug_log(
    kicker: AnyKicker,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "taskiq")

    await kicker.kiq(1, b="two")

    [record] = [each for each in caplog.records if each.name == "taskiq"]
    assert record.levelno == logging.DEBUG
    assert "name" in record.message
    assert "(1,)" in record.message
    assert "{'b': 'two'}" in record.message


# -- Preparing arguments -----------------------------------------------------------


@dataclasses.dataclass
class Outer:
    """Holds what has to be turned at its top level and below."""

    point: Point
    day: date


class Day(BaseModel):
    """Has a field that is no JSON."""

    day: date


DAY = date(2030, 1, 2)


def test_a_model_becomes_json_data() -> None:
    assert AsyncKicker._prepare_arg(Day(day=DAY)) == {"day": "2030-01-02"}


def test_a_dataclass_becomes_a_dict_whose_values_stay_objects() -> None:
    prepared = AsyncKicker._prepare_arg(Outer(Point(1, 2), DAY))
    assert prepared == {"point": {"x": 1, "y": 2}, "day": DAY}


@pytest.mark.parametrize(
    "value",
    [None, 1, "x", [Day(day=DAY)], {"point": Point(1, 2)}, DAY, Colour.RED, object()],
)
def test_anything_else_is_passed_through_and_not_looked_into(value: Any) -> None:
    assert AsyncKicker._prepare_arg(value) is value


async def test_positional_and_keyword_arguments_are_prepared(
    kicker: AnyKicker,
    broker: QueueBroker,
) -> None:
    await kicker.kiq(Day(day=DAY), Outer(Point(1, 2), DAY), inside=[Point(3, DAY)])

    message = loaded(broker)
    assert message.args == [
        {"day": "2030-01-02"},
        {"point": {"x": 1, "y": 2}, "day": "2030-01-02"},
    ]
    assert message.kwargs == {"inside": [{"x": 3, "y": "2030-01-02"}]}


async def test_a_dataclass_type_is_no_argument(
    kicker: AnyKicker,
    broker: QueueBroker,
) -> None:
    with pytest.raises(
        ValueError,
        match=r"Cannot serialize types\. The <class '.*Point'> is not serializable\.",
    ):
        await kicker.kiq(Point)
    assert broker.take_all() == []


async def test_a_model_type_cannot_be_sent(kicker: AnyKicker) -> None:
    with pytest.raises(SendTaskError):
        await kicker.kiq(Day)


class CarefulKicker(AsyncKicker[..., Any]):
    """Prepares arguments in its own way."""

    @classmethod
    def _prepare_arg(cls, arg: Any) -> Any:
        return f"prepared {arg}"


async def test_a_subclass_may_prepare_arguments(broker: QueueBroker) -> None:
    await CarefulKicker("name", broker, {}).kiq(1, b=2)
    message = loaded(broker)
    assert (message.args, message.kwargs) == (["prepared 1"], {"b": "prepared 2"})


# -- What a kicker can be told -----------------------------------------------------


def test_a_new_kicker_keeps_what_it_is_made_of(broker: QueueBroker) -> None:
    labels = {"a": 1}

    kicker: AnyKicker = AsyncKicker("name", broker, labels, int)

    assert kicker.task_name == "name"
    assert kicker.broker is broker
    assert kicker.labels is labels
    assert kicker.return_type is int
    assert kicker.custom_task_id is None
    assert kicker.custom_schedule_id is None
    assert AsyncKicker(task_name="name", broker=broker, labels={}).return_type is None


def test_every_setting_returns_the_same_kicker(
    kicker: AnyKicker,
    broker: QueueBroker,
) -> None:
    assert kicker.with_labels(a=1) is kicker
    assert kicker.with_task_id("id") is kicker
    assert kicker.with_schedule_id("id") is kicker
    assert kicker.with_broker(broker) is kicker


def test_labels_are_added_to_the_given_dict(broker: QueueBroker) -> None:
    labels: dict[str, Any] = {"a": 1, "b": 1}

    AsyncKicker("name", broker, labels).with_labels(b=2).with_labels(c=3)

    assert labels == {"a": 1, "b": 2, "c": 3}


async def test_an_own_id_is_used_until_it_is_reset(
    kicker: AnyKicker,
    broker: QueueBroker,
    ids: CountingIds,
) -> None:
    handle = await kicker.with_task_id("own").kiq()
    assert (handle.task_id, loaded(broker).task_id, ids.drawn) == ("own", "own", 0)

    handle = await kicker.with_task_id(None).kiq()
    assert (handle.task_id, loaded(broker).task_id, ids.drawn) == ("1", "1", 1)

    await kicker.kiq()
    assert loaded(broker).task_id == "2"


async def test_an_empty_id_is_an_id(kicker: AnyKicker, broker: QueueBroker) -> None:
    assert (await kicker.with_task_id("").kiq()).task_id == ""
    assert loaded(broker).task_id == ""


class NotingMiddleware(TaskiqMiddleware):
    """Notes what it sees, and adds its name to a label; sync or async."""

    def __init__(self, name: str, journal: list[str]) -> None:
        super().__init__()
        self.name = name
        self.journal = journal

    def pre_send(self, message: TaskiqMessage) -> TaskiqMessage:
        self.journal.append(f"{self.name} before")
        seen_by = f"{message.labels.get('seen_by', '')}{self.name}"
        return message.model_copy(update={"labels": {"seen_by": seen_by}})

    async def post_send(self, message: TaskiqMessage) -> None:
        self.journal.append(f"{self.name} after, {message.labels['seen_by']}")


class AsyncNotingMiddleware(NotingMiddleware):
    """Has the other half of its hooks async."""

    async def pre_send(self, message: TaskiqMessage) -> TaskiqMessage:  # type: ignore[override] # hooks are sync or async
        return super().pre_send(message)

    def post_send(self, message: TaskiqMessage) -> None:  # type: ignore[override] # hooks are sync or async
        self.journal.append(f"{self.name} after, {message.labels['seen_by']}")


async def test_another_broker_brings_all_that_is_its_own(kicker: AnyKicker) -> None:
    journal: list[str] = []
    other = (
        QueueBroker()
        .with_id_generator(lambda: "other id")
        .with_formatter(JSONFormatter())
        .with_middlewares(NotingMiddleware("m", journal))
        .with_result_backend(RecordingBackend())
    )

    handle = await kicker.with_broker(other).kiq()

    [sent] = other.take_all()
    assert sent.message.startswith(b'{"task_id":"other id",')
    assert journal == ["m before", "m after, m"]
    assert handle.result_backend is other.result_backend


async def test_the_handle_knows_id_result_backend_and_return_type(
    broker: QueueBroker,
) -> None:
    handle = await AsyncKicker("name", broker, {}, int).kiq()

    assert handle.task_id == "1"
    assert handle.result_backend is broker.result_backend
    assert handle.return_type is int


# -- Middlewares and errors --------------------------------------------------------


async def test_pre_send_runs_in_order_and_post_send_in_reverse(
    kicker: AnyKicker,
    broker: QueueBroker,
) -> None:
    journal: list[str] = []
    broker.add_middlewares(
        NotingMiddleware("a", journal),
        TaskiqMiddleware(),
        AsyncNotingMiddleware("b", journal),
        NotingMiddleware("c", journal),
    )

    await kicker.kiq()

    assert journal == [
        "a before",
        "b before",
        "c before",
        "c after, abc",
        "b after, abc",
        "a after, abc",
    ]
    assert loaded(broker).labels == {"seen_by": "abc"}


class RenamingMiddleware(TaskiqMiddleware):
    """Sends another message under another id."""

    def pre_send(self, message: TaskiqMessage) -> TaskiqMessage:
        return message.model_copy(update={"task_id": "renamed"})


async def test_the_handle_has_the_id_of_the_message_that_was_sent(
    kicker: AnyKicker,
    broker: QueueBroker,
) -> None:
    broker.add_middlewares(RenamingMiddleware())
    assert (await kicker.kiq()).task_id == "renamed"
    assert loaded(broker).task_id == "renamed"


class FailingMiddleware(TaskiqMiddleware):
    """Fails in one of its hooks."""

    def __init__(self, failing: str) -> None:
        super().__init__()
        self.failing = failing

    def pre_send(self, message: TaskiqMessage) -> TaskiqMessage:
        if self.failing == "pre_send":
            raise LookupError("pre_send fails")
        return message

    def post_send(self, message: TaskiqMessage) -> None:
        if self.failing == "post_send":
            raise LookupError("post_send fails")


@pytest.mark.parametrize(("hook", "sent"), [("pre_send", 0), ("post_send", 1)])
async def test_an_error_of_a_hook_propagates_as_it_is(
    hook: str,
    sent: int,
    kicker: AnyKicker,
    broker: QueueBroker,
) -> None:
    broker.add_middlewares(FailingMiddleware(hook))

    with pytest.raises(LookupError, match=f"{hook} fails"):
        await kicker.kiq()
    assert len(broker.take_all()) == sent


class ForgetfulMiddleware(TaskiqMiddleware):
    """Forgets to return the message."""

    def pre_send(self, message: TaskiqMessage) -> TaskiqMessage:
        return None  # type: ignore[return-value] # the mistake


async def test_a_pre_send_that_returns_nothing_is_named_in_the_error(
    kicker: AnyKicker,
    broker: QueueBroker,
) -> None:
    journal: list[str] = []
    broker.add_middlewares(ForgetfulMiddleware(), NotingMiddleware("next", journal))

    with pytest.raises(SendTaskError) as caught:
        await kicker.kiq()

    assert "pre_send of ForgetfulMiddleware returned None" in str(
        caught.value.__cause__,
    )
    assert journal == []
    assert broker.take_all() == []


class FailingBroker(QueueBroker):
    """Cannot send."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    async def kick(self, message: BrokerMessage) -> None:
        raise self.error


@pytest.mark.parametrize(
    "error",
    [ConnectionError("gone"), UnknownTaskError(task_name="name"), SendTaskError()],
)
async def test_an_error_of_the_broker_is_the_cause_of_a_send_error(
    error: Exception,
) -> None:
    journal: list[str] = []
    broker = FailingBroker(error).with_middlewares(NotingMiddleware("m", journal))

    with pytest.raises(SendTaskError) as caught:
        await AsyncKicker("name", broker, {}).kiq()

    assert type(caught.value) is SendTaskError
    assert caught.value.__cause__ is error
    assert journal == ["m before"]


@pytest.mark.parametrize("many", [False, True])
async def test_a_broker_of_text_names_itself_where_bytes_are_none(many: bool) -> None:
    """As a table of PostgreSQL, for all serializers but those of text."""

    class TextBroker(QueueBroker):
        async def kick(self, message: BrokerMessage) -> None:
            message.message.decode()

    broker = TextBroker().with_serializer(PickleSerializer())
    task: AnyKicker = AsyncKicker("name", broker, {})
    with pytest.raises(SendTaskError) as caught:
        await (task.kiq_many([1]) if many else task.kiq(1))
    error = caught.value.errors[0] if many else caught.value  # type: ignore[attr-defined]
    assert isinstance(error, UnsendableBytesError)
    assert "name: TextBroker sends text, and the message is none. Give" in str(error)
    assert isinstance(error.__cause__, UnicodeDecodeError)


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize(
    ("label", "cause", "named"),
    [
        (
            "a\ud800",
            ValueError("no text"),
            "labels['tenant'] is of type str with a lone",
        ),
        (
            "a\0b",
            ValueError("no text"),
            "which cannot be serialised: FailingBroker: no t",
        ),
        ("fine", ValueError("no text"), "Cannot send task to the queue"),
        ("a\ud800", ConnectionError("away"), "Cannot send task to the queue"),
    ],
)
async def test_a_text_that_the_broker_does_not_take_is_named(
    many: bool, label: str, cause: Exception, named: str
) -> None:
    """Not where the server is away, whatever is in the message."""
    task: AnyKicker = AsyncKicker("name", FailingBroker(cause), {"tenant": label})
    with pytest.raises(SendTaskError) as caught:
        await (task.kiq_many([1]) if many else task.kiq(1))
    error = caught.value.errors[0] if many else caught.value  # type: ignore[attr-defined]
    assert named in str(error)
    assert error.__cause__ is cause


@pytest.mark.parametrize("many", [False, True])
async def test_an_id_that_no_result_can_be_stored_under_is_refused(many: bool) -> None:
    broker = QueueBroker()
    broker.id_generator = lambda: "file-\udcff"
    task: AnyKicker = AsyncKicker("name", broker, {})
    with pytest.raises(SendTaskError) as caught:
        await (task.kiq_many([1]) if many else task.kiq(1))
    text = r"task_id is of type str with a lone surrogate or a NUL, which cannot be"
    assert text in str(caught.value.errors[0] if many else caught.value)  # type: ignore[attr-defined]
    assert broker.take_all() == []


@dataclasses.dataclass
class Row:
    """An argument with something in it that cannot be copied or written."""

    handle: object


class Table(BaseModel):
    """A model with something in it that cannot be written."""

    handle: Any


@pytest.mark.parametrize(
    ("args", "kwargs", "labels", "path", "kind"),
    [
        ((object(),), {}, {}, "args[0]", "object"),
        ((1, [b"\xff"]), {}, {}, "args[1][0]", "bytes"),
        ((1,), {"rows": [{"a": Lock()}]}, {}, 'kwargs["rows"][0]["a"]', "_thread.lock"),
        ((Row(Lock()),), {}, {}, "args[0].handle", "_thread.lock"),
        ((Table(handle=Lock()),), {}, {}, "args[0].handle", "_thread.lock"),
        ((int,), {}, {}, "args[0]", "the class int"),
    ],
)
@pytest.mark.parametrize("is_compact", [False, True])
async def test_an_argument_that_cannot_be_serialised_is_named_with_its_type(
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    labels: dict[str, Any],
    path: str,
    kind: str,
    is_compact: bool,
    kicker: AnyKicker,
    broker: QueueBroker,
) -> None:
    if is_compact:
        broker.with_formatter(JSONFormatter())
    with pytest.raises(UnsendableArgumentError) as caught:
        await kicker.kiq(*args, **kwargs)
    error = caught.value
    assert isinstance(error, SendTaskError)
    assert (error.task_name, error.path, error.kind) == ("name", path, kind)
    assert f"Cannot send task name: {path} is of type {kind}, which" in str(error)
    assert error.reason in str(error)
    assert isinstance(error.__cause__, (TypeError, ValueError))
    assert broker.take_all() == []


async def test_a_proxy_of_nothing_is_an_argument_that_cannot_be_serialised(
    kicker: AnyKicker,
) -> None:
    class Proxy:
        def __getattribute__(self, name: str) -> Any:
            raise RuntimeError("there is no request")

    with pytest.raises(UnsendableArgumentError, match=r"args\[0\] is of type .*Proxy"):
        await kicker.kiq(Proxy())


async def test_a_label_of_a_hook_that_cannot_be_serialised_is_named(
    kicker: AnyKicker,
    broker: QueueBroker,
) -> None:
    class LabellingMiddleware(TaskiqMiddleware):
        def pre_send(self, message: TaskiqMessage) -> TaskiqMessage:
            message.labels["lock"] = Lock()
            return message

    broker.add_middlewares(LabellingMiddleware())
    with pytest.raises(UnsendableArgumentError, match=r'labels\["lock"\] is of type'):
        await kicker.kiq(1)


async def test_a_formatter_that_fails_for_every_message_is_the_cause() -> None:
    class BrokenFormatter(JSONFormatter):
        def dumps(self, message: TaskiqMessage) -> BrokerMessage:
            if message.args:
                return super().dumps(message)
            raise LookupError("no schema")

    broker = QueueBroker().with_formatter(BrokenFormatter())
    with pytest.raises(SendTaskError) as caught:
        await AsyncKicker("name", broker, {}).kiq()
    assert type(caught.value) is SendTaskError
    assert repr(caught.value.__cause__) == "LookupError('no schema')"


async def test_own_objects_reach_the_task_through_pickle() -> None:
    broker = InMemoryBroker().with_serializer(PickleSerializer())

    @broker.task
    async def name_of(described: Described, raw: bytes) -> str:
        return f"{described.name} {raw!r}"

    handle = await name_of.kiq(Described("own"), b"\xff")

    assert (await handle.wait_result()).return_value == r"own b'\xff'"


class FailureNotingMiddleware(TaskiqMiddleware):
    """Notes what was not sent, and fails at it if it is told to."""

    def __init__(self, name: str, journal: list[str], *, fails: bool = False) -> None:
        super().__init__()
        self.name = name
        self.journal = journal
        self.fails = fails

    def pre_send(self, message: TaskiqMessage) -> TaskiqMessage:
        return message.model_copy(update={"task_id": f"{message.task_id} {self.name}"})

    async def on_send_error(
        self,
        message: TaskiqMessage,
        exception: BaseException,
    ) -> None:
        name = type(exception).__name__
        self.journal.append(f"{self.name}: {message.task_id}: {name}")
        if self.fails:
            raise LookupError("hook")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ConnectionError("gone"), SendTaskError),
        (asyncio.CancelledError("stop"), asyncio.CancelledError),
    ],
)
async def test_middlewares_are_told_of_what_was_not_sent_in_reverse(
    error: BaseException,
    told: type[BaseException],
) -> None:
    journal: list[str] = []
    broker = FailingBroker(error).with_middlewares(
        FailureNotingMiddleware("a", journal),
        FailureNotingMiddleware("b", journal, fails=True),
    )

    with pytest.raises(told):
        await AsyncKicker("name", broker, {}).with_task_id("id").kiq()

    assert journal == [f"{name}: id a b: {told.__name__}" for name in "ba"]


async def test_middlewares_are_told_of_what_could_not_be_dumped_or_was_refused() -> (
    None
):
    class RefusingMiddleware(TaskiqMiddleware):
        def pre_send(self, message: TaskiqMessage) -> TaskiqMessage:
            if not message.args:
                raise PermissionError
            return message

    journal: list[str] = []
    broker = QueueBroker().with_middlewares(
        FailureNotingMiddleware("a", journal),
        RefusingMiddleware(),
    )
    kicker: AnyKicker = AsyncKicker("name", broker, {}).with_task_id("id")

    with pytest.raises(PermissionError):
        await kicker.kiq()
    with pytest.raises(UnsendableArgumentError):
        await kicker.kiq(object())
    await kicker.kiq(1)

    assert journal == ["a: id a: PermissionError", "a: id a: UnsendableArgumentError"]


async def test_a_post_send_hook_that_fails_is_no_failed_sending() -> None:
    class TellingMiddleware(TaskiqMiddleware):
        def post_send(self, message: TaskiqMessage) -> None:
            raise PermissionError

    journal: list[str] = []
    broker = QueueBroker().with_middlewares(
        FailureNotingMiddleware("a", journal),
        TellingMiddleware(),
    )
    with pytest.raises(PermissionError):
        await AsyncKicker("name", broker, {}).kiq()
    assert journal == []


@pytest.mark.parametrize(
    "error",
    [asyncio.CancelledError("stop"), KeyboardInterrupt("stop"), SystemExit("stop")],
)
async def test_what_ends_the_program_or_the_task_is_not_wrapped(
    error: BaseException,
) -> None:
    with pytest.raises(type(error), match="stop"):
        await AsyncKicker("name", FailingBroker(error), {}).kiq()


# -- Schedules ---------------------------------------------------------------------

NOON = datetime(2030, 1, 1, 12, tzinfo=timezone.utc)


async def test_a_cron_schedule_is_stored_with_its_text(kicker: AnyKicker) -> None:
    source = RecordingSource()

    created = await kicker.schedule_by_cron(source, "0 12 * * *", 1, b=2)

    assert type(created) is CreatedSchedule
    assert created.kicker is kicker
    assert created.source is source
    assert source.schedules == [created.task]
    assert created.task.model_dump(exclude={"schedule_id"}) == {
        "task_name": "name",
        "labels": {},
        "args": [1],
        "kwargs": {"b": 2},
        "task_id": None,
        "cron": "0 12 * * *",
        "cron_offset": None,
        "time": None,
        "interval": None,
    }


@pytest.mark.parametrize("offset", [None, "US/Eastern", timedelta(hours=2)])
async def test_a_cron_spec_is_stored_with_its_text_and_offset(
    offset: str | timedelta | None,
    kicker: AnyKicker,
) -> None:
    spec = CronSpec(minutes=0, hours="*/2", offset=offset)

    created = await kicker.schedule_by_cron(RecordingSource(), spec)

    assert created.task.cron == "0 */2 * * *"
    assert created.task.cron_offset == offset


async def test_cron_text_is_not_checked_here(kicker: AnyKicker) -> None:
    created = await kicker.schedule_by_cron(RecordingSource(), "no cron")
    assert created.task.cron == "no cron"


@pytest.mark.parametrize("interval", [1, 3600, timedelta(minutes=5)])
async def test_an_interval_is_stored_as_it_was_given(
    interval: int | timedelta,
    kicker: AnyKicker,
) -> None:
    created = await kicker.schedule_by_interval(RecordingSource(), interval)
    assert created.task.interval == interval
    assert created.task.cron is None


@pytest.mark.parametrize("interval", [0, -1, timedelta(seconds=1.5)])
async def test_a_bad_interval_is_refused_before_the_source_is_touched(
    interval: int | timedelta,
    kicker: AnyKicker,
) -> None:
    source = RecordingSource()
    with pytest.raises(ValidationError, match="nterval"):
        await kicker.schedule_by_interval(source, interval)
    assert source.schedules == []


async def test_a_moment_is_stored(kicker: AnyKicker) -> None:
    created = await kicker.schedule_by_time(RecordingSource(), NOON)
    assert created.task.time == NOON


async def test_a_schedule_stores_prepared_arguments_and_labels_as_text(
    broker: QueueBroker,
) -> None:
    labels = {"priority": 1, "raw": b"\x00", "types_of_exceptions": (ValueError,)}
    kicker: AnyKicker = AsyncKicker("name", broker, labels)

    created = await kicker.schedule_by_interval(
        RecordingSource(),
        1,
        Day(day=DAY),
        point=Point(1, 2),
    )

    assert created.task.labels == {"priority": "1", "raw": "AA=="}
    assert created.task.args == [{"day": "2030-01-02"}]
    assert created.task.kwargs == {"point": {"x": 1, "y": 2}}


async def test_scheduling_sends_nothing_and_runs_no_middleware(
    kicker: AnyKicker,
    broker: QueueBroker,
) -> None:
    journal: list[str] = []
    broker.add_middlewares(NotingMiddleware("m", journal))

    await kicker.schedule_by_time(RecordingSource(), NOON)

    assert journal == []
    assert broker.take_all() == []


async def test_a_schedule_draws_one_id_its_own(
    kicker: AnyKicker,
    ids: CountingIds,
) -> None:
    created = await kicker.schedule_by_interval(RecordingSource(), 1)

    assert created.schedule_id == created.task.schedule_id == "1"
    assert created.task.task_id is None
    assert ids.drawn == 1
    assert kicker.custom_task_id is None


async def test_custom_ids_are_stored_and_none_is_drawn(
    kicker: AnyKicker,
    ids: CountingIds,
) -> None:
    kicker.with_task_id("task").with_schedule_id("schedule")

    created = await kicker.schedule_by_interval(RecordingSource(), 1)

    assert (created.task.task_id, created.schedule_id) == ("task", "schedule")
    assert ids.drawn == 0


async def test_a_created_schedule_sends_its_task_and_can_be_taken_back(
    kicker: AnyKicker,
    broker: QueueBroker,
) -> None:
    source = RecordingSource()
    created = await kicker.with_labels(a=1).schedule_by_interval(source, 1, 2, b=3)

    await created.kiq()
    message = loaded(broker)
    assert (message.args, message.kwargs, message.labels) == ([2], {"b": 3}, {"a": "1"})

    await created.unschedule()
    assert source.schedules == []


# -- Kickers, formatters and brokers of others -------------------------------------


@dataclasses.dataclass
class Envelope:
    """What a broker around another one is given instead of a `BrokerMessage`."""

    body: Any
    labels: dict[str, Any]


class EnvelopeFormatter(TaskiqFormatter):
    """Dumps to something of its own."""

    def dumps(self, message: TaskiqMessage) -> BrokerMessage:
        labels = message.labels.copy()
        return Envelope(labels.pop("message"), labels)  # type: ignore[return-value] # as taskiq-faststream does

    def loads(self, message: bytes) -> TaskiqMessage:
        raise NotImplementedError


class RawLabelsKicker(AsyncKicker[_P, _R]):
    """Hands raw label objects to the formatter."""

    def _prepare_message(self, *args: Any, **kwargs: Any) -> TaskiqMessage:
        message = super()._prepare_message(*args, **kwargs)
        message.labels = self.labels
        return message


async def test_a_formatter_may_dump_to_anything_its_broker_takes(
    broker: QueueBroker,
) -> None:
    broker.with_formatter(EnvelopeFormatter())
    labels = {"message": print, "types_of_exceptions": (ValueError,), "n": 1}

    await RawLabelsKicker("name", broker, labels).kiq()

    sent: list[Any] = list(broker.take_all())
    [envelope] = sent
    assert envelope == Envelope(print, {"types_of_exceptions": (ValueError,), "n": 1})
    assert "message" in labels


async def test_labels_of_an_own_message_are_stored_with_the_schedule(
    broker: QueueBroker,
) -> None:
    kicker: RawLabelsKicker[..., Any] = RawLabelsKicker("name", broker, {"message": 1})
    created = await kicker.schedule_by_interval(RecordingSource(), 1)
    assert created.task.labels == {"message": 1}


class IdReadingKicker(AsyncKicker[..., Any]):
    """Puts the id of its message into a label."""

    def _prepare_message(self, *args: Any, **kwargs: Any) -> TaskiqMessage:
        message = super()._prepare_message(*args, **kwargs)
        message.labels["id"] = message.task_id
        return message


async def test_the_message_of_a_schedule_has_the_custom_id(
    broker: QueueBroker,
) -> None:
    kicker = IdReadingKicker("name", broker, {}).with_task_id("own")
    created = await kicker.schedule_by_interval(RecordingSource(), 1)
    assert created.task.labels == {"id": "own"}


def test_a_message_can_be_prepared_without_being_sent(kicker: AnyKicker) -> None:
    message = kicker.with_labels(a=1)._prepare_message()

    assert (message.task_name, message.labels) == ("name", {"a": "1"})
    assert (message.args, message.kwargs) == ([], {})


async def test_bytes_and_numbers_in_labels_arrive_as_what_they_were(
    kicker: AnyKicker,
    broker: QueueBroker,
) -> None:
    plan: Any = b'[{"step": 1}]\x00\xff'

    await kicker.with_labels(_pipe_current_step=0, _pipe_data=plan).kiq()

    message = loaded(broker)
    message.parse_labels()
    assert message.labels == {"_pipe_current_step": 0, "_pipe_data": plan}


async def test_a_broker_is_whatever_has_what_sending_needs() -> None:
    kicked: list[BrokerMessage] = []

    async def kick(message: BrokerMessage) -> None:
        kicked.append(message)

    journal: list[str] = []
    broker: Any = SimpleNamespace(
        middlewares=[NotingMiddleware("m", journal)],
        formatter=JSONFormatter(),
        id_generator=lambda: "id",
        kick=kick,
        result_backend=object(),
    )

    kicker: AnyKicker = AsyncKicker("name", broker, {})
    handle = await kicker.kiq(1)

    assert (handle.task_id, handle.result_backend) == ("id", broker.result_backend)
    assert [message.task_name for message in kicked] == ["name"]
    assert journal == ["m before", "m after, m"]


# -- The bytes ---------------------------------------------------------------------

BEGIN = b'{"task_id": "id", "task_name": "pkg.mod:func", '

#: What is sent, and the bytes after the names that taskiq 0.13.0 makes of it.
BYTES: list[tuple[dict[str, Any], tuple[Any, ...], dict[str, Any], bytes]] = [
    ({}, (), {}, b'"labels": {}, "labels_types": {}, "args": [], "kwargs": {}}'),
    (
        {},
        (1, "a", 2.5, True, None),
        {"k": [1, {"a": 2}]},
        b'"labels": {}, "labels_types": {}, '
        b'"args": [1, "a", 2.5, true, null], "kwargs": {"k": [1, {"a": 2}]}}',
    ),
    (
        {
            "i": 3,
            "s": "text",
            "f": 0.5,
            "b": True,
            "y": b"\x00\xff",
            "n": None,
            "e": Colour.RED,
            "l": [1, 2],
            "types_of_exceptions": 1,
        },
        (),
        {},
        b'"labels": {"i": "3", "s": "text", "f": "0.5", "b": "True", "y": "AP8=", '
        b'"n": "None", "e": "Colour.RED", "l": "[1, 2]"}, '
        b'"labels_types": {"i": 2, "s": 3, "f": 4, "b": 5, "y": 6, '
        b'"n": 1, "e": 1, "l": 1}, "args": [], "kwargs": {}}',
    ),
    (
        {"ключ": "é"},
        ('naïve \U0001f600 "quoted" \\ \n',),
        {"имя": "ü"},
        rb'"labels": {"\u043a\u043b\u044e\u0447": "\u00e9"}, '
        rb'"labels_types": {"\u043a\u043b\u044e\u0447": 3}, '
        rb'"args": ["na\u00efve \ud83d\ude00 \"quoted\" \\ \n"], '
        rb'"kwargs": {"\u0438\u043c\u044f": "\u00fc"}}',
    ),
    (
        {},
        (Point(1, DAY), Document(title="title", body=UUID(int=1)), [Point(1, 2)]),
        {},
        b'"labels": {}, "labels_types": {}, "args": [{"x": 1, "y": "2030-01-02"}, '
        b'{"title": "title", "body": "00000000-0000-0000-0000-000000000001"}, '
        b'[{"x": 1, "y": 2}]], "kwargs": {}}',
    ),
    (
        {},
        (
            (1, 2),
            {3},
            {1: "int key"},
            b"abc",
            NOON,
            timedelta(seconds=90.5),
            Colour.RED,
        ),
        {},
        b'"labels": {}, "labels_types": {}, "args": [[1, 2], [3], {"1": "int key"}, '
        b'"abc", "2030-01-01T12:00:00Z", "PT1M30.5S", "red"], "kwargs": {}}',
    ),
]


@pytest.mark.parametrize(("labels", "args", "kwargs", "expected"), BYTES)
async def test_messages_are_the_bytes_that_every_version_reads(
    labels: dict[str, Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    expected: bytes,
    broker: QueueBroker,
) -> None:
    kicker: AnyKicker = AsyncKicker("pkg.mod:func", broker, labels)

    await kicker.with_task_id("id").kiq(*args, **kwargs)

    [sent] = broker.take_all()
    assert sent.message == BEGIN + expected


class ReleasedTaskiq:
    """Another interpreter with the released taskiq, asked line by line."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.version = self._answer()

    def outcome_of(self, case: Case) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(case) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())


@contextmanager
def released_taskiq(python: str) -> Generator[ReleasedTaskiq]:
    # Isolated: it must not find the taskiq beside these tests.
    with subprocess.Popen(  # noqa: S603 - our own command
        [python, "-I", wire.__file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        encoding="utf-8",
    ) as process:
        yield ReleasedTaskiq(process)


@pytest.fixture(scope="module")
def released() -> Generator[ReleasedTaskiq]:
    try:
        python = released_python()
    except EnvironmentNotMadeError as error:
        pytest.skip(f"there is no released taskiq to compare with: {error}")
    with released_taskiq(str(python)) as released:
        assert released.version == "0.13.0"
        yield released


def described(kind: str, content: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Draw what `wire.value_of` makes a value of that kind from."""
    return st.tuples(st.just(kind), content).map(list)


scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.text(st.characters(), max_size=5)
)
leaves = (
    scalars
    | described("bytes", st.binary(max_size=4).map(bytes.hex))
    | described("datetime", st.datetimes(timezones=st.timezones()).map(str))
    | described("date", st.dates().map(str))
    | described("timedelta", st.integers(-(10**6), 10**6))
    | described("uuid", st.uuids().map(str))
    | described("decimal", st.decimals(allow_nan=False).map(str))
    | described("set", st.lists(st.integers(0, 9), max_size=3, unique=True))
    | described("level", st.sampled_from([1, 2]))
    | described("colour", st.just("red"))
)
# The text of a class has its module, which is another one in the other interpreter.
classes = described("type", st.sampled_from(["point", "document", "object"]))


def nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Draw what holds other values."""
    pairs = st.tuples(scalars, inner).map(list)
    return (
        described("list", st.lists(inner, max_size=3))
        | described("tuple", st.lists(inner, max_size=3))
        | described("dict", st.lists(pairs, max_size=3))
        | described("point", st.tuples(inner, inner).map(list))
        | described("document", inner)
    )


labels = st.recursive(leaves, nested, max_leaves=4)
arguments = st.recursive(leaves | classes, nested, max_leaves=4)
names = st.text(st.characters(), max_size=5)
cases = st.fixed_dictionaries(
    {
        "task_name": names,
        "task_id": names,
        "labels": st.dictionaries(names | st.just("types_of_exceptions"), labels),
        "args": st.lists(arguments, max_size=3),
        "kwargs": st.dictionaries(names.filter(lambda n: n != "self"), arguments),
        "json_formatter": st.booleans(),
    },
)


@given(case=cases)
def test_messages_are_byte_for_byte_those_of_the_released_version(
    case: Case,
    released: ReleasedTaskiq,
) -> None:
    assert asyncio.run(wire.outcome_of(case)) == released.outcome_of(case)
