"""Adapters against the plugins they adapt: the same bytes, and what goes wrong."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any, cast

import aio_pika
import asyncpg
import pytest
import taskiq_aio_pika
import taskiq_nats
import taskiq_pg.asyncpg as taskiq_asyncpg
import taskiq_redis
from nats.js.errors import NotFoundError
from redis.asyncio import Redis

from taskiq import (
    AckableMessage,
    AsyncBroker,
    AsyncResultBackend,
    TaskiqEvents,
    TaskiqResult,
    TaskiqState,
)
from taskiq.acks import AckGroup
from taskiq.adapters import nats as adapted_nats
from taskiq.adapters import postgres as adapted_asyncpg
from taskiq.adapters import rabbitmq as adapted_rabbitmq
from taskiq.adapters import redis as adapted_redis
from taskiq.message import BrokerMessage
from taskiq.unique import Claim
from taskiq.utils import maybe_awaitable
from tests.faults.proxy import Proxy
from tests.support.hub import HANG

from . import lines, servers
from .servers import NATS, POSTGRES, RABBITMQ, REDIS, Server, sql_name

# -- What is on the servers -------------------------------------------------------


@asynccontextmanager
async def redis_client() -> AsyncIterator[Any]:
    async with Redis.from_url(REDIS.url) as redis:
        yield redis


async def in_stream(name: str) -> list[Any]:
    async with redis_client() as redis:
        return [fields for _, fields in await redis.xrange(f"{name}-stream")]


async def in_list(name: str) -> list[Any]:
    async with redis_client() as redis:
        return cast("list[Any]", await redis.lrange(f"{name}-list", 0, -1))


async def in_jetstream(name: str) -> list[Any]:
    async with servers.jetstream(NATS.url) as context:
        stored: list[Any] = []
        state = (await context.stream_info(f"{name}-stream")).state
        for number in range(state.first_seq, state.last_seq + 1):
            message = await context.get_msg(f"{name}-stream", number)
            stored.append((message.data, message.headers))
        return stored


async def in_queue(name: str) -> list[Any]:
    """Take what is in a queue of RabbitMQ, all that is said of it included."""
    async with await aio_pika.connect(RABBITMQ.url) as connection:
        queue = await (await connection.channel()).get_queue(f"{name}-queue")
        found: list[Any] = []
        while (each := await queue.get(fail=False, no_ack=True)) is not None:
            found.append((each.body, *said_of(each, name)))
        return found


def said_of(message: Any, name: str) -> tuple[Any, ...]:
    """Give where a message was sent and its properties, but for its own id."""
    properties = message.properties
    assert len(properties.message_id) == 32
    return (
        message.exchange.removeprefix(name),
        message.routing_key.removeprefix(name),
        *(
            getattr(properties, each)
            for each in properties.attributes()
            if each != "message_id"
        ),
    )


async def in_messages_table(name: str) -> list[Any]:
    async with servers.postgres(POSTGRES.url) as connection:
        rows = await connection.fetch(
            "SELECT task_id, task_name, message, labels, status"  # noqa: S608 - ours
            f" FROM {sql_name(name)}_messages ORDER BY id"
        )
        return [tuple(row) for row in rows]


async def redis_result(name: str, task_id: str) -> Any:
    async with redis_client() as redis:
        key = f"{name}:{task_id}"
        return await redis.get(key), await redis.ttl(key) > 0


async def nats_result(name: str, task_id: str) -> Any:
    async with servers.jetstream(NATS.url) as context:
        store = await context.object_store(f"{name}-results")
        try:
            found = await store.get(task_id)
        except NotFoundError:
            return None
        return found.data, found.info.chunks, found.info.options, found.info.digest


async def postgres_result(name: str, task_id: str) -> Any:
    async with servers.postgres(POSTGRES.url) as connection:
        return await connection.fetchrow(
            f"SELECT * FROM {sql_name(name)}_results WHERE task_id = $1",  # noqa: S608
            task_id,
        )


@dataclass(frozen=True)
class Kind:
    """A plugin and its adapter.

    :ivar make: makes a broker of either, with its result backend.
    :ivar sent: gives the messages of a broker as they are on the server.
    :ivar result: gives a result as it is on the server.
    :ivar refused: a message that the server or its client refuses, and why.
    """

    name: str
    plugin: ModuleType
    adapter: ModuleType
    server: Server
    make: Callable[..., AsyncBroker]
    sent: Callable[[str], Awaitable[list[Any]]]
    result: Callable[[str, str], Awaitable[Any]]
    refused: tuple[BrokerMessage, str]

    def __str__(self) -> str:
        return self.name


def message(number: int, data: bytes = b"", **labels: Any) -> BrokerMessage:
    return BrokerMessage(
        task_id=f"id-{number}",
        task_name="task",
        message=data or b'{"number": %d}' % number,
        labels={"number": str(number), **labels},
    )


#: A stream where a list is, which each test with Redis has under this name.
WRONG_TYPE = (message(0, queue_name="a wrong key"), "WRONGTYPE")
KINDS = [
    Kind(
        "redis-stream",
        taskiq_redis,
        adapted_redis,
        REDIS,
        lines.redis_stream,
        in_stream,
        redis_result,
        WRONG_TYPE,
    ),
    Kind(
        "redis-list",
        taskiq_redis,
        adapted_redis,
        REDIS,
        lines.redis_list,
        in_list,
        redis_result,
        WRONG_TYPE,
    ),
    Kind(
        "rabbitmq",
        taskiq_aio_pika,
        adapted_rabbitmq,
        RABBITMQ,
        lines.rabbitmq,
        in_queue,
        redis_result,
        (message(0, what=object()), "Unknown type"),
    ),
    Kind(
        "jetstream-pull",
        taskiq_nats,
        adapted_nats,
        NATS,
        lines.jetstream_pull,
        in_jetstream,
        nats_result,
        (message(0, b"x" * 2_000_000), "maximum payload exceeded"),
    ),
    Kind(
        "postgres",
        taskiq_asyncpg,
        adapted_asyncpg,
        POSTGRES,
        lines.postgres,
        in_messages_table,
        postgres_result,
        (message(0, text="\x00"), "unsupported Unicode escape"),
    ),
]


@pytest.fixture(params=KINDS, ids=str)
def kind(request: pytest.FixtureRequest) -> Kind:
    kind: Kind = request.param
    if reason := kind.server.unavailable():
        pytest.skip(reason)
    return kind


#: Those whose messages are acknowledged, and that can be reached by way of a proxy.
acknowledging = pytest.mark.parametrize(
    "kind",
    [each for each in KINDS if each.name != "redis-list"],
    indirect=True,
    ids=str,
)
#: One for each result backend.
with_results = pytest.mark.parametrize(
    "kind",
    [each for each in KINDS if each.name not in {"redis-list", "rabbitmq"}],
    indirect=True,
    ids=str,
)


@pytest.fixture
def name(kind: Kind) -> Any:
    """Begin the names of all that a test makes, and remove it."""
    name = f"taskiq-adapters-{uuid.uuid4().hex[:12]}"
    yield name
    for each in (name, f"{name}-too"):
        kind.server.remove(each)


@pytest.fixture
async def proxy(kind: Kind) -> AsyncIterator[Proxy]:
    proxy = Proxy(kind.server.url)
    await proxy.start()
    yield proxy
    await proxy.stop()


@asynccontextmanager
async def started(broker: AsyncBroker) -> AsyncIterator[AsyncBroker]:
    await broker.startup()
    try:
        yield broker
    finally:
        await broker.shutdown()


def result_of(value: Any, log: str | None = None) -> TaskiqResult[Any]:
    return TaskiqResult(is_err=False, log=log, return_value=value, execution_time=0.5)


def new_ids(count: int) -> list[str]:
    return [uuid.uuid4().hex for _ in range(count)]


# -- What they do to keys and tables: nothing ---------------------------------------


async def test_messages_are_those_of_the_plugin(kind: Kind, name: str) -> None:
    """Sent alone, together by single calls, and by one call for all."""
    messages = [message(number, text="ü \u2028 '\"") for number in range(12)]
    async with started(kind.make(name, kind.plugin)) as plugin:
        for each in messages:
            await plugin.kick(each)
    async with started(kind.make(f"{name}-too", kind.adapter)) as adapter:
        for each in messages[:3]:
            await adapter.kick(each)
        await asyncio.gather(*map(adapter.kick, messages[3:8]))
        assert await adapter.kick_many(messages[8:]) == [None] * 4
    expected = await kind.sent(name)
    assert len(expected) == 12
    assert await kind.sent(f"{name}-too") == expected


@with_results
async def test_results_are_those_of_the_plugin(kind: Kind, name: str) -> None:
    ids = new_ids(6)
    results = {each: result_of({"of": each}, log="ü") for each in ids}
    async with started(kind.make(name, kind.plugin)) as plugin:
        for task_id, result in results.items():
            await plugin.result_backend.set_result(task_id, result)
    async with started(kind.make(f"{name}-too", kind.adapter)) as adapter:
        backend = adapter.result_backend
        await backend.set_result(ids[0], results[ids[0]])
        await asyncio.gather(*(backend.set_result(i, results[i]) for i in ids[1:4]))
        assert await backend.set_results({i: results[i] for i in ids[4:]}) == {}
    for task_id in ids:
        expected = await kind.result(name, task_id)
        assert expected is not None
        assert await kind.result(f"{name}-too", task_id) == expected


@with_results
async def test_results_of_either_are_read_by_the_other(kind: Kind, name: str) -> None:
    async with (
        started(kind.make(name, kind.plugin)) as plugin,
        started(kind.make(name, kind.adapter)) as adapter,
    ):
        theirs, ours = plugin.result_backend, adapter.result_backend
        await theirs.set_result("theirs", result_of(1, log="log"))
        await ours.set_results({"ours": result_of(2, log="log")})
        assert (await theirs.get_result("ours")).return_value == 2
        read = await ours.get_results(["ours", "none", "theirs", "ours"])
        assert {i: result.return_value for i, result in read.items()} == {
            "ours": 2,
            "theirs": 1,
        }
        assert {result.log for result in read.values()} == {None}
        read = await ours.get_results(["theirs"], with_logs=True)
        assert read["theirs"].log == "log"
        found = await ours.wait_for_result("theirs", HANG, with_logs=True)
        assert found == result_of(1, log="log")


RESULT_BACKENDS: list[Any] = [
    (lines.redis_results, adapted_redis, REDIS),
    (lines.nats_results, adapted_nats, NATS),
    (lines.postgres_results, adapted_asyncpg, POSTGRES),
]


@pytest.fixture(params=RESULT_BACKENDS, ids=["redis", "nats", "postgres"])
def results(request: pytest.FixtureRequest) -> Any:
    if reason := request.param[2].unavailable():
        pytest.skip(reason)
    return request.param


@pytest.fixture
async def forgetting(results: Any) -> AsyncIterator[AsyncResultBackend[Any]]:
    make, adapter, server = results
    name = f"taskiq-adapters-{uuid.uuid4().hex[:12]}"
    backend = make(name, adapter, keep_results=False)
    await backend.startup()
    yield backend
    await backend.shutdown()
    await asyncio.to_thread(server.remove, name)


async def test_results_that_are_not_kept_are_forgotten_once_read(
    forgetting: AsyncResultBackend[Any],
) -> None:
    backend = forgetting
    await backend.set_results({each: result_of(each) for each in ("one", "two")})
    assert (await backend.wait_for_result("one", HANG)).return_value == "one"
    assert set(await backend.get_results(["one", "two"])) == {"two"}
    assert await backend.get_results(["one", "two"]) == {}


@pytest.fixture
def redis() -> None:
    if reason := REDIS.unavailable():
        pytest.skip(reason)


@pytest.fixture
def postgres() -> None:
    if reason := POSTGRES.unavailable():
        pytest.skip(reason)


@pytest.mark.usefixtures("redis")
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"maxlen": 5, "approximate": False}, 5),
        ({"maxlen": 5}, 300),  # streams are cut in pieces
        ({}, 300),
    ],
    ids=str,
)
async def test_streams_are_cut_as_the_plugin_cuts_them(
    options: dict[str, Any], expected: int
) -> None:
    name = f"taskiq-adapters-{uuid.uuid4().hex[:12]}"
    lengths: list[int] = []
    for plugin in (taskiq_redis, adapted_redis):
        async with started(lines.redis_stream(name, plugin, **options)) as broker:
            await broker.kick_many([message(number) for number in range(300)])
            lengths.append(len(await in_stream(name)))
        await asyncio.to_thread(REDIS.remove, name)
    assert lengths[1] == lengths[0]
    assert lengths[0] <= 300
    assert (lengths[0] == 5) == (expected == 5)


@pytest.mark.usefixtures("redis")
@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("rights", ["+@all", "+@all -eval"])
async def test_a_backlog_of_streams_is_read_as_it_was_sent(
    rights: str, protocol: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a script, if it may run one; what is no message is one without bytes."""
    name = f"taskiq-adapters-{uuid.uuid4().hex[:12]}"
    sent = [b"\0\r\n", b" 1-1 5 ", b"\xff" * 70_000]
    sent += [b"%d" % number for number in range(92)]
    sizes: list[int] = []
    read = adapted_redis._New._read

    async def noted(self: Any, *args: Any) -> Any:
        messages = await read(self, *args)
        sizes.append(len(messages))
        return messages

    monkeypatch.setattr(adapted_redis._New, "_read", noted)
    other = f"{name}-other"
    async with redis_client() as redis:
        await redis.execute_command(
            "ACL", "SETUSER", name, *f"on nopass ~* &* {rights}".split()
        )
        try:
            url = REDIS.url.replace("://", f"://{name}:any@")
            broker = lines.redis_stream(
                name,
                adapted_redis,
                f"{url}?protocol={protocol}",
                xread_count=10,
                additional_streams={other: ">"},
            )
            async with started(broker):
                await broker.kick_many([message(0, data=data) for data in sent])
                await redis.xadd(other, {"text": "no message", "more": 1})
                await redis.xadd(other, {"first": 1, "data": "of another"})
                listener = broker.listen()
                received = await receive(listener, len(sent) + 2)
                await listener.aclose()
                group = received[0].ack_group
                assert group is not None
                assert await acknowledges(group, received)
        finally:
            await redis.execute_command("ACL", "DELUSER", name)
            await redis.delete(f"{name}-stream", other)
    of_streams: dict[Any, list[bytes]] = {}
    for each in received:
        stream = cast("Any", each).stream
        of_streams.setdefault(stream, []).append(each.data)
    assert of_streams == {
        f"{name}-stream".encode(): sent,
        other.encode(): [b"", b"of another"],
    }
    assert (sum(sizes) < 20) == ("-" not in rights)


@pytest.mark.usefixtures("redis")
async def test_streams_are_read_by_a_client_that_decodes() -> None:
    name = f"taskiq-adapters-{uuid.uuid4().hex[:12]}"
    sent = [f"{number} é".encode() for number in range(30)]
    broker = lines.redis_stream(
        name, adapted_redis, xread_count=4, decode_responses=True
    )
    try:
        async with started(broker):
            await broker.kick_many([message(0, data=data) for data in sent])
            listener = broker.listen()
            received = await receive(listener, 30)
            await listener.aclose()
        assert [each.data for each in received] == sent
    finally:
        await asyncio.to_thread(REDIS.remove, name)


# -- What goes wrong -------------------------------------------------------------------


@pytest.fixture
async def wrong_key(kind: Kind, name: str) -> str:
    """A key of Redis that is neither a stream nor a list."""
    key = f"{name}-wrong"
    if kind.server is REDIS:
        async with redis_client() as redis:
            await redis.set(key, "text", ex=lines.EXPIRY)
    return key


@pytest.mark.parametrize("seed", range(3))
async def test_a_message_that_is_refused_fails_alone(
    kind: Kind, name: str, wrong_key: str, seed: int
) -> None:
    refused, reason = kind.refused
    if "queue_name" in refused.labels:
        refused = refused.model_copy(update={"labels": {"queue_name": wrong_key}})
    chance = random.Random(seed)  # noqa: S311 - only for a test
    bad = {number for number in range(60) if chance.random() < 0.2}
    messages = [refused if number in bad else message(number) for number in range(60)]
    async with started(kind.make(name, kind.adapter)) as broker:
        outcomes = await broker.kick_many(messages)
        singles = await asyncio.gather(
            *map(broker.kick, messages), return_exceptions=True
        )
    for got in (outcomes, singles):
        assert {number for number, each in enumerate(got) if each is not None} == bad
        assert all(reason in str(got[number]) for number in bad)
    assert len(await kind.sent(name)) == 2 * (60 - len(bad))


@pytest.mark.usefixtures("redis")
async def test_what_cannot_be_sent_to_redis_fails_alone() -> None:
    name = f"taskiq-adapters-{uuid.uuid4().hex[:12]}"
    good, bad = (
        message(1),
        [message(2, queue_name="\ud800"), message(3, queue_name=[1])],
    )
    async with started(lines.redis_stream(name, adapted_redis)) as broker:
        outcomes = await broker.kick_many([good, *bad, good])
        assert [type(each) for each in outcomes] == [
            type(None),
            UnicodeEncodeError,
            TypeError,
            type(None),
        ]
        assert "the label queue_name must be" in str(outcomes[2])
        results = {each: result_of(each) for each in ("good", "\ud800")}
        failed = await broker.result_backend.set_results(results)
        assert set(failed) == {"\ud800"}
        assert set(await broker.result_backend.get_results(list(results))) == {"good"}
    assert len(await in_stream(name)) == 2
    await asyncio.to_thread(REDIS.remove, name)


class Unserialisable:
    pass


@with_results
@pytest.mark.parametrize("seed", range(3))
async def test_a_result_is_never_under_the_id_of_another(
    kind: Kind, name: str, seed: int
) -> None:
    chance = random.Random(seed)  # noqa: S311 - only for a test
    ids = new_ids(50)
    bad = {task_id for task_id in ids if chance.random() < 0.3}
    results = {i: result_of(Unserialisable() if i in bad else f"of {i}") for i in ids}
    async with started(kind.make(name, kind.adapter)) as broker:
        backend = broker.result_backend
        assert set(await backend.set_results(results)) == bad
        asked = chance.sample([*ids, *new_ids(20)], 70)
        found = await backend.get_results(asked)
        waited = await asyncio.gather(
            *(backend.wait_for_result(i, HANG) for i in ids if i not in bad)
        )
    expected = {i: f"of {i}" for i in ids if i not in bad}
    assert {i: result.return_value for i, result in found.items()} == expected
    assert [result.return_value for result in waited] == list(expected.values())


async def stored_under(prefix: str) -> dict[str, int]:
    """Ids of the results there are, with the seconds until they expire (-1: never)."""
    async with redis_client() as redis:
        keys = [key async for key in redis.scan_iter(f"{prefix}:*", count=1000)]
        found = {key.decode(): await redis.ttl(key) for key in keys}
        if keys:
            await redis.delete(*keys)
    return {key.removeprefix(f"{prefix}:"): ttl for key, ttl in found.items()}


@pytest.mark.usefixtures("redis")
async def test_results_that_do_not_expire_are_stored_by_one_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prefix, ids = f"taskiq-adapters-{uuid.uuid4().hex[:12]}", new_ids(100)
    commands: list[Any] = []
    pipelined = adapted_redis._pipelined

    async def noted(redis: Any, given: Any) -> list[Any]:
        commands.extend(command[0] for command in given)
        return await pipelined(redis, given)

    monkeypatch.setattr(adapted_redis, "_pipelined", noted)
    ours = adapted_redis.RedisAsyncResultBackend[Any](REDIS.url, prefix_str=prefix)
    theirs = taskiq_redis.RedisAsyncResultBackend[Any](REDIS.url, prefix_str=prefix)
    assert not await ours.set_results({each: result_of(each) for each in ids})
    assert commands == ["MSET", "PUBLISH"]
    assert [(await theirs.get_result(each)).return_value for each in ids] == ids
    assert await stored_under(prefix) == dict.fromkeys(ids, -1)
    for backend in (ours, theirs):
        await backend.shutdown()


@pytest.mark.usefixtures("redis")
@pytest.mark.parametrize("seed", range(3))
async def test_a_result_that_redis_refuses_fails_alone(seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311 - only for a test
    user = f"taskiq-adapters-{uuid.uuid4().hex[:12]}"
    fates = {each: chance.choice(["good", "bad"]) for each in new_ids(30)}
    results = {f"{fate}-{each}": result_of(each) for each, fate in fates.items()}
    bad = {each for each in results if each.startswith("bad")}
    rights = f"on nopass ~{user}:good-* &* +@all".split()
    async with redis_client() as redis:
        await redis.execute_command("ACL", "SETUSER", user, *rights)
        try:
            url = REDIS.url.replace("://", f"://{user}:any@")
            backend = adapted_redis.RedisAsyncResultBackend[Any](url, prefix_str=user)
            failed = await backend.set_results(results)
            await backend.shutdown()
        finally:
            await redis.execute_command("ACL", "DELUSER", user)
    assert set(failed) == bad
    assert set(await stored_under(user)) == set(results) - bad


@pytest.mark.usefixtures("postgres")
@pytest.mark.parametrize("is_worker", [False, True])
async def test_processes_that_start_together_share_a_new_table(
    is_worker: bool,
) -> None:
    """To make a table if there is none fails when somebody makes it just then."""
    name = f"taskiq-adapters-{uuid.uuid4().hex[:12]}"
    brokers = [lines.postgres(name, adapted_asyncpg) for _ in range(4)]
    started: list[int] = []

    def note(number: int, _: TaskiqState) -> None:
        started.append(number)

    for number, broker in enumerate(brokers):
        broker.is_worker_process = is_worker
        for event in (TaskiqEvents.CLIENT_STARTUP, TaskiqEvents.WORKER_STARTUP):
            broker.add_event_handler(event, partial(note, number))
    try:
        await asyncio.gather(*(broker.startup() for broker in brokers))
        assert sorted(started) == [0, 1, 2, 3]
        for broker in brokers:
            await broker.result_backend.set_result(new_ids(1)[0], result_of("any"))
    finally:
        await asyncio.gather(*(broker.shutdown() for broker in brokers))
        await asyncio.to_thread(POSTGRES.remove, name)


@pytest.mark.usefixtures("postgres")
@pytest.mark.parametrize(
    "error",
    [
        asyncpg.UniqueViolationError,
        asyncpg.DuplicateObjectError,
        asyncpg.DuplicateTableError,
    ],
)
async def test_a_table_that_another_process_makes_just_then_is_used(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of these is what a server says, by how far the other process was."""
    name = f"taskiq-adapters-{uuid.uuid4().hex[:12]}"
    made: set[str] = set()

    def with_another_process(ask: Any) -> Any:
        async def asked(connection: Any, query: str, *args: Any, **options: Any) -> Any:
            done = await ask(connection, query, *args, **options)
            if "CREATE TABLE" in query and query not in made:
                made.add(query)
                raise error("made by another process")
            return done

        return asked

    for way in ("fetch", "execute"):
        ask = getattr(asyncpg.Connection, way)
        monkeypatch.setattr(asyncpg.Connection, way, with_another_process(ask))
    broker = lines.postgres(name, adapted_asyncpg)
    results: Any = broker.result_backend
    (task_id,) = new_ids(1)
    try:
        await broker.startup()
        await results.set_result(task_id, result_of("any"))
        await results.abort_store.mark(task_id)
        assert await results.abort_store.look([task_id]) == {task_id}
        claim = Claim("key", task_id, 60)
        assert await results.unique_store.claim_many([claim]) == [task_id]
        assert len(made) == 4  # messages, results, marks and keys
    finally:
        await broker.shutdown()
        await asyncio.to_thread(POSTGRES.remove, name)


@pytest.mark.usefixtures("postgres")
async def test_an_id_that_the_table_does_not_take_fails_alone() -> None:
    name = f"taskiq-adapters-{uuid.uuid4().hex[:12]}"
    ids = [*new_ids(20), "no uuid", *new_ids(20)]
    backend = lines.postgres_results(name, adapted_asyncpg, field_for_task_id="Uuid")
    await backend.startup()
    try:
        failed = await backend.set_results({each: result_of(each) for each in ids})
        assert list(failed) == ["no uuid"]
        assert "invalid input syntax for type uuid" in str(failed["no uuid"])
        found = await backend.get_results(ids)
        assert {i: result.return_value for i, result in found.items()} == {
            i: i for i in ids if i != "no uuid"
        }
    finally:
        await backend.shutdown()
        await asyncio.to_thread(POSTGRES.remove, name)


async def eventually(
    condition: Callable[[], bool | Awaitable[bool]], *, interval: float = 0.0
) -> None:
    """Wait until it is so."""
    ends = asyncio.get_running_loop().time() + HANG
    while not await maybe_awaitable(condition()):
        assert asyncio.get_running_loop().time() < ends
        await asyncio.sleep(interval)


async def sends(broker: AsyncBroker, sent: BrokerMessage) -> bool:
    return await broker.kick_many([sent]) == [None]


async def acknowledges(group: AckGroup, messages: list[AckableMessage]) -> bool:
    return set(await group.ack(messages)) == {None}


@acknowledging
async def test_a_cut_while_many_are_sent_loses_nothing_that_is_said_to_be_sent(
    kind: Kind, name: str, proxy: Proxy
) -> None:
    async with started(kind.make(name, kind.adapter, proxy.url)) as broker:
        messages = [message(number) for number in range(5000)]
        sending = asyncio.create_task(broker.kick_many(messages))
        await eventually(lambda: proxy.passed > 100_000)
        assert proxy.cut() > 0
        outcomes = await asyncio.wait_for(sending, HANG)
        assert len(outcomes) == 5000

        await eventually(partial(sends, broker, message(5000)))
        stored = "".join(map(str, await kind.sent(name)))
    assert any(isinstance(outcome, Exception) for outcome in outcomes)
    for number, outcome in enumerate(outcomes):
        assert outcome is not None or f'{{"number": {number}}}' in stored


async def receive(
    listener: AsyncGenerator[bytes | AckableMessage, None], count: int
) -> list[AckableMessage]:
    received: list[AckableMessage] = []
    while len(received) < count:
        each = await asyncio.wait_for(anext(listener), HANG)
        assert isinstance(each, AckableMessage)
        received.append(each)
    return received


async def unacknowledged(kind: Kind, name: str) -> int:
    """Count what was delivered and is not acknowledged."""
    count = lines.LINES[kind.name].unfinished
    assert count is not None
    return await asyncio.to_thread(count, name)


#: Those with an acknowledgement that is a round trip: on NATS it is but published.
grouping = pytest.mark.parametrize(
    "kind",
    [each for each in KINDS if each.name in {"redis-stream", "postgres"}],
    indirect=True,
    ids=str,
)


@grouping
async def test_many_are_acknowledged_together_and_no_others(
    kind: Kind, name: str
) -> None:
    async with started(kind.make(name, kind.adapter)) as broker:
        await broker.kick_many([message(number) for number in range(300)])
        listener = broker.listen()
        received = await receive(listener, 300)
        assert await unacknowledged(kind, name) == 300

        group = received[0].ack_group
        assert group is not None
        assert {each.ack_group for each in received} == {group}
        assert list(await group.ack(received[:200])) == [None] * 200
        await asyncio.gather(*(cast("Any", each.ack)() for each in received[200:299]))
        assert await unacknowledged(kind, name) == 1
        await listener.aclose()


@grouping
async def test_what_a_cut_connection_did_not_acknowledge_is_said_and_can_be_tried_again(
    kind: Kind, name: str, proxy: Proxy
) -> None:
    async with started(kind.make(name, kind.adapter, proxy.url)) as broker:
        await broker.kick_many([message(number) for number in range(100)])
        listener = broker.listen()
        received = await receive(listener, 100)
        group = received[0].ack_group
        assert group is not None
        acknowledging = asyncio.ensure_future(group.ack(received))
        await asyncio.sleep(0)
        proxy.cut()
        outcomes = await asyncio.wait_for(acknowledging, HANG)
        assert all(isinstance(each, Exception) for each in outcomes)

        await eventually(partial(acknowledges, group, received))
        assert await unacknowledged(kind, name) == 0
        await listener.aclose()


# -- Results that are told of --------------------------------------------------------


@with_results
async def test_who_waits_gets_a_result_when_it_is_stored(
    kind: Kind, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Who is not told of it does not come to look on his own.
    monkeypatch.setattr("taskiq.adapters._feed._SAFETY", 10 * HANG)
    async with (
        started(kind.make(name, kind.adapter)) as client,
        started(kind.make(name, kind.adapter)) as worker,
    ):
        ids = new_ids(1000)
        backend = client.result_backend
        waiters = [
            asyncio.create_task(backend.wait_for_result(each, HANG)) for each in ids
        ]
        await asyncio.sleep(0.5)
        await worker.result_backend.set_results({i: result_of(i) for i in ids})
        results = await asyncio.gather(*waiters)
    assert [result.return_value for result in results] == ids


async def subscriptions_of(name: str) -> list[int]:
    """Give how many channels each connection of this name is subscribed to."""
    async with redis_client() as redis:
        clients = await redis.client_list()
    return [int(client["sub"]) for client in clients if client["name"] == name]


async def is_subscribed(name: str) -> bool:
    return 1 in await subscriptions_of(name)


@pytest.mark.parametrize(
    "backend",
    [
        adapted_redis.RedisAsyncResultBackend,
        adapted_redis.RedisAsyncSentinelResultBackend,
        adapted_asyncpg.AsyncpgResultBackend,
        adapted_nats.NATSObjectStoreResultBackend,
    ],
)
def test_no_backend_falls_back_to_one_by_one_or_to_polling(backend: Any) -> None:
    for name in ("set_results", "get_results", "wait_for_result"):
        assert getattr(backend, name) is not getattr(AsyncResultBackend, name)


@pytest.mark.usefixtures("redis")
async def test_all_who_wait_share_one_connection() -> None:
    name = f"taskiq-adapters-{uuid.uuid4().hex[:12]}"
    backend = lines.redis_results(name, adapted_redis, client_name=name)
    waiters = [
        asyncio.create_task(backend.wait_for_result(each, HANG))
        for each in new_ids(1000)
    ]
    await eventually(partial(is_subscribed, name), interval=0.05)
    await asyncio.sleep(0.5)
    # One is subscribed, the other looks.
    assert sorted(await subscriptions_of(name)) == [0, 1]
    for waiter in waiters:
        waiter.cancel()
    await asyncio.gather(*waiters, return_exceptions=True)
    await backend.shutdown()
    assert await subscriptions_of(name) == []


@with_results
async def test_when_the_subscription_dies_who_waits_gets_the_result(
    kind: Kind, name: str, proxy: Proxy
) -> None:
    async with (
        started(kind.make(name, kind.adapter, proxy.url)) as client,
        started(kind.make(name, kind.adapter)) as worker,
    ):
        ids = new_ids(100)
        backend = client.result_backend
        waiters = [
            asyncio.create_task(backend.wait_for_result(each, HANG)) for each in ids
        ]
        await asyncio.sleep(0.5)
        assert proxy.cut() > 0
        await worker.result_backend.set_results({i: result_of(i) for i in ids[:50]})
        results = await asyncio.gather(*waiters[:50])
        await asyncio.sleep(0.5)
        await worker.result_backend.set_results({i: result_of(i) for i in ids[50:]})
        results += await asyncio.gather(*waiters[50:])
    assert [result.return_value for result in results] == ids


@with_results
async def test_a_hundred_thousand_ids_are_looked_for_in_chunks(
    kind: Kind, name: str
) -> None:
    count = 100_000 if kind.server is not NATS else 3000  # a look for each there
    ids = new_ids(count)
    async with started(kind.make(name, kind.adapter)) as broker:
        stored = {each: result_of(each) for each in (ids[0], ids[count // 2], ids[-1])}
        await broker.result_backend.set_results(stored)
        assert await broker.result_backend.get_results(ids) == stored
