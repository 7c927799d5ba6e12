"""taskiq-aio-pika, with many messages in one write.

The class, its arguments, the exchanges, the queues and what is in them are those of
`taskiq_aio_pika`, so that processes with and without this module share them.

The plugin makes each message, and a channel of aiormq is asked to publish it. That
writes one after the other, and waits in between. What replaces it here, on the channels
of this broker, makes the same frames, and writes those of many messages at once. So it
is with acknowledgements. It needs more of a channel than aiormq documents: a channel
that has not all of it is left as it is.
"""

# pyright: reportMissingImports=false, reportMissingTypeStubs=false
# pyright: reportUntypedBaseClass=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# The plugin may not be installed where types are checked, and is typed in part.

from __future__ import annotations

import asyncio
import re
from contextlib import aclosing, asynccontextmanager
from functools import partial
from random import getrandbits
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast
from uuid import UUID

from taskiq.adapters._bulk import in_chunks, plugin_is_missing
from taskiq.bulk import GroupCommit, run_bounded
from taskiq.outcome import Failed
from taskiq.receiver.containment import Steps, contain, first_step

try:
    import aiormq.abc
    import taskiq_aio_pika as plugin
    from aiormq.exceptions import (
        ChannelInvalidStateError,
        ChannelPreconditionFailed,
        PublishError,
    )
    from pamqp import commands
    from pamqp.body import ContentBody
    from pamqp.frame import marshal
    from pamqp.header import ContentHeader
except ImportError as exc:
    raise plugin_is_missing(__name__, "taskiq-aio-pika") from exc

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from taskiq.acks import AckableMessage
    from taskiq.message import BrokerMessage

__all__ = ["AioPikaBroker", "Exchange", "Queue", "QueueType"]

#: What a broker is made with, so that one import line is enough.
Exchange, Queue, QueueType = plugin.Exchange, plugin.Queue, plugin.QueueType

_Value = TypeVar("_Value")

#: What is needed of a channel beside the methods it has for everybody.
_NEEDED: Final = frozenset(
    {
        "closing",
        "confirmations",
        "connection",
        "delivery_tag",
        "lock",
        "loop",
        "max_content_size",
        "message_id_delivery_tag",
        "number",
        "publisher_confirms",
        "write_queue",
    },
)
#: What the method of a message is made of.
_WAY: Final = ("exchange", "routing_key", "mandatory", "immediate")
#: Bytes of a routing key, at most. What is longer the channel refuses by itself.
_LONGEST_KEY: Final = 255
#: Milliseconds that a message may wait, at most: ten years. More, or less than none, is
#: what the server closes the channel for, with all that is under way on it.
_LONGEST_WAIT: Final = 315_360_000_000
#: Bytes of a message that shares a channel with others, at most.
_LARGEST_SHARED: Final = 4 * 1024 * 1024
#: What a server says of a message that is too large, with the bytes that it takes.
_TOO_LARGE: Final = re.compile(r"max size (\d+)")
#: What is around the content of each frame.
_EMPTY_FRAME: Final = marshal(ContentBody(b""), 0)


class AioPikaBroker(plugin.AioPikaBroker):
    """`taskiq_aio_pika.AioPikaBroker`, with many messages in one write.

    A message that no queue takes is an error: the plugin says nothing, and it is lost.
    """

    async def startup(self) -> None:
        """Start as the plugin does."""
        await super().startup()
        publish_together = partial(_publish_together, sizes=_Sizes())
        await publish_together(self.write_channel)
        # The channel is another one after its connection was lost.
        reopened: Any = getattr(self.write_channel, "reopen_callbacks", None)
        if reopened is not None:
            reopened.add(publish_together)

    async def kick_many(
        self,
        messages: Sequence[BrokerMessage],
    ) -> list[Exception | None]:
        """Send many messages; each fails for itself.

        A thousand are under way at most, and the first of them are with the server
        while the last are made.
        """
        return await in_chunks(self._kick_all, messages, _size)

    async def _kick_all(
        self,
        messages: Sequence[BrokerMessage],
    ) -> list[Exception | None]:
        return await run_bounded(self.kick, messages, len(messages))

    async def listen(self) -> AsyncGenerator[AckableMessage, None]:
        """Receive messages, which can be acknowledged together."""
        async with aclosing(super().listen()) as messages:
            async for message in messages:
                message.ack_group = _acks_of(message)
                yield message


def _size(message: BrokerMessage) -> int:
    return len(message.message)


# -- Channels -------------------------------------------------------------------------


def _is_known(channel: Any) -> bool:
    """Whether a channel is one that frames can be written for."""
    frame: Any = getattr(aiormq.abc, "ChannelFrame", None)
    fields = getattr(frame, "__dataclass_fields__", ())
    return {"payload", "should_close", "drain_future"}.issubset(fields) and all(
        hasattr(channel, name) for name in _NEEDED
    )


async def _put(channel: Any, payload: bytes) -> asyncio.Future[None]:
    """Give frames to the connection of a channel, to be written at once.

    Nothing else happens in the event loop between that and the return of this.

    :returns: done when they are written, and the connection takes more.
    :raises ChannelInvalidStateError: the channel was closed.
    """
    # The connection takes leave of it before the channel knows that the server has
    # closed it. A frame for a channel that is closed would cost the connection.
    is_there = channel.connection.channels.get(channel.number) is channel
    if channel.is_closed or not is_there:
        raise ChannelInvalidStateError(f"{channel!r} closed")
    written: asyncio.Future[None] = channel.create_future()
    frame: Any = aiormq.abc.ChannelFrame(
        payload=payload, should_close=False, drain_future=written
    )
    try:
        await channel.write_queue.put(frame)
    except BaseException:
        written.cancel()
        raise
    return written


async def _promised(future: asyncio.Future[_Value]) -> _Value:
    """Await what a channel promises.

    :raises ChannelInvalidStateError: the channel was closed, which cancels what it has
        promised. Nobody else is to be taken for cancelled.
    """
    try:
        return await future
    except asyncio.CancelledError as exc:
        is_promise_broken = (
            future.done() and not future.cancelled() and future.exception() is exc
        )
        if not is_promise_broken:  # this asyncio task was cancelled
            raise
        raise _as_error(exc) from exc


def _as_error(reason: BaseException | None) -> Exception:
    """Say why a channel was closed, with what nobody takes for a cancellation."""
    if isinstance(reason, Exception):
        return reason
    return ChannelInvalidStateError("the channel was closed meanwhile")


# -- Publishing -----------------------------------------------------------------------


async def _publish_together(channel: Any, *, sizes: _Sizes) -> None:
    """Let a channel of aio-pika write many messages at once."""
    ask: Any = getattr(channel, "get_underlay_channel", None)  # not in 9.0
    underlay: Any = None if ask is None else await ask()
    if _is_known(underlay) and underlay.publisher_confirms:
        underlay.basic_publish = _Publishes(underlay, sizes).basic_publish


class _Sizes:
    """Which messages share a channel.

    A server closes the channel for one that is larger than its `max_message_size`,
    and does not say beforehand how much that is.

    :ivar largest_shared: bytes of a message that does, at most.
    """

    def __init__(self) -> None:
        self.largest_shared = _LARGEST_SHARED

    def learn(self, reason: BaseException | None) -> bool:
        """Say whether a channel was closed for a size, and heed how much it was."""
        found = _TOO_LARGE.search(str(reason))
        if found is None or not isinstance(reason, ChannelPreconditionFailed):
            return False
        self.largest_shared = min(self.largest_shared, int(found[1]))
        return True


def _refuse(properties: Any, size: int, most: int) -> None:
    """Refuse a message that the server closes a channel or the connection for.

    :param size: bytes of the frame with the properties.
    :param most: bytes that a frame carries at most; less than 0 is no limit.
    :raises ValueError: all others that are under way would fail with it.
    """
    carried = size - len(_EMPTY_FRAME)
    if 0 < most < carried:
        raise ValueError(
            f"the labels of a message are sent in one frame of {most} bytes at most, "
            f"got {carried}",
        )
    wait = properties.expiration
    if wait is not None and not 0 <= int(wait) <= _LONGEST_WAIT:
        raise ValueError(f"a message cannot be delayed by {wait} ms")


class _Confirmation(asyncio.Future[Any]):
    """What became of a message; told once more, or too late, it says nothing.

    The channel tells of a message that comes back though its sender has just been
    cancelled. An error there would end what reads the channel, and all others wait
    for ever.
    """

    def set_result(self, result: Any, /) -> None:
        """Take it, if somebody still waits for it."""
        if not self.done():
            super().set_result(result)

    def set_exception(self, exception: type | BaseException, /) -> None:
        """Take it, if somebody still waits for it."""
        if not self.done():
            super().set_exception(exception)


class _Publish:
    """One message on its way.

    :ivar id: names it if the server returns it.
    :ivar confirmed: done when it is known what became of it.
    :ivar tag: names it when the server confirms it; 0 while it is not written.
    """

    __slots__ = ("confirmed", "frames", "id", "tag")

    def __init__(
        self, frames: bytes, message_id: str, confirmed: asyncio.Future[Any]
    ) -> None:
        self.frames = frames
        self.id = message_id
        self.confirmed = confirmed
        self.tag = 0

    def size(self) -> int:
        """Give the bytes of it."""
        return len(self.frames)


class _Publishes:
    """Publishes messages on a channel: those of the same moment by one write.

    Each has its own confirmation of the server. Nobody waits for those of others: while
    they are under way the next ones are written.
    """

    def __init__(self, channel: Any, sizes: _Sizes) -> None:
        self._channel = channel
        self._sizes = sizes
        #: One large message at a time: two need as much memory, and are not sooner.
        self._apart = asyncio.Lock()
        self._publish_alone = channel.basic_publish
        self._group = GroupCommit(
            partial(in_chunks, self._write, size_of=_Publish.size)
        )
        #: Those that are written and not confirmed.
        self._open: set[_Publish] = set()
        #: What the last message began with, and the arguments that it is made of.
        self._method: tuple[Any, bytes] = (None, b"")
        channel.closing.add_done_callback(self._lose)

    async def basic_publish(
        self,
        body: bytes,
        *,
        exchange: str = "",
        routing_key: str = "",
        properties: Any = None,
        mandatory: bool = False,
        immediate: bool = False,
        timeout: float | None = None,
        **options: Any,
    ) -> Any:
        """Publish a message, as the channel does; what is unusual it does itself.

        :raises PublishError: no queue takes it.
        """
        way = (exchange, routing_key, mandatory, immediate)
        if (
            options
            or timeout is not None
            or properties is None
            or len(routing_key) > _LONGEST_KEY
        ):
            return await self._publish_alone(
                body,
                **dict(zip(_WAY, way, strict=True)),
                properties=properties,
                timeout=timeout,
                **options,
            )
        if not properties.message_id:
            # As the channel does, which asks the system for nothing.
            properties.message_id = UUID(int=getrandbits(128), version=4).hex
        is_shared = len(body) <= self._sizes.largest_shared
        publish = self._publish if is_shared else self._publish_apart
        reply: Any = await publish(way, properties, body)
        if isinstance(reply, aiormq.abc.DeliveredMessage):
            raise PublishError(reply, cast("Any", reply.delivery))
        return reply

    async def _publish_apart(
        self, way: tuple[Any, ...], properties: Any, body: bytes
    ) -> Any:
        """Publish a message on a channel of its own, which it may cost.

        :raises ValueError: it is larger than the server takes.
        """
        async with self._apart, self._own_channel() as channel:
            own = _Publishes(channel, self._sizes)
            try:
                return await own._publish(way, properties, body)
            except ChannelPreconditionFailed as exc:
                if not self._sizes.learn(exc):
                    raise
                raise ValueError(
                    f"the server takes no message of {len(body)} bytes; its "
                    f"max_message_size, in rabbitmq.conf, says what it takes: {exc}",
                ) from exc

    @asynccontextmanager
    async def _own_channel(self) -> AsyncGenerator[Any]:
        """Open a channel for one message. A connection that ends cancels nobody."""
        opens = partial(self._channel.connection.channel, on_return_raises=False)
        channel = await contain(opens)
        if isinstance(channel, Failed):
            raise _as_error(channel.error) from channel.error
        try:
            yield channel
        finally:
            await contain(channel.close)

    async def _publish(self, way: tuple[Any, ...], properties: Any, body: bytes) -> Any:
        # Who cannot be sent fails here, alone.
        frames = self._frames(way, properties, body)
        confirmed = _Confirmation(loop=self._channel.loop)
        publish = _Publish(frames, properties.message_id, confirmed)
        try:
            await self._group.submit(publish)
            return await confirmed
        finally:
            self._end(publish)

    def _frames(self, way: tuple[Any, ...], properties: Any, body: bytes) -> bytes:
        number = self._channel.number
        # A server may set no limit, which is 0 less what is around each frame.
        most = max(self._channel.max_content_size, 0) or max(len(body), 1)
        made_of, method = self._method
        if made_of != way:  # most messages go the same way as the one before
            publish = commands.Basic.Publish(**dict(zip(_WAY, way, strict=True)))
            method = marshal(publish, number)
            self._method = (way, method)
        header = marshal(
            ContentHeader(properties=properties, body_size=len(body)), number
        )
        _refuse(properties, len(header), self._channel.max_content_size)
        pieces = (body[begin : begin + most] for begin in range(0, len(body), most))
        bodies = [marshal(ContentBody(piece), number) for piece in pieces]
        return b"".join([method, header, *bodies])

    async def _write(self, publishes: Sequence[_Publish]) -> list[None]:
        async with self._channel.lock:
            payload = b"".join([publish.frames for publish in publishes])
            written = await _put(self._channel, payload)
            for publish in publishes:
                self._expect(publish)
            await _promised(written)
        return [None] * len(publishes)

    def _expect(self, publish: _Publish) -> None:
        """Wait for the confirmation of a message, the next one of the channel."""
        channel = self._channel
        channel.delivery_tag += 1
        publish.tag = channel.delivery_tag
        channel.confirmations[publish.tag] = publish.confirmed
        if not publish.confirmed.done():  # else nobody waits for it any more
            channel.message_id_delivery_tag[publish.id] = publish.tag
            self._open.add(publish)

    def _end(self, publish: _Publish) -> None:
        """Let go of a message whose sender waits for it no longer."""
        self._open.discard(publish)
        tags: dict[str, int] = self._channel.message_id_delivery_tag
        if tags.get(publish.id) == publish.tag:  # else it was sent once more since
            del tags[publish.id]
        # What became of it meanwhile may be an error that nobody asks for.
        if not publish.confirmed.cancel() and not publish.confirmed.cancelled():
            publish.confirmed.exception()

    def _lose(self, closing: asyncio.Future[Any]) -> None:
        """Nothing more is confirmed: the channel was closed, or its connection lost."""
        reason = None if closing.cancelled() else closing.exception()
        self._sizes.learn(reason)
        for publish in self._open:
            publish.confirmed.set_exception(_as_error(reason))


# -- Acknowledging --------------------------------------------------------------------


def _acks_of(message: AckableMessage) -> _Acks | None:
    """Give what acknowledges a message together with others of its channel."""
    incoming: Any = getattr(message.ack, "__self__", None)
    channel: Any = getattr(incoming, "channel", None)
    known: Any = getattr(getattr(channel, "basic_ack", None), "__self__", None)
    if isinstance(known, _Acks):
        return known
    return _Acks(channel) if _is_known(channel) else None


class _Acks:
    """Acknowledges messages of a channel: those of the same moment by one write.

    Each is named: to acknowledge all up to one would include those that still run.
    """

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self._group = GroupCommit(partial(in_chunks, self._write))
        #: What `ack` is about to write.
        self._noted: list[bytes] | None = None
        channel.basic_ack = self.basic_ack

    async def basic_ack(
        self,
        delivery_tag: int,
        multiple: bool = False,
        wait: bool = True,
    ) -> None:
        """Acknowledge a message, as the channel does, but for `wait`: always."""
        del wait
        method = commands.Basic.Ack(delivery_tag=delivery_tag, multiple=multiple)
        frame = marshal(method, self._channel.number)
        if self._noted is None:
            await self._group.submit(frame)
        else:
            self._noted.append(frame)

    async def ack(
        self,
        messages: Sequence[AckableMessage],
    ) -> list[Exception | None]:
        """Acknowledge messages by one write."""
        noted: list[bytes] = []
        self._noted = noted
        try:
            # Each does so itself, as it is to know: but what it would write is noted.
            steps = [first_step(message.ack) for message in messages]
        finally:
            self._noted = None
        written = await in_chunks(self._write, noted)
        error = next((each for each in written if each is not None), None)
        ended = [
            await each.finish() if isinstance(each, Steps) else each for each in steps
        ]
        return [
            _as_error(each.error) if isinstance(each, Failed) else error
            for each in ended
        ]

    async def _write(self, frames: Sequence[bytes]) -> list[None]:
        written = await _put(self._channel, b"".join(frames))
        await _promised(written)
        return [None] * len(frames)
