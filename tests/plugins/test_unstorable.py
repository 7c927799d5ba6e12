"""Results that real servers refuse, and what is stored there instead."""

from __future__ import annotations

import asyncio
import uuid
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from redis.asyncio import Redis
from taskiq_nats import NATSObjectStoreResultBackend
from taskiq_pg.asyncpg import AsyncpgResultBackend
from taskiq_redis import RedisAsyncResultBackend

from taskiq.exceptions import UnsendableArgumentError, UnstorableResultError
from taskiq.kicker import AsyncKicker
from taskiq.message import BrokerMessage
from taskiq.receiver import Receiver
from taskiq.result import TaskiqResult
from taskiq.serializers import (
    CBORSerializer,
    JSONSerializer,
    MSGPackSerializer,
    ORJSONSerializer,
    PickleSerializer,
)
from taskiq.unstorable import storable_instead
from tests.support.hub import HANG

from .lines import LINES
from .servers import NATS, POSTGRES, REDIS, Server, jetstream, postgres, sql_name
from .test_conformance import LEASE, short

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from taskiq.abc.result_backend import AsyncResultBackend
    from taskiq.abc.serializer import TaskiqSerializer

BACKENDS: dict[str, tuple[Server, Callable[..., AsyncResultBackend[Any]]]] = {
    "redis": (
        REDIS,
        lambda name, serializer: RedisAsyncResultBackend(
            REDIS.url,
            prefix_str=name,
            serializer=serializer,
        ),
    ),
    "nats": (
        NATS,
        lambda name, serializer: NATSObjectStoreResultBackend(
            NATS.url,
            bucket_name=name,
            serializer=serializer,
        ),
    ),
    "postgres": (
        POSTGRES,
        lambda name, serializer: AsyncpgResultBackend(
            POSTGRES.url,
            table_name=sql_name(name),
            serializer=serializer,
        ),
    ),
}
SERIALIZERS = [
    JSONSerializer,
    ORJSONSerializer,
    MSGPackSerializer,
    CBORSerializer,
    PickleSerializer,
]


def named(server: Server) -> Iterator[str]:
    """Give a name for what is made on a server, and remove all that has it."""
    if reason := server.unavailable():
        pytest.skip(reason)
    name = f"taskiq-unstorable-{uuid.uuid4().hex}"
    yield name
    server.remove(name)


@pytest.fixture(params=BACKENDS)
def make_backend(
    request: pytest.FixtureRequest,
) -> Iterator[Callable[[TaskiqSerializer], AsyncResultBackend[Any]]]:
    server, make = BACKENDS[request.param]
    for name in named(server):
        yield partial(make, name)


@pytest.fixture
def redis_name() -> Iterator[str]:
    yield from named(REDIS)


@pytest.fixture
def nats_name() -> Iterator[str]:
    yield from named(NATS)


@pytest.fixture
def postgres_name() -> Iterator[str]:
    yield from named(POSTGRES)


def returned(value: Any, **labels: Any) -> TaskiqResult[Any]:
    return TaskiqResult(
        is_err=False,
        return_value=value,
        execution_time=1,
        labels=labels,
    )


@pytest.mark.parametrize("make_serializer", SERIALIZERS)
async def test_what_cannot_be_stored_is_named_in_the_error_that_is(
    make_serializer: type[TaskiqSerializer],
    make_backend: Callable[[TaskiqSerializer], AsyncResultBackend[Any]],
) -> None:
    backend = make_backend(make_serializer())
    await backend.startup()
    result = returned({"rows": [1, lambda: None]}, number=3, raw=b"\xff")

    with pytest.raises(ValueError, match=r"serialize|utf-8") as refused:
        await backend.set_result("id", result)
    instead = storable_instead(result, refused.value, backend)
    assert instead is not None
    await backend.set_result("id", instead)
    read = await backend.get_result("id")
    await backend.shutdown()

    assert isinstance(read.error, UnstorableResultError)
    assert read.error.path == 'return_value["rows"][1]'
    assert read.error.kind == "function"
    assert read.labels == {"number": 3, "raw": "/w=="}


async def test_a_string_over_the_limit_of_redis_is_named(redis_name: str) -> None:
    """At an offset of its limit already one byte is too many."""
    result = returned({"small": 1, "text": "x" * 100})
    async with Redis.from_url(REDIS.url) as redis:
        with pytest.raises(Exception, match="maximum allowed size") as refused:
            await redis.setrange(redis_name, 2**40, "x")

    assert_refused(result, refused.value, 'return_value["text"]')


async def test_a_payload_over_the_limit_of_nats_is_named(nats_name: str) -> None:
    result = returned({"small": 1, "text": "x" * 2_000_000})
    async with jetstream(NATS.url) as context:
        bucket = await context.create_key_value(bucket=nats_name)
        with pytest.raises(Exception, match="maximum payload") as refused:
            await bucket.put("id", result.model_dump_json().encode())

    assert_refused(result, refused.value, 'return_value["text"]')


async def test_a_text_that_postgres_does_not_take_is_named(postgres_name: str) -> None:
    del postgres_name  # only says whether there is a server
    async with postgres(POSTGRES.url) as connection:
        with pytest.raises(Exception, match="0x00") as refused:
            await connection.fetchval("SELECT $1::text", "a\0b")

    assert_refused(returned("a\0b"), refused.value, "return_value")


async def test_a_server_that_is_away_is_no_reason_to_give_up_the_value() -> None:
    backend: Any = RedisAsyncResultBackend("redis://127.0.0.1:1")
    result = returned("value")

    with pytest.raises(Exception, match="onnect") as failed:
        await backend.set_result("id", result)

    assert storable_instead(result, failed.value, backend) is None


def assert_refused(
    result: TaskiqResult[Any],
    refusal: BaseException,
    path: str,
) -> None:
    backend: Any = object()  # it does not say how it writes results
    instead = storable_instead(result, refusal, backend)
    assert instead is not None
    assert isinstance(instead.error, UnstorableResultError)
    assert (instead.error.path, instead.error.kind) == (path, "str")
    assert " ".join(str(refusal).split()) in instead.error.reason


# -- Texts that servers do not take, as ids and names --------------------------------

#: Such as the name of a file that is no text.
ODD = "a\ud800"

#: Which of id, task, label and name of a label a broker refuses. An id is, always: no
#: result could be stored under it.
REFUSED = {
    "redis-stream": ["id"],
    "adapted-redis-stream": ["id"],
    "adapted-redis-list": ["id"],
    "rabbitmq": ["id", "task", "label", "name"],
    "jetstream-pull": ["id", "label", "name"],
    "adapted-jetstream-pull": ["id", "label", "name"],
    "nats": ["id", "label", "name"],
    "postgres": ["id", "task", "label", "name"],
    "adapted-postgres": ["id", "task", "label", "name"],
}


@pytest.fixture
def line_name(line: str) -> Iterator[str]:
    yield from named(LINES[line].server)


async def path_of_refusal(kicker: Any) -> str | None:
    try:
        await kicker.kiq()
    except UnsendableArgumentError as exc:
        return exc.path
    return None


@pytest.mark.parametrize("line", REFUSED)
async def test_a_text_that_cannot_be_sent_is_named(line: str, line_name: str) -> None:
    sender = LINES[line].sender(line_name)
    await sender.startup()
    kickers: dict[str, Any] = {
        "id": AsyncKicker("t", sender, {}).with_task_id(ODD),
        "task": AsyncKicker(ODD, sender, {}),
        "label": AsyncKicker("t", sender, {"tenant": ODD}),
        "name": AsyncKicker("t", sender, {ODD: "x"}),
    }
    found = {part: await path_of_refusal(kicker) for part, kicker in kickers.items()}
    await sender.shutdown()
    paths = {
        "id": "task_id",
        "task": "task_name",
        "label": "labels['tenant']",
        "name": r"the name of labels['a\ud800']",
    }
    refused = REFUSED[line]
    assert found == {part: paths[part] if part in refused else None for part in paths}


@asynccontextmanager
async def working(
    line: str, name: str, options: Any, ran: list[Any]
) -> AsyncIterator[None]:
    broker = short(LINES[line].make(name))
    broker.is_worker_process = True

    async def note(numbers: list[Any]) -> list[Any]:
        ran.append(numbers)
        return numbers

    broker.register_task(note, "t", **options)
    finish = asyncio.Event()
    listening = asyncio.create_task(Receiver(broker).listen(finish))
    await asyncio.sleep(1)
    yield
    finish.set()
    await listening
    await broker.shutdown()


@pytest.mark.parametrize("odd", [ODD, "a\0b"])
@pytest.mark.parametrize("options", [{}, {"batch": True, "batch_timeout": 0.2}])
@pytest.mark.parametrize(
    "line", ["adapted-redis-stream", "rabbitmq", "jetstream-pull", "adapted-postgres"]
)
async def test_a_message_whose_result_cannot_be_stored_for_its_id_ends(
    line: str, line_name: str, options: dict[str, Any], odd: str
) -> None:
    """It came from another sender. It runs once, and its neighbours have results."""
    ran: list[Any] = []
    async with working(line, line_name, options, ran):
        sender = short(LINES[line].sender(line_name))
        await sender.startup()
        kicker: Any = AsyncKicker("t", sender, {})
        message = kicker._prepare_message([2])
        message.task_id = odd
        data = sender.formatter.dumps(message).message
        sent = BrokerMessage(task_id="id", task_name="t", message=data, labels={})
        await sender.kick(sent)
        handle = await kicker.kiq([1])
        assert not (await handle.wait_result(timeout=HANG)).is_err
        await asyncio.sleep(LEASE + 1)  # it would come again
        await sender.shutdown()
    assert str(ran).count("2") == 1
