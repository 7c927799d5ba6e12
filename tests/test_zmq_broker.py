from __future__ import annotations

import asyncio
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import zmq
import zmq.asyncio

from taskiq import (
    AckableMessage,
    BrokerMessage,
    TaskiqEvents,
    TaskiqResult,
    TaskiqState,
)
from taskiq.api import run_receiver_task
from taskiq.brokers.zmq_broker import ZeroMQBroker
from tests.support.recorders import RecordingBackend

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

pytestmark = pytest.mark.skipif(
    sys.platform == "win32",
    reason="pyzmq does not work with the event loop of Windows, unless with tornado",
)

ANY_PORT = "tcp://127.0.0.1:*"

#: Real seconds between two attempts to be heard by a worker that is connecting.
ANOTHER_TRY = 0.02

#: Real seconds after which something is taken for lost.
IN_TIME = 10.0


def address(socket: zmq.asyncio.Socket) -> str:
    endpoint = socket.getsockopt(zmq.LAST_ENDPOINT)
    assert isinstance(endpoint, bytes)
    return endpoint.rstrip(b"\0").decode()


def message(data: bytes) -> BrokerMessage:
    return BrokerMessage(task_id="id", task_name="task", message=data, labels={})


def new_worker(broker: ZeroMQBroker) -> ZeroMQBroker:
    """Make a broker that listens to another one."""
    worker = ZeroMQBroker(zmq_sub_host=address(broker.socket))
    worker.is_worker_process = True
    return worker


@asynccontextmanager
async def started(broker: ZeroMQBroker) -> AsyncGenerator[ZeroMQBroker]:
    await broker.startup()
    try:
        yield broker
    finally:
        await broker.shutdown()
        broker.context.destroy(linger=0)


async def greet(client: ZeroMQBroker, received: asyncio.Future[Any]) -> None:
    """Send until something arrives: what is sent before a worker connects is lost."""
    while not received.done():
        await client.kick(message(b"hello"))
        await asyncio.wait([received], timeout=ANOTHER_TRY)


async def following(stream: AsyncGenerator[Any, None]) -> Any:
    return await asyncio.wait_for(anext(stream), IN_TIME)


@asynccontextmanager
async def listening(
    client: ZeroMQBroker,
) -> AsyncGenerator[AsyncGenerator[bytes | AckableMessage, None]]:
    """Connect a worker; gives what it receives next."""
    async with started(new_worker(client)) as worker:
        stream = worker.listen()
        first = asyncio.ensure_future(anext(stream))
        await greet(client, first)
        await client.kick(message(b"now"))
        data = await first
        while data != b"now":
            data = await following(stream)
        yield stream
        await stream.aclose()


@pytest.mark.parametrize("size", [1, 99, 100, 101, 200, 12345])
async def test_a_message_arrives_as_it_was_sent(size: int) -> None:
    data = bytes(n % 251 for n in range(size))
    async with (
        started(ZeroMQBroker(ANY_PORT)) as client,
        listening(client) as stream,
    ):
        await client.kick(message(data))

        assert await following(stream) == data


async def test_every_connected_worker_receives_every_message() -> None:
    async with (
        started(ZeroMQBroker(ANY_PORT)) as client,
        listening(client) as first,
        listening(client) as second,
    ):
        await client.kick(message(b"for all"))

        received = await following(first)
        while received != b"for all":  # the second worker was greeted meanwhile
            received = await following(first)
        assert await following(second) == b"for all"


async def test_on_the_wire_a_message_is_cut_into_parts_of_a_hundred_bytes() -> None:
    context = zmq.asyncio.Context()
    data = bytes(250)
    async with started(ZeroMQBroker(ANY_PORT)) as client:
        with context.socket(zmq.SUB) as socket:
            socket.setsockopt(zmq.SUBSCRIBE, b"")
            socket.connect(address(client.socket))
            hello = asyncio.ensure_future(socket.recv_multipart())
            await greet(client, hello)
            await client.kick(message(data))
            parts = await hello
            while parts == [b"hello"]:
                parts = await socket.recv_multipart()
    context.term()

    assert [len(part) for part in parts] == [100, 100, 50]
    assert b"".join(parts) == data


class Waking(RecordingBackend):
    """Resolves a future when the result of the message "id" is saved."""

    def __init__(self) -> None:
        super().__init__()
        self.saved_id: asyncio.Future[None] = asyncio.Future()

    async def set_result(self, task_id: str, result: TaskiqResult[Any]) -> None:
        await super().set_result(task_id, result)
        if task_id == "id":
            self.saved_id.set_result(None)


async def test_a_task_is_run_by_a_worker_and_its_result_is_saved() -> None:
    async with started(ZeroMQBroker(ANY_PORT)) as client:
        worker = new_worker(client)
        backend = Waking()
        worker.with_result_backend(backend)
        is_connected: asyncio.Future[None] = asyncio.Future()

        @worker.task("add")
        async def add(left: int, right: int) -> int:
            if not is_connected.done():
                is_connected.set_result(None)
            return left + right

        async with started(worker):
            receiving = asyncio.ensure_future(run_receiver_task(worker))
            while not is_connected.done():
                await add.kicker().with_broker(client).kiq(0, 0)
                await asyncio.wait([is_connected], timeout=ANOTHER_TRY)
            await add.kicker().with_broker(client).with_task_id("id").kiq(2, 3)
            await asyncio.wait_for(backend.saved_id, IN_TIME)
            receiving.cancel()
            await asyncio.wait([receiving])

    assert backend.results["id"].return_value == 5


async def test_a_shutdown_gives_the_address_back() -> None:
    async with started(ZeroMQBroker(ANY_PORT)) as first:
        host = address(first.socket)

    assert first.socket.closed
    async with started(ZeroMQBroker(host)) as second:
        assert address(second.socket) == host


async def test_a_broker_can_be_started_again() -> None:
    broker = ZeroMQBroker(ANY_PORT)
    await broker.startup()
    await broker.shutdown()

    async with started(broker), listening(broker) as stream:
        await broker.kick(message(b"again"))

        assert await following(stream) == b"again"


async def test_the_socket_is_closed_though_a_shutdown_handler_fails() -> None:
    broker = ZeroMQBroker(ANY_PORT)

    @broker.on_event(TaskiqEvents.CLIENT_SHUTDOWN)
    async def fail(state: TaskiqState) -> None:
        # The socket still works here.
        await broker.kick(message(b"goodbye"))
        raise ValueError("failed")

    await broker.startup()
    with pytest.raises(ValueError, match="failed"):
        await broker.shutdown()

    assert broker.socket.closed
    broker.context.term()


async def test_a_broker_that_was_not_started_can_be_shut_down() -> None:
    broker = ZeroMQBroker()

    await broker.shutdown()

    broker.context.term()
    assert not hasattr(broker, "socket")
    assert (broker.pub_host, broker.sub_host) == (
        "tcp://0.0.0.0:5555",
        "tcp://localhost:5555",
    )


def test_without_pyzmq_the_constructor_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "zmq.asyncio", None)

    with pytest.raises(RuntimeError, match=r"install pyzmq: .*taskiq\[zmq\]"):
        ZeroMQBroker()
