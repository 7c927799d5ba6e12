"""The conformance kit on the in-memory broker, and on brokers that do not conform."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from taskiq import AsyncBroker, AsyncResultBackend, BrokerMessage, InMemoryBroker
from taskiq.brokers.inmemory_broker import InmemoryResultBackend
from taskiq.testing.conformance import BrokerConformance, ResultBackendConformance
from tests.support.brokers import QueueBroker


class TestInMemoryBroker(BrokerConformance):
    @pytest.fixture
    def make_broker(self) -> Callable[[], AsyncBroker]:
        return InMemoryBroker


class TestInmemoryResultBackend(ResultBackendConformance):
    @pytest.fixture
    def make_result_backend(self) -> Callable[[], AsyncResultBackend[object]]:
        return InmemoryResultBackend


class Losing(QueueBroker):
    """Loses every message but the first ones, and says that it can what it cannot."""

    message_capabilities = ("nack",)

    async def kick(self, message: BrokerMessage) -> None:
        data = message.message
        if b"number" not in data:
            await super().kick(message.model_copy(update={"message": data[:1000]}))
        elif b"1" not in data:
            await super().kick(message)


@pytest.fixture
def make_losing() -> Callable[[], AsyncBroker]:
    """Make brokers of one queue, for one event loop."""
    shared = Losing()

    def make() -> AsyncBroker:
        broker = Losing()
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return broker
        broker.queue = shared.queue
        return broker

    return make


@pytest.mark.parametrize(
    "rule",
    [
        BrokerConformance.test_what_is_sent_arrives_as_it_was,
        BrokerConformance.test_many_are_sent_in_their_order,
        BrokerConformance.test_what_it_says_it_can_is_what_its_messages_can,
        BrokerConformance.test_what_is_not_acknowledged_comes_again,
    ],
)
def test_a_broker_that_breaks_a_rule_is_found_out(
    make_losing: Callable[[], AsyncBroker],
    monkeypatch: pytest.MonkeyPatch,
    rule: Callable[[BrokerConformance, Callable[[], AsyncBroker]], None],
) -> None:
    monkeypatch.setattr("taskiq.testing.conformance._LOST", 0.5)
    asked = BrokerConformance()
    vars(asked)["redelivered_within"] = 0.2
    with pytest.raises(AssertionError):
        rule(asked, make_losing)
