"""Dead letters as values: how they travel, what comes back, and what is sent again."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskiq import AckableMessage, InMemoryBroker
from taskiq.dead_letters import DeadLetter, InMemoryDeadLetters, store_of
from taskiq.dead_letters.letter import letter_of
from taskiq.dead_letters.origin import origin_of
from taskiq.dead_letters.retry import restored
from taskiq.exceptions import DeadLetterNotFoundError
from tests.support.brokers import QueueBroker

LETTER = DeadLetter(
    data=b"\xff",
    reason="error",
    error="ValueError: no",
    deliveries=3,
    queue="orders",
    time=1700000000.125,
    task_name="shop:charge",
    task_id="7",
    id="letter",
)


@pytest.mark.parametrize("as_bytes", [True, False])
def test_a_letter_comes_back_from_its_labels(as_bytes: bool) -> None:
    """Servers give them as text or as bytes."""
    labels: dict[Any, Any] = dict(LETTER.labels)
    if as_bytes:
        labels = {name.encode(): each.encode() for name, each in labels.items()}
    assert letter_of(b"\xff", labels) == LETTER
    assert letter_of(b"\xff", labels, "own").id == "own"


def test_what_somebody_else_put_there_is_a_letter_too() -> None:
    labels = {"X-Taskiq-dead-deliveries": "many", "X-Taskiq-dead-time": "noon"}
    letter = letter_of(b"data", labels)
    assert (letter.deliveries, letter.time, letter.reason) == (None, 0.0, "")
    assert letter.as_json()["time"] == "1970-01-01T00:00:00.000+00:00"


@given(st.text())
def test_a_label_is_one_line_of_limited_length(error: str) -> None:
    told = DeadLetter(b"", "error", error).labels["X-Taskiq-dead-error"]
    assert len(told) <= 500
    assert len(told.splitlines()) <= 1


def test_what_no_server_encodes_is_escaped_in_a_label() -> None:
    labels = DeadLetter(b"", "error", "no file \udcff", task_name="\ud800").labels
    assert labels["X-Taskiq-dead-error"] == r"no file \udcff"
    assert labels["X-Taskiq-dead-task"] == r"\ud800"
    assert len(DeadLetter(b"", "\ud800" * 500).labels["X-Taskiq-dead-reason"]) <= 500


def test_a_retry_sends_the_bytes_as_they_were_but_for_own_labels() -> None:
    formatter = InMemoryBroker().formatter
    wire = '{"task_id":"1", "task_name":"t","labels":%s,"labels_types":%s,'
    wire += '"args":[{"b":1,"a":2}],"kwargs":{}}'
    plain = (wire % ('{"own":"1"}', "null")).encode()
    sent = restored(formatter, DeadLetter(plain, "error"))
    assert (sent.message, sent.task_id, sent.labels) == (plain, "1", {"own": "1"})

    labels = '{"own":"1","X-Taskiq-deliveries":"4"}'
    types = '{"X-Taskiq-deliveries":2}'
    counted = (wire % (labels, types)).encode()
    again = restored(formatter, DeadLetter(counted, "error"))
    assert json.loads(again.message) == json.loads(wire % ('{"own":"1"}', "{}"))

    unread = restored(formatter, LETTER)
    assert (unread.message, unread.task_name) == (b"\xff", "shop:charge")


class _Message:
    """As the client of RabbitMQ delivers it."""

    routing_key = "orders.eu"

    async def ack(self) -> None: ...


def _queues(*pairs: tuple[str, str | None]) -> dict[str, Any]:
    """Give what the broker of RabbitMQ has for queues by name and routing key."""
    known = [SimpleNamespace(name=name, routing_key=key) for name, key in pairs]
    return {"_task_queues": known}


@pytest.mark.parametrize(
    ("attributes", "labels", "origin"),
    [
        (_queues(("only", "orders.*")), {"queue_name": "other"}, "only"),
        (_queues(("a", None), ("b", "orders.eu")), {}, "b"),
        (_queues(("a", None), ("orders.eu", None)), {}, "orders.eu"),
        (_queues(("a", None), ("b", "orders.*")), {}, "orders.eu"),
        ({"queue_name": "list"}, {}, "list"),
        ({"queue_name": "list"}, {"queue_name": "other"}, "other"),
        ({"subject": "jobs"}, {}, "jobs"),
        ({}, {}, ""),
    ],
)
def test_a_letter_names_the_queue_that_its_message_came_from(
    attributes: dict[str, Any], labels: dict[str, str], origin: str
) -> None:
    broker = QueueBroker()
    vars(broker).update(attributes)
    raw = AckableMessage(data=b"", ack=_Message().ack)
    if "_task_queues" not in attributes:
        raw = AckableMessage(data=b"", ack=lambda: None)
    assert origin_of(broker, raw, labels) == origin


async def test_letters_in_memory_are_read_behind_one_and_taken_out() -> None:
    store = InMemoryDeadLetters()
    for each in "abc":
        await store.put(DeadLetter(b"", "error", id=each))
    assert [letter.id async for letter in store.read("a")] == ["b", "c"]
    assert await store.remove(["b", "not there"]) == 1
    assert [letter.id async for letter in store.read()] == ["a", "c"]
    with pytest.raises(DeadLetterNotFoundError, match="no dead letter b in memory"):
        await anext(store.read("b"))


@pytest.mark.parametrize(
    ("kind", "known"),
    [
        (("taskiq_redis.broker", "ListQueueBroker"), "orders.dead"),
        (("taskiq_redis.broker", "Unheard"), None),
        (("elsewhere", "ListQueueBroker"), None),
    ],
)
def test_the_store_of_a_plugin_is_found_by_the_name_of_its_class(
    kind: tuple[str, str], known: str | None
) -> None:
    pytest.importorskip("redis")
    module, name = kind
    plugin = type(name, (QueueBroker,), {"__module__": module, "queue_name": "orders"})
    derived = type("Own", (plugin,), {})()
    store = store_of(derived)
    assert (store and store.queue) == known
    assert store_of(derived) is store


def test_a_broker_of_no_known_kind_has_no_place() -> None:
    assert store_of(QueueBroker()) is None
