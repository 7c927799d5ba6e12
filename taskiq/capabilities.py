"""What a broker can do with a message beside acknowledging it, and who says so.

The optional fields of :class:`~taskiq.acks.AckableMessage` are filled in here: what the
broker gave explicitly stays, then the broker is asked (an adapter, the in-memory
broker), then the client's own message is recognised by its class, where the broker
passed that message's own ``ack``. No client is imported for it: one that is not loaded
has made no message.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

from taskiq.acks import AckableMessage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from taskiq.abc.broker import AsyncBroker

__all__ = [
    "Capabilities",
    "better_import",
    "delay_label",
    "deliveries_of",
    "equip",
    "lease_seconds",
    "resolve",
]


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a broker can do with messages; who says so, or `None` where it cannot.

    :ivar nack: a message is given back and delivered again.
    :ivar delayed_nack: it can be given back for a time, kept by the broker.
    :ivar reject: a message is ended, to the broker's own place for dead letters.
    :ivar extend: the lease of a message is renewed.
    :ivar deliveries: it is known how often a message was delivered.
    """

    nack: str | None = None
    delayed_nack: str | None = None
    reject: str | None = None
    extend: str | None = None
    deliveries: str | None = None

    def __str__(self) -> str:
        """Write it on one line, for the log."""
        told = {each.name: getattr(self, each.name) for each in fields(self)}
        words = [
            f"can {_list(name for name, each in told.items() if each == who)} ({who})"
            for who in dict.fromkeys(told.values())
            if who
        ]
        if cannot := _list(name for name, who in told.items() if not who):
            words.append(f"cannot {cannot}")
        return "; ".join(words)


def _list(names: Iterable[str]) -> str:
    return ", ".join(_TITLES[name] for name in names)


_TITLES: Final = {
    "nack": "give back",
    "delayed_nack": "give back for a time",
    "reject": "reject",
    "extend": "extend leases",
    "deliveries": "count deliveries",
}


def resolve(broker: AsyncBroker) -> Capabilities:
    """Say what a broker can do with messages, as far as it is known without any.

    A broker of one's own says it with an attribute `message_capabilities`: names of
    fields of `Capabilities`.
    """
    kind = type(broker)
    known = _CLIENT_OF_BROKER.get(_known_name(kind))
    found: dict[str, str] = {}
    if known is not None:
        found = dict.fromkeys(known.gives, known.title)
    own = getattr(broker, "message_capabilities", ())
    found.update(dict.fromkeys(own, f"{kind.__module__}.{kind.__qualname__}"))
    return Capabilities(**found)


def better_import(broker: AsyncBroker) -> str | None:
    """Say which import to change, for a broker whose adapter can do more.

    :returns: `None` if there is none, or the broker is of it.
    """
    if any(each.__module__.startswith(_ADAPTERS) for each in type(broker).__mro__):
        return None
    for each in type(broker).__mro__:
        package, name = each.__module__.partition(".")[0], each.__name__
        if (package, name) in _ADAPTED:
            origin, adapter = _ADAPTED[package, name]
            return (
                f"with `from {_ADAPTERS}{adapter} import {name}` "
                f"in place of `from {origin} import {name}`"
            )
    return None


def equip(
    broker: AsyncBroker, message: bytes | AckableMessage
) -> AckableMessage | None:
    """Fill in the optional fields of a message, as far as anybody knows them.

    :param message: what the broker's `listen` yielded; it is changed in place. What is
        filled in already stays, so that it may be asked for more than once.
    :returns: the message; `None` if it is bytes, of which nothing is known.
    """
    ask: Any = getattr(broker, "equip_message", None)
    equipped: Any = message if ask is None else ask(message)
    if not isinstance(equipped, AckableMessage):
        return None
    owner: Any = getattr(equipped.ack, "__self__", None)
    client = _client_of(owner.__class__)
    if client is not None:
        for name, value in client.fill(owner).items():
            if getattr(equipped, name) is None or name == "nack_delays":
                setattr(equipped, name, value)
    return equipped


def delay_label(broker: object, seconds: float) -> float:
    """Write a delay as the label `delay`, which some brokers read when they send.

    :returns: whole seconds as an int. A broker that reads nothing else waits up to a
        second longer.
    """
    packages = {kind.__module__.partition(".")[0] for kind in type(broker).__mro__}
    if seconds.is_integer() or not packages.isdisjoint(_WHOLE_SECONDS):
        return math.ceil(seconds)
    return seconds


async def deliveries_of(message: AckableMessage | None) -> int | None:
    """Say how often an equipped message was delivered, 1 for the first time.

    It is at least that often where the broker only knows that it was delivered again.

    :returns: `None` if that is not known.
    :raises Exception: what asking the broker raises.
    """
    told = None if message is None else message.deliveries
    return await told() if callable(told) else told


async def lease_seconds(broker: AsyncBroker) -> float | None:
    """Ask a broker whose messages do not say it how long their leases are.

    :returns: seconds, `None` if that is not known.
    :raises Exception: what asking the server raises.
    """
    consumer: Any = getattr(broker, "consumer", None)
    ask: Any = getattr(consumer, "consumer_info", None)
    if _known_name(type(broker)) not in _JETSTREAM or ask is None:
        return None
    info: Any = await ask()
    seconds: float | None = info.config.ack_wait
    return seconds


# -- Clients, recognised by their classes ---------------------------------------------


@dataclass(frozen=True, slots=True)
class _Client:
    """A client library.

    :ivar title: its name for people.
    :ivar message: module and name of the class of its messages.
    :ivar fill: gives the fields of a message of it.
    :ivar gives: the capabilities that come of these fields.
    """

    title: str
    message: tuple[str, str]
    fill: Callable[[Any], Mapping[str, Any]]
    gives: frozenset[str]


def _fill_aio_pika(message: Any) -> Mapping[str, Any]:
    def nack(_: float | None) -> Any:
        return message.nack(requeue=True)

    def reject(_: str) -> Any:
        # There is no place for a reason: x-death says "rejected".
        return message.reject(requeue=False)

    return {
        "nack": nack,
        "reject": reject,
        "deliveries": _count_of_rabbitmq(message),
    }


def _count_of_rabbitmq(message: Any) -> int:
    """Count deliveries: quorum queues do, others know only that there was one."""
    headers: dict[str, Any] = message.headers or {}
    returned = int(headers.get("x-delivery-count") or 0)
    return max(returned + 1, 2 if message.redelivered else 1)


def _fill_nats(message: Any) -> Mapping[str, Any]:
    def nack(delay: float | None) -> Any:
        return message.nak(delay=delay)

    def reject(_: str) -> Any:
        return message.term()

    return {
        "nack": nack,
        "nack_delays": True,
        "reject": reject,
        "extend": message.in_progress,
        "deliveries": message.metadata.num_delivered,
    }


_AIO_PIKA: Final = _Client(
    "aio_pika",
    ("aio_pika.abc", "AbstractIncomingMessage"),
    _fill_aio_pika,
    frozenset({"nack", "reject", "deliveries"}),
)
_NATS: Final = _Client(
    "nats-py",
    ("nats.aio.msg", "Msg"),
    _fill_nats,
    frozenset({"nack", "delayed_nack", "reject", "extend", "deliveries"}),
)

_ADAPTERS: Final = "taskiq.adapters."
#: Brokers of plugins whose adapters can do more with messages, by package and name:
#: where they are imported from, and the module of the adapter.
_ADAPTED: Final = {
    ("taskiq_redis", "RedisStreamBroker"): ("taskiq_redis", "redis"),
    ("taskiq_redis", "RedisStreamClusterBroker"): ("taskiq_redis", "redis"),
    ("taskiq_redis", "RedisStreamSentinelBroker"): ("taskiq_redis", "redis"),
    ("taskiq_pg", "AsyncpgBroker"): ("taskiq_pg.asyncpg", "postgres"),
}

#: Plugins whose brokers read a delay as an int.
_WHOLE_SECONDS: Final = frozenset({"taskiq_pg"})

_JETSTREAM: Final = frozenset(
    {
        ("taskiq_nats.broker", "PullBasedJetStreamBroker"),
        ("taskiq_nats.broker", "PushBasedJetStreamBroker"),
    },
)
#: Brokers that are known to pass their client's own `ack`, by module and name.
_CLIENT_OF_BROKER: Final[Mapping[Any, _Client]] = {
    ("taskiq_aio_pika.broker", "AioPikaBroker"): _AIO_PIKA,
    **dict.fromkeys(_JETSTREAM, _NATS),
}


def _known_name(broker: type[Any]) -> tuple[str, str] | None:
    """Give the name of the known broker that a class is, or is derived from."""
    for each in broker.__mro__:
        if (name := (each.__module__, each.__name__)) in _CLIENT_OF_BROKER:
            return name
    return None


#: By the class of what has the `ack`; most classes are of no client.
_client_by_class: WeakKeyDictionary[type[Any], _Client | None] = WeakKeyDictionary()


def _client_of(kind: type[Any]) -> _Client | None:
    if kind not in _client_by_class:
        found = (each for each in (_AIO_PIKA, _NATS) if _is_message_of(each, kind))
        _client_by_class[kind] = next(found, None)
    return _client_by_class[kind]


def _is_message_of(client: _Client, kind: type[Any]) -> bool:
    module, name = client.message
    base: Any = getattr(sys.modules.get(module), name, None)
    return isinstance(base, type) and issubclass(kind, base)
