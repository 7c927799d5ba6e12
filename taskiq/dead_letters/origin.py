"""Which queue a message was delivered from, as far as anybody knows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from taskiq.abc.broker import AsyncBroker
    from taskiq.acks import AckableMessage


def origin_of(
    broker: AsyncBroker,
    raw: bytes | AckableMessage,
    labels: Mapping[str, Any],
) -> str:
    """Name the queue that a message was delivered from.

    :param raw: what the broker has delivered.
    :param labels: of the message; none if it cannot be read.
    :returns: its name, or that of the stream or subject; empty if it is not known.
    """
    known = (
        _origin_in_rabbitmq(broker, raw)
        or labels.get("queue_name")
        or getattr(broker, "queue_name", None)
        or getattr(broker, "subject", None)
    )
    return str(known or "")


def _origin_in_rabbitmq(broker: Any, raw: Any) -> str | None:
    """Name the queue of a broker that has many, by the routing key of the message.

    Not by its `x-death`: that names the queue in which a delayed message has waited.
    """
    queues: list[Any] = getattr(broker, "_task_queues", [])
    if len(queues) == 1:
        name: str = queues[0].name
        return name
    message: Any = getattr(getattr(raw, "ack", None), "__self__", None)
    key: str | None = getattr(message, "routing_key", None)
    names = {each.routing_key or each.name: each.name for each in queues}
    # One that was bound with a pattern is not found: then what it was sent to is said.
    return names.get(key, key)
