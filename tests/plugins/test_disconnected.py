"""A client that connects again by itself is known to be without its server."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable

import pytest
from taskiq_aio_pika import AioPikaBroker, Exchange, Queue
from taskiq_nats import PullBasedJetStreamBroker

from taskiq import AsyncBroker
from taskiq.receiver.source import is_disconnected
from tests.faults.proxy import Proxy
from tests.support.hub import HANG

from .servers import NATS, RABBITMQ, Server


def rabbitmq(url: str, name: str) -> AsyncBroker:
    return AioPikaBroker(
        url,
        exchange=Exchange(name=f"{name}-exchange"),
        task_queues=[Queue(name=f"{name}-queue")],
        dead_letter_queue=Queue(name=f"{name}-dead"),
    )


def jetstream(url: str, name: str) -> AsyncBroker:
    return PullBasedJetStreamBroker(
        [url],
        subject=f"{name}-subject",
        stream_name=f"{name}-stream",
        durable=f"{name}-durable",
    )


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - the client tells nobody
        await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("server", "make"), [(RABBITMQ, rabbitmq), (NATS, jetstream)], ids=["amqp", "nats"]
)
def test_it_is_disconnected_from_the_cut_on(
    server: Server,
    make: Callable[[str, str], AsyncBroker],
) -> None:
    if reason := server.unavailable():
        pytest.skip(reason)
    name = f"taskiq-plugins-{uuid.uuid4().hex}"

    async def main() -> None:
        proxy = Proxy(server.url)
        await proxy.start()
        broker = make(proxy.url, name)
        broker.is_worker_process = True
        assert not is_disconnected(broker), "it is not started yet"
        await broker.startup()
        assert not is_disconnected(broker)
        await proxy.stop()
        await asyncio.wait_for(until(lambda: is_disconnected(broker)), HANG)
        await broker.shutdown()

    try:
        asyncio.run(main())
    finally:
        server.remove(name)
