"""What a task may do with the message it runs for."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskiq import Context, TaskiqMessage, TaskiqMiddleware
from taskiq.acks import AckController
from taskiq.context import REQUEUE_LABEL
from taskiq.exceptions import (
    NoResultError,
    TaskRejectedError,
    UnsendableArgumentError,
)
from taskiq.formatters.json_formatter import JSONFormatter
from taskiq.kicker import AsyncKicker
from tests.support.brokers import QueueBroker


class CountingAck:
    """Counts how often the broker is told; fails first, as often as it is told to."""

    def __init__(self, failures: int = 0) -> None:
        self.failures = failures
        self.calls = 0

    async def __call__(self) -> None:
        self.calls += 1
        if self.calls <= self.failures:
            raise ConnectionError("cannot ack")


@pytest.fixture
def broker() -> QueueBroker:
    return QueueBroker()


def message(**labels: Any) -> TaskiqMessage:
    return TaskiqMessage(
        task_id="id",
        task_name="name",
        labels=labels,
        args=[1],
        kwargs={"b": 2},
    )


async def received(broker: QueueBroker) -> TaskiqMessage:
    """Take the next message as a worker has it: with parsed labels."""
    [sent] = broker.take_all()
    parsed = broker.formatter.loads(sent.message)
    parsed.parse_labels()
    return parsed


async def requeue(broker: QueueBroker, current: TaskiqMessage) -> TaskiqMessage:
    """Requeue a message, and give the one that arrives."""
    with pytest.raises(NoResultError):
        await Context(current, broker).requeue()
    return await received(broker)


def test_a_context_knows_message_broker_and_state(broker: QueueBroker) -> None:
    current = message()
    context = Context(current, broker)

    assert context.message is current
    assert list(context.messages) == [current]
    assert context.broker is broker
    assert context.state is broker.state


# -- Acknowledging -----------------------------------------------------------------


@pytest.mark.parametrize("controller", [None, AckController(None)])
async def test_without_an_ack_there_is_nothing_to_acknowledge(
    controller: AckController | None,
    broker: QueueBroker,
) -> None:
    context = Context(message(), broker, controller)

    assert not context.is_ackable
    assert not context.is_acked
    with pytest.raises(RuntimeError, match=r"^Current message is not ackable\.$"):
        await context.ack()
    assert not context.is_acked


async def test_a_message_is_acknowledged_once_however_often_it_is_asked_for(
    broker: QueueBroker,
) -> None:
    ack = CountingAck()
    context = Context(message(), broker, AckController(ack))
    assert context.is_ackable
    assert not context.is_acked

    await context.ack()
    await context.ack()

    assert context.is_acked
    assert context.is_ackable
    assert ack.calls == 1


async def test_an_ack_that_fails_leaves_the_message_unacknowledged(
    broker: QueueBroker,
) -> None:
    ack = CountingAck(failures=1)
    context = Context(message(), broker, AckController(ack))

    with pytest.raises(ConnectionError):
        await context.ack()
    assert not context.is_acked

    await context.ack()
    assert context.is_acked
    assert ack.calls == 2


# -- Rejecting ---------------------------------------------------------------------


def test_rejecting_ends_the_task_with_an_error(broker: QueueBroker) -> None:
    context = Context(message(), broker)
    with pytest.raises(TaskRejectedError):
        context.reject()


# -- Sending again -----------------------------------------------------------------


async def test_a_requeued_message_keeps_its_id_name_and_arguments(
    broker: QueueBroker,
) -> None:
    again = await requeue(broker, message())

    assert (again.task_id, again.task_name) == ("id", "name")
    assert (again.args, again.kwargs) == ([1], {"b": 2})


async def test_a_requeued_message_counts_how_often_it_was_sent_again(
    broker: QueueBroker,
) -> None:
    current = message(other="x")

    for times in (1, 2, 3):
        current = await requeue(broker, current)
        assert current.labels == {"other": "x", REQUEUE_LABEL: str(times)}


async def test_the_count_is_written_on_the_running_message(broker: QueueBroker) -> None:
    current = message()
    await requeue(broker, current)
    assert current.labels == {REQUEUE_LABEL: "1"}


@pytest.mark.parametrize("count", [None, "", 0, "0"])
async def test_a_count_without_a_number_begins_anew(
    count: Any,
    broker: QueueBroker,
) -> None:
    again = await requeue(broker, message(**{REQUEUE_LABEL: count}))
    assert again.labels[REQUEUE_LABEL] == "1"


class RefusingMiddleware(TaskiqMiddleware):
    """Must not be asked."""

    def pre_send(self, message: TaskiqMessage) -> TaskiqMessage:
        raise NotImplementedError

    def post_send(self, message: TaskiqMessage) -> None:
        raise NotImplementedError


async def test_requeueing_runs_no_middleware(broker: QueueBroker) -> None:
    broker.add_middlewares(RefusingMiddleware())
    assert (await requeue(broker, message())).task_id == "id"


async def test_requeueing_uses_the_formatter_of_the_broker(broker: QueueBroker) -> None:
    broker.with_formatter(JSONFormatter())

    with pytest.raises(NoResultError):
        await Context(message(), broker).requeue()

    [sent] = broker.take_all()
    assert sent.message.startswith(b'{"task_id":"id",')
    assert (sent.task_id, sent.task_name) == ("id", "name")


async def test_a_message_that_cannot_be_sent_again_fails_with_the_reason(
    broker: QueueBroker,
) -> None:
    current = message()
    current.args = [object()]
    with pytest.raises(UnsendableArgumentError, match=r"args\[0\] is of type object"):
        await Context(current, broker).requeue()
    assert broker.take_all() == []


label_values = (
    st.binary(max_size=8)
    | st.integers()
    | st.booleans()
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
)


@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), label_values))
def test_labels_of_every_type_survive_being_requeued(
    labels: dict[str, Any],
) -> None:
    async def send_and_requeue() -> None:
        broker = QueueBroker()
        await AsyncKicker("name", broker, dict(labels)).kiq()
        current = await received(broker)
        for times in ("1", "2"):
            current = await requeue(broker, current)
            assert current.labels == {**labels, REQUEUE_LABEL: times}
            kinds = {name: type(current.labels[name]) for name in labels}
            assert kinds == {name: type(value) for name, value in labels.items()}

    asyncio.run(send_and_requeue())


@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), label_values))
def test_a_requeued_message_is_sent_with_text_for_labels(
    labels: dict[str, Any],
) -> None:
    """Brokers that pass labels on as headers take nothing else."""

    async def sent_twice() -> None:
        broker = QueueBroker()
        await AsyncKicker("name", broker, dict(labels)).kiq()
        [first] = broker.take_all()
        current = broker.formatter.loads(first.message)
        current.parse_labels()
        with pytest.raises(NoResultError):
            await Context(current, broker).requeue()
        [again] = broker.take_all()
        assert again.labels == {**first.labels, REQUEUE_LABEL: "1"}

    asyncio.run(sent_twice())


@pytest.mark.parametrize("value", [b"\x00\xff", float("inf"), 3, True, ["a", None]])
async def test_what_a_middleware_put_into_the_labels_survives_being_requeued(
    value: object,
    broker: QueueBroker,
) -> None:
    again = await requeue(broker, message(added=value))
    assert again.labels["added"] == value


async def test_labels_of_the_running_message_stay_parsed(broker: QueueBroker) -> None:
    current = message(raw=b"\xff")
    await requeue(broker, current)
    assert current.labels["raw"] == b"\xff"
