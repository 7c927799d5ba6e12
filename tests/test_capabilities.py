"""What is known of a broker's messages, and where that comes from."""

from __future__ import annotations

import asyncio
import sys
from types import ModuleType
from typing import Any

import pytest

from taskiq import AckableMessage, InMemoryBroker
from taskiq.capabilities import (
    Capabilities,
    delay_label,
    deliveries_of,
    equip,
    resolve,
)
from taskiq.receiver import Receiver
from taskiq.testing import ManualClock
from tests.support.brokers import QueueBroker, message_bytes


class ClientMessage:
    """A message of a client library, with what such messages have."""

    headers: dict[str, Any] = {"x-delivery-count": 3}  # noqa: RUF012
    redelivered = True

    def __init__(self) -> None:
        self.calls: list[object] = []

    async def ack(self) -> None:
        self.calls.append("ack")

    async def nack(self, *, requeue: bool) -> None:
        self.calls.append(("nack", requeue))

    async def reject(self, *, requeue: bool) -> None:
        self.calls.append(("reject", requeue))


@pytest.fixture
def aio_pika(monkeypatch: pytest.MonkeyPatch) -> type[ClientMessage]:
    """Load a client library whose messages are of a class made for the test."""

    class Incoming(ClientMessage):
        pass

    module = ModuleType("aio_pika.abc")
    vars(module)["AbstractIncomingMessage"] = Incoming
    monkeypatch.setitem(sys.modules, "aio_pika.abc", module)
    return Incoming


async def test_the_message_of_a_client_is_recognised_by_its_class(
    aio_pika: type[ClientMessage],
) -> None:
    client = type("Derived", (aio_pika,), {})()
    message = AckableMessage(data=b"", ack=client.ack)
    equipped = equip(QueueBroker(), message)
    assert equipped is message
    assert message.nack is not None
    assert message.reject is not None
    assert await deliveries_of(message) == 4
    await message.nack(None)  # type: ignore[misc]
    await message.reject("why")  # type: ignore[misc]
    assert client.calls == [("nack", True), ("reject", False)]
    assert not message.nack_delays
    assert message.extend is None


def test_what_the_broker_gave_stays(aio_pika: type[ClientMessage]) -> None:
    message = AckableMessage(data=b"", ack=aio_pika().ack, nack=print, deliveries=1)
    equip(QueueBroker(), message)
    assert message.nack is print
    assert message.deliveries == 1
    assert message.reject is not None


def test_a_client_that_is_not_loaded_is_not_imported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("aio_pika.abc", "nats.aio.msg"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    message = AckableMessage(data=b"", ack=ClientMessage().ack)
    equip(QueueBroker(), message)
    assert message.nack is None
    assert {"aio_pika.abc", "nats.aio.msg"}.isdisjoint(sys.modules)


def test_nothing_is_known_of_bytes() -> None:
    assert equip(QueueBroker(), b"data") is None


async def test_the_count_may_have_to_be_asked_for() -> None:
    async def ask() -> int:
        return 7

    message = AckableMessage(data=b"", ack=print, deliveries=ask)
    assert await deliveries_of(message) == 7
    assert await deliveries_of(AckableMessage(data=b"", ack=print)) is None
    assert await deliveries_of(None) is None


@pytest.mark.parametrize(
    ("package", "seconds", "label"),
    [
        ("elsewhere", 2.0, "2"),
        ("elsewhere", 1.25, "1.25"),
        ("taskiq_pg.asyncpg.broker", 1.25, "2"),
        ("taskiq_pg.asyncpg.broker", 0.0, "0"),
    ],
)
def test_a_delay_is_written_so_that_its_broker_can_read_it(
    package: str, seconds: float, label: str
) -> None:
    plugin = type("Broker", (QueueBroker,), {"__module__": package})
    assert str(delay_label(type("Own", (plugin,), {})(), seconds)) == label


class Telling(QueueBroker):
    message_capabilities = ("nack", "deliveries")


def test_a_broker_says_what_it_can() -> None:
    assert resolve(QueueBroker()) == Capabilities()
    name = f"{__name__}.Telling"
    told = resolve(Telling())
    assert told == Capabilities(nack=name, deliveries=name)
    assert str(told) == (
        f"can give back, count deliveries ({name}); "
        "cannot give back for a time, reject, extend leases"
    )
    assert str(Capabilities()).startswith("cannot give back, ")


def test_a_known_broker_is_told_by_its_name() -> None:
    plugin = type(
        "AioPikaBroker", (QueueBroker,), {"__module__": "taskiq_aio_pika.broker"}
    )
    derived = type("Own", (plugin,), {})()
    assert resolve(derived) == Capabilities(
        nack="aio_pika", reject="aio_pika", deliveries="aio_pika"
    )


def test_the_fields_are_not_on_the_wire() -> None:
    message = AckableMessage(data=b"", ack=print, nack=print, deliveries=2)
    assert message.model_dump() == {"data": b"", "ack": print}


async def test_in_memory_a_message_given_back_runs_again_and_is_counted() -> None:
    clock = ManualClock()
    broker = InMemoryBroker().with_clock(clock)
    ran: list[int] = []

    @broker.task(task_name="note")
    async def note(number: int) -> None:
        ran.append(number)

    data = message_bytes(note, 1)
    first = equip(broker, data)
    assert await deliveries_of(first) == 1
    assert first is not None
    assert first.nack is not None
    assert first.nack_delays
    first.nack(None)
    assert not ran  # whoever gives it back is to be done with it first
    await broker.wait_all()
    assert ran == [1]
    first.nack(2.0)
    await asyncio.sleep(0)
    clock.advance(1.9)
    await asyncio.sleep(0)
    assert clock.armed == 1
    clock.advance(0.1)
    await broker.wait_all()
    assert ran == [1, 1]


async def test_in_memory_what_ran_again_knows_how_often_it_was_delivered() -> None:
    broker = InMemoryBroker()
    counts: list[int | None] = []

    class Receiving(Receiver):
        async def callback(
            self, message: bytes | AckableMessage, raise_err: bool = False
        ) -> None:
            equipped = equip(broker, message)
            assert equipped is not None
            counts.append(await deliveries_of(equipped))
            if len(counts) < 3:
                assert equipped.nack is not None
                equipped.nack(0.001)

    broker.receiver = Receiving(broker)

    @broker.task
    async def nothing() -> None: ...

    await nothing.kiq()
    await broker.wait_all()
    assert counts == [1, 2, 3]
