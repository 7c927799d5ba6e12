"""What only the plugin of a broker knows about the place it reads from.

Some clients wait for ever when what they read from is gone, and some brokers cannot be
started again after their `shutdown`. Both is looked up on the attributes of the brokers
known to be so. A broker without them is taken at its word.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from taskiq.abc.broker import AsyncBroker

_NOT_FOUND: Final = 404

#: Of taskiq-postgres: what is kept, and what says that `shutdown` has closed it.
_CLOSED_BY_SHUTDOWN: Final = {
    "_write_pool": "_owns_write_pool",
    "_read_conn": "_owns_read_conn",
}


class Source:
    """Whether a broker that was just started still reads from what it found then."""

    def __init__(self, broker: AsyncBroker) -> None:
        self._broker: Any = broker
        self._is_known = False
        #: Where the consumer pushes messages to; `None` where they are pulled.
        self._subject: object = None

    async def lost(self) -> str | None:
        """Say what is gone that the broker would wait for in vain, if anything is.

        A server that does not answer is no loss: the client waits for it.
        """
        connection = getattr(self._broker, "_read_conn", None)
        if connection is not None and _is_closed(connection):
            return "the connection that tells of messages was closed"
        consumer = getattr(self._broker, "consumer", None)
        ask = getattr(consumer, "consumer_info", None)
        return None if ask is None else await self._lost_consumer(ask)

    async def _lost_consumer(self, ask: Any) -> str | None:
        try:
            info: Any = await ask()
        except Exception as exc:  # noqa: BLE001 - whatever the client makes of it
            if getattr(exc, "code", None) == _NOT_FOUND:
                return "the JetStream consumer or its stream was deleted"
            return None
        # Who pulls asks for messages by the name of the consumer, and who is pushed to
        # reads what it pushes to: not when it was made, which is another moment after
        # each restart of some servers.
        config = getattr(info, "config", None)
        subject: object = getattr(config, "deliver_subject", None)
        if not self._is_known:
            self._is_known, self._subject = True, subject
        if subject != self._subject:
            return "the JetStream consumer was deleted and made anew"
        return None


def is_disconnected(broker: AsyncBroker) -> bool:
    """Whether a client is known to be without its server, and connects again by itself.

    Who listens through it waits meanwhile, and is told nothing.
    """
    robust = getattr(getattr(broker, "read_conn", None), "connected", None)
    if isinstance(robust, asyncio.Event):  # of taskiq-aio-pika
        return not robust.is_set()
    client = getattr(broker, "client", None)  # of taskiq-nats
    return getattr(client, "is_reconnecting", False) is True or has_given_up(broker)


def has_given_up(broker: AsyncBroker) -> bool:
    """Whether a client has tried in vain to connect again, and does so no longer.

    What reads through it may end then as if there was nothing more to read.
    """
    client = getattr(broker, "client", None)  # of taskiq-nats, after two minutes
    return getattr(client, "is_closed", False) is True


def _is_closed(connection: Any) -> bool:
    """Ask a connection of any driver: some have a method, some a value."""
    closed = getattr(connection, "is_closed", getattr(connection, "closed", False))
    return bool(closed() if callable(closed) else closed)


def forget_closed(broker: AsyncBroker) -> None:
    """Let a broker make anew what it would use though its `shutdown` closed it."""
    for kept, is_owned in _CLOSED_BY_SHUTDOWN.items():
        if getattr(broker, is_owned, False):
            setattr(broker, kept, None)
