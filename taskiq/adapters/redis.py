"""taskiq-redis, with many operations in one round trip.

The classes, their arguments, the keys and what is in them are those of `taskiq_redis`,
so that processes with and without this module share queues and results.
"""

# pyright: reportMissingImports=false, reportMissingTypeStubs=false
# pyright: reportUntypedBaseClass=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportPrivateUsage=false, reportIncompatibleVariableOverride=false
# The plugin may not be installed where types are checked, and is typed in part.

from __future__ import annotations

import asyncio
import heapq
import logging
import time
from abc import abstractmethod
from collections import defaultdict, deque
from contextlib import asynccontextmanager, nullcontext, suppress
from functools import cached_property, partial
from itertools import chain
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from taskiq.abc.broker import AsyncBroker
from taskiq.aborts import AbortStore
from taskiq.acks import AckableMessage
from taskiq.adapters._aborts import as_payload, hear_payload
from taskiq.adapters._bulk import in_chunks, plugin_is_missing
from taskiq.adapters._feed import Waiters, payloads
from taskiq.adapters._results import GroupedResults, ToldResults
from taskiq.adapters._unique import GroupedUniqueKeys
from taskiq.bulk import GroupCommit, cancel_all
from taskiq.models import maker_of
from taskiq.rates import LATENESS, RateStore, Turns
from taskiq.receiver.tasks import uninterrupted

try:
    import redis.asyncio as client
    import taskiq_redis as plugin
except ImportError as exc:
    raise plugin_is_missing(__name__, "taskiq-redis") from exc

if TYPE_CHECKING:
    from collections.abc import (
        AsyncGenerator,
        Callable,
        Collection,
        Coroutine,
        Iterable,
        Sequence,
    )
    from contextlib import AbstractAsyncContextManager
    from typing import TypeAlias

    from taskiq.message import BrokerMessage
    from taskiq.rates import Request
    from taskiq.unique import Claim, UniqueStore

    _Read: TypeAlias = Callable[..., Coroutine[Any, Any, Iterable[Any]]]

__all__ = [
    "ListQueueBroker",
    "ListQueueClusterBroker",
    "ListQueueSentinelBroker",
    "PubSubBroker",
    "PubSubSentinelBroker",
    "RedisAsyncClusterResultBackend",
    "RedisAsyncResultBackend",
    "RedisAsyncSentinelResultBackend",
    "RedisStreamBroker",
    "RedisStreamClusterBroker",
    "RedisStreamSentinelBroker",
]

_ReturnType = TypeVar("_ReturnType")

logger = logging.getLogger("taskiq.adapters")

#: Milliseconds a read waits for messages at most. It is shorter than the time after
#: which clients give up a read, 5 s by default since redis-py 8.
_LONGEST_BLOCK: Final = 2000
#: Seconds between two searches for messages that nobody is about to acknowledge.
_LONGEST_PAUSE: Final = 5.0
#: Seconds that a stop waits for a read, and for what was read to be given back.
_LONGEST_STOP: Final = 3.0
#: Seconds between two calls to the server to end a read.
_PAUSE_OF_CALLS: Final = 0.05
#: What a server that is away makes operations fail with.
_TROUBLE: Final = (OSError, asyncio.TimeoutError, client.RedisError)
#: Where a search begins, and what it says when it has seen all.
_BEGINNING: Final = "0-0"

#: Bytes a read of new messages had, up to which the next one is packed.
_PACKED: Final = 1 << 20
#: Reads new messages, and gives for each stream its name, a line of ids and sizes, and
#: the bytes of all messages in a row. As they are, each message is five replies, which
#: a client in Python parses for longer than a worker works on the message.
_READ_PACKED: Final = """
local streams = {}
for number, key in ipairs(KEYS) do
    streams[number], streams[#KEYS + number] = key, ARGV[3 + number]
end
local found = redis.call('XREADGROUP', 'GROUP', ARGV[1], ARGV[2], 'COUNT', ARGV[3],
    'STREAMS', unpack(streams)) or {}
local packed = {}
for _, stream in ipairs(found) do
    local sizes, all = {}, {}
    for number, entry in ipairs(stream[2]) do
        local fields, data = entry[2], ''
        for field = 1, #fields, 2 do
            if fields[field] == 'data' then data = fields[field + 1] end
        end
        sizes[number], all[number] = entry[1] .. ' ' .. #data, data
    end
    packed[#packed + 1] = stream[1]
    packed[#packed + 1] = table.concat(sizes, ' ')
    packed[#packed + 1] = table.concat(all)
end
return packed
"""
#: Takes a key if nobody holds it; gives the token of who holds it then. `SET` does both
#: in one only from Redis 7 on.
_CLAIM: Final = """
local holder = redis.call('GET', KEYS[1])
if holder then return holder end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return ARGV[1]
"""
#: Holds a key on that is held under this token.
_RENEW: Final = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
"""
#: Lets go of a key that is held under this token.
_RELEASE: Final = """
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
"""
#: Reserves turns of a task, by the clock of the server, in microseconds. The key has
#: the moment of the turn after them, the theoretical arrival time of the Generic Cell
#: Rate Algorithm (ITU-T I.371). Whole numbers as text: Lua would round them.
_RESERVE: Final = """
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local interval, count = tonumber(ARGV[1]), tonumber(ARGV[2])
local first = tonumber(redis.call('GET', KEYS[1]) or 0)
if ARGV[3] ~= '' then
    first = math.max(first, now - tonumber(ARGV[3]) + interval)
end
if now - first > tonumber(ARGV[4]) then first = now end
local after = string.format('%.0f', first + count * interval)
local milliseconds = math.ceil((tonumber(after) - now) / 1000) + 1000
redis.call('SET', KEYS[1], after, 'PX', string.format('%.0f', milliseconds))
return {string.format('%.0f', first - now), after}
"""
#: Takes turns back, if nobody has reserved something after them.
_GIVE_BACK: Final = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
local before = string.format('%.0f', tonumber(ARGV[1]) - tonumber(ARGV[2]))
redis.call('SET', KEYS[1], before, 'KEEPTTL')
return 1
"""


async def _pipelined(
    redis: Any,
    commands: Sequence[tuple[Any, ...]],
    **options: Any,
) -> list[Any]:
    """Run commands in one round trip, without a transaction.

    :param options: what the client has to know to read the replies.
    :returns: for each command, in order, its reply or the error of the server.
    """
    if len(commands) == 1:
        try:
            return [await redis.execute_command(*commands[0], **options)]
        except client.ResponseError as exc:
            return [exc]
    pipeline = redis.pipeline(transaction=False)
    for command in commands:
        pipeline.execute_command(*command, **options)
    replies: list[Any] = await pipeline.execute(raise_on_error=False)
    return replies


def _size_of_message(message: tuple[Any, Any]) -> int:
    """Give the bytes of a queue and what is sent there.

    :raises TypeError: if it is of a type that cannot be sent.
    :raises UnicodeEncodeError: if it is a text that cannot be encoded.
    """
    queue, data = message
    if not isinstance(queue, (str, bytes)):
        raise TypeError(
            f"the label queue_name must be the name of a queue, got {queue!r}",
        )
    if not isinstance(data, (str, bytes)):
        raise TypeError(f"a message must be bytes, got {type(data).__name__}")
    return _size_of_text(queue) + _size_of_text(data)


def _size_of_text(text: str | bytes) -> int:
    return len(text.encode() if isinstance(text, str) else text)


def _error(reply: Any) -> Exception | None:
    return reply if isinstance(reply, Exception) else None


# -- Brokers ----------------------------------------------------------------------


class _Broker(AsyncBroker):
    """What sends many messages in one round trip."""

    queue_name: str

    @abstractmethod
    def _redis(self) -> AbstractAsyncContextManager[Any]:
        """Give a client of the server."""

    @abstractmethod
    def _reader(self) -> AbstractAsyncContextManager[Any]:
        """Give the client that reads."""

    async def _connection_of(self, redis: Any) -> Any:
        """Give the connection of who reads; `None` if there are many."""
        pool = redis.connection_pool
        connection = await pool.get_connection()
        await pool.release(connection)
        return connection

    @abstractmethod
    def _commands(
        self,
        messages: Sequence[tuple[str, bytes]],
    ) -> list[tuple[tuple[Any, ...], list[int]]]:
        """Give the commands that send messages.

        :param messages: queues and what is sent there.
        :returns: each command and the numbers of the messages it sends.
        """

    @cached_property
    def rate_store(self) -> RateStore:  # type: ignore[override]
        """Where calls of tasks with a rate are counted: of those of this queue."""
        return _Rates(self._redis, lambda name: f"taskiq-rate:{self.queue_name}:{name}")

    @cached_property
    def _sends(self) -> GroupCommit[BrokerMessage, None]:
        return GroupCommit(self._send)

    async def kick(self, message: BrokerMessage) -> None:
        """Send one message, together with others that are sent at the same time."""
        await self._sends.submit(message)

    async def kick_many(
        self,
        messages: Sequence[BrokerMessage],
    ) -> list[Exception | None]:
        """Send many messages, a thousand in one round trip; each fails for itself."""
        return await self._send(messages)

    async def _send(self, messages: Sequence[BrokerMessage]) -> list[Exception | None]:
        default = self.queue_name
        return await in_chunks(
            self._send_chunk,
            [
                (each.labels.get("queue_name") or default, each.message)
                for each in messages
            ],
            _size_of_message,
        )

    async def _send_chunk(
        self,
        messages: Sequence[tuple[str, bytes]],
    ) -> list[Exception | None]:
        commands = self._commands(messages)
        async with self._redis() as redis:
            replies = await _pipelined(redis, [command for command, _ in commands])
        outcomes: list[Exception | None] = [None] * len(messages)
        for (_, numbers), reply in zip(commands, replies, strict=True):
            for number in numbers:
                outcomes[number] = _error(reply)
        return outcomes


async def _within_a_stop(work: Coroutine[Any, Any, None]) -> None:
    """Do what a stop has to do, unless it takes too long."""
    task = asyncio.create_task(work)
    await asyncio.wait([task], timeout=_LONGEST_STOP)
    await cancel_all([task])


class _Reads:
    """Finishes every read, also one whose reader is cancelled.

    What the server has given to a read that is given up is nobody's, that of a stream
    until `idle_timeout` is over. It may give it at any moment until it knows of that.
    So the server is told to end the read, and gives what it has.

    :param pool: gives a client with other connections than the one that reads.
    :param find: gives the connection that reads; `None` if it is not known.
    :param messages: takes what was read.
    """

    def __init__(
        self,
        pool: Callable[[], AbstractAsyncContextManager[Any]],
        find: Callable[[], Coroutine[Any, Any, Any]],
        messages: deque[Any],
    ) -> None:
        self._pool = pool
        self._find = find
        self._is_found = False
        self._connection: Any = None
        # By which the server knows the connection; `None` if it does not say.
        self._number: int | None = None
        self._messages = messages

    async def finish(self, read: _Read, *args: Any) -> None:
        """Read, and take what was read, before a cancellation is raised, too."""
        reading = asyncio.create_task(self._read(read, args))
        try:
            await asyncio.wait([reading])
        except asyncio.CancelledError:
            await uninterrupted(self._end(reading))
            raise
        reading.result()

    async def _read(self, read: _Read, args: tuple[Any, ...]) -> None:
        if not self._is_found:
            # In this asyncio task, too: a client that connects loses cancellations.
            self._connection = await self._find()
            if self._connection is not None:
                await self._connected(self._connection)
                # The client may connect again in the middle of a read.
                self._connection.register_connect_callback(self._connected)
            self._is_found = True
        self._messages.extend(await read(*args))

    async def _connected(self, connection: Any) -> None:
        """Ask by which number the server knows a connection that was just made."""
        self._number = None
        try:
            await connection.send_command("CLIENT", "ID")
            self._number = await connection.read_response()
        except client.ResponseError:  # no right to ask, for one
            return

    async def _end(self, reading: asyncio.Task[Any]) -> None:
        """Wait for a read a little longer than the server lets it wait."""
        calls = asyncio.create_task(self._call(reading))
        await asyncio.wait([reading], timeout=_LONGEST_STOP)
        await cancel_all([calls, reading])
        if not reading.cancelled():
            reading.exception()  # nobody is to be told of it

    async def _call(self, reading: asyncio.Task[Any]) -> None:
        """Call the server to end a read; more than once, as it may just begin."""
        with suppress(*_TROUBLE):  # it ends by itself
            async with self._pool() as redis:
                while not reading.done():
                    # A server that has begun anew has given the number to another.
                    if self._number is not None and self._connection.is_connected:
                        await redis.client_unblock(self._number)
                    await asyncio.wait([reading], timeout=_PAUSE_OF_CALLS)


class _ListBroker(_Broker):
    """What sends to lists.

    Messages leave a list one by one, as with the plugin: what has left it is nowhere
    else, and a worker that is killed takes it along.
    """

    async def listen(self) -> AsyncGenerator[bytes, None]:
        """Receive messages.

        What a read is given whose reader is cancelled goes back to the list.
        """
        messages: deque[bytes] = deque()
        try:
            async with self._reader() as redis:
                reads = _Reads(
                    self._redis, partial(self._connection_of, redis), messages
                )
                while True:
                    await reads.finish(self._taken, redis)
                    while messages:
                        yield messages.popleft()
        finally:
            if messages:
                await uninterrupted(_within_a_stop(self._put_back(messages)))

    async def _taken(self, redis: Any) -> list[bytes]:
        """Take a message.

        The read ends before the client gives it up: a message that came meanwhile would
        be lost with it.
        """
        found = await redis.brpop(self.queue_name, _LONGEST_BLOCK // 1000)
        return [] if found is None else [found[1]]

    async def _put_back(self, messages: Collection[bytes]) -> None:
        """Let others have what nobody here has asked for, and next."""
        try:
            async with self._redis() as redis:
                await redis.rpush(self.queue_name, *messages)
        except (*_TROUBLE, asyncio.CancelledError) as exc:
            count, queue = len(messages), self.queue_name
            logger.error("Lost %s messages taken from %s: %r", count, queue, exc)  # noqa: TRY400 - one line

    def _commands(
        self,
        messages: Sequence[tuple[str, bytes]],
    ) -> list[tuple[tuple[Any, ...], list[int]]]:
        numbers: defaultdict[str, list[int]] = defaultdict(list)
        for number, (queue, _) in enumerate(messages):
            numbers[queue].append(number)
        return [
            (("LPUSH", queue, *(messages[each][1] for each in those)), those)
            for queue, those in numbers.items()
        ]


class _PubSubBroker(_Broker):
    """What publishes."""

    def _commands(
        self,
        messages: Sequence[tuple[str, bytes]],
    ) -> list[tuple[tuple[Any, ...], list[int]]]:
        return [
            (("PUBLISH", queue, data), [number])
            for number, (queue, data) in enumerate(messages)
        ]


class _StreamMessage(AckableMessage):
    stream: Any
    id: Any


_stream_message: Final = maker_of(_StreamMessage)


class _StreamBroker(_Broker):
    """What sends to streams, and acknowledges many messages in one round trip.

    A worker also takes over what another one has held for longer than `idle_timeout`:
    that one was killed, or gave up on the message. It looks for such messages when it
    begins to listen and every few seconds, whether new ones come or not.
    """

    #: Milliseconds after which a message that is not acknowledged is taken over.
    idle_timeout: int = 600_000
    #: How many messages are taken over at once.
    unacknowledged_batch_size: int = 100
    #: How many new messages are read at once.
    count: int | None = 100
    #: For `taskiq.capabilities`.
    message_capabilities = ("nack", "delayed_nack", "extend", "deliveries")
    # What the plugin keeps of its arguments.
    consumer_group_name: str
    consumer_name: str
    block: int
    maxlen: int | None
    approximate: bool
    additional_streams: Any  # it differs among the brokers of the plugin

    def _commands(
        self,
        messages: Sequence[tuple[str, bytes]],
    ) -> list[tuple[tuple[Any, ...], list[int]]]:
        limit: tuple[Any, ...] = ()
        if self.maxlen is not None:
            limit = ("MAXLEN", "~" if self.approximate else "=", self.maxlen)
        return [
            (("XADD", queue, *limit, "*", "data", data), [number])
            for number, (queue, data) in enumerate(messages)
        ]

    @cached_property
    def _held(self) -> _Held:
        return _Held(self)

    @cached_property
    def _earlier(self) -> _Earlier:
        # One for all that listen: who does so again holds what it was given since.
        return _Earlier(self)

    def equip_message(self, message: bytes | AckableMessage) -> bytes | AckableMessage:
        """Fill in what can be done with a message, for `taskiq.capabilities`."""
        if isinstance(message, _StreamMessage) and message.nack is None:
            message.nack = partial(self._held.give_back, message)
            message.nack_delays = True
            message.extend = partial(self._held.extend_one, message)
        return message

    async def listen(self) -> AsyncGenerator[AckableMessage, None]:
        """Receive new messages, and those that others hold no longer."""
        abandoned, new = _Abandoned(self), _New(self)
        messages: deque[_StreamMessage] = deque()
        keeping = asyncio.create_task(self._held.keep(messages))
        try:
            async with self._reader() as redis:
                reads = _Reads(
                    self._redis, partial(self._connection_of, redis), messages
                )
                while self._earlier.is_left:
                    await reads.finish(self._earlier.messages, redis)
                    while messages:
                        yield messages.popleft()
                while True:
                    await reads.finish(new.messages, redis, abandoned.longest_wait)
                    while messages:
                        yield messages.popleft()
                    if abandoned.longest_wait <= 0:
                        await reads.finish(abandoned.messages, redis)
                    while messages:
                        yield messages.popleft()
        finally:
            await uninterrupted(self._end_listening(keeping, messages))

    async def _end_listening(
        self, keeping: asyncio.Task[None], messages: deque[_StreamMessage]
    ) -> None:
        await cancel_all([keeping])
        await _within_a_stop(self._held.return_unread(messages))

    def _messages(
        self,
        stream: Any,
        entries: Iterable[tuple[Any, bytes]],
    ) -> list[_StreamMessage]:
        """Make messages of the ids and bytes of entries."""
        held, lease = self._held, self.idle_timeout / 1000
        ack = held.ack_one  # one bound method for all of them
        return [
            _stream_message(
                {
                    "data": data,
                    "ack": partial(ack, (stream, entry_id)),
                    "ack_group": held,
                    "nack": None,
                    "nack_delays": False,
                    "reject": None,
                    "extend": None,
                    "lease": lease,
                    "deliveries": 1,
                    "stream": stream,
                    "id": entry_id,
                },
            )
            for entry_id, data in entries
        ]


class _Held:
    """What is done with messages of streams that were received.

    An entry is this worker's for `idle_timeout` from when it was read or claimed; how
    long that is ago can be set.
    """

    def __init__(self, broker: _StreamBroker) -> None:
        self._broker = broker
        self._acks = GroupCommit(self._ack)
        # When messages come back that were given back, by the loop's clock; and those
        # that come back later than a lease is long, which is as late as can be set.
        self._returns: list[float] = []
        self._later: dict[tuple[Any, Any], float] = {}

    async def ack_one(self, entry: tuple[Any, Any]) -> None:
        """Acknowledge an entry of a stream, with others acknowledged meanwhile."""
        await self._acks.submit(entry)

    async def ack(
        self,
        messages: Sequence[AckableMessage],
    ) -> list[Exception | None]:
        """Acknowledge messages in one round trip."""
        return await self._ack(_entries(messages))

    async def extend(
        self,
        messages: Sequence[AckableMessage],
    ) -> list[Exception | None]:
        """Renew the leases of messages in one round trip."""
        return await in_chunks(self._claim, _entries(messages))

    async def extend_one(self, message: AckableMessage) -> None:
        """Renew the lease of one message."""
        [outcome] = await self.extend([message])
        if outcome is not None:
            raise outcome

    async def give_back(self, message: AckableMessage, delay: float | None) -> None:
        """Let a message come again, by any worker, after `delay` seconds.

        What is longer than `idle_timeout` is kept by this worker: the message comes
        sooner if that ends.
        """
        [entry] = _entries([message])
        lease, seconds = self._lease, max(delay or 0.0, 0.0)
        now = asyncio.get_running_loop().time()
        if seconds > lease:
            self._later[entry] = now + seconds
        await self._release(entry, seconds)

    async def _release(self, entry: tuple[Any, Any], seconds: float) -> None:
        """Let an entry be taken over after so many seconds, of a lease at most."""
        seconds = min(seconds, self._lease)
        idle = int((self._lease - seconds) * 1000)
        [outcome] = await self._claim([entry], ("IDLE", idle))
        if outcome is not None:
            raise outcome
        moment = asyncio.get_running_loop().time() + seconds
        heapq.heappush(self._returns, moment)

    def next_return(self) -> float | None:
        """Say when the first message comes back, by the loop's clock."""
        return self._returns[0] if self._returns else None

    def returned(self, now: float) -> None:
        """Forget what is due: somebody looks."""
        while self._returns and self._returns[0] <= now:
            heapq.heappop(self._returns)

    async def keep(self, unread: deque[_StreamMessage]) -> None:
        """Renew the leases of what nobody asked for yet, and of what comes later."""
        while True:
            await asyncio.sleep(self._lease / 2)
            now = asyncio.get_running_loop().time()
            try:
                await in_chunks(self._claim, _entries(unread))
                for entry, moment in list(self._later.items()):
                    if moment - now <= self._lease:
                        del self._later[entry]
                    await self._release(entry, max(moment - now, 0))
            except _TROUBLE as exc:
                logger.warning("Others may take over messages held here: %r", exc)

    async def return_unread(self, messages: deque[_StreamMessage]) -> None:
        """Let others have what nobody here has asked for, as if it was never read."""
        by_count: defaultdict[int, list[_StreamMessage]] = defaultdict(list)
        for message in messages:
            by_count[cast("int", message.deliveries)].append(message)
        for count, those in by_count.items():
            how = ("IDLE", self._broker.idle_timeout, "RETRYCOUNT", count - 1)
            claim = partial(self._claim, how=how)
            for outcome in await in_chunks(claim, _entries(those)):
                if outcome is not None:
                    left = len(those)
                    logger.warning("%s messages are left to others: %r", left, outcome)
                    break

    async def count(
        self, redis: Any, stream: Any, messages: Sequence[_StreamMessage]
    ) -> None:
        """Ask how often messages of a stream were delivered that came back just now."""
        if not messages:
            return
        pipeline = redis.pipeline(transaction=False)
        group = self._broker.consumer_group_name
        for message in messages:
            pipeline.xpending_range(stream, group, message.id, message.id, 1)
        replies: list[Any] = await pipeline.execute(raise_on_error=False)
        for message, reply in zip(messages, replies, strict=True):
            is_known = reply and _error(reply) is None
            # Whoever came back was delivered before.
            message.deliveries = int(reply[0]["times_delivered"]) if is_known else 2

    @property
    def _lease(self) -> float:
        return self._broker.idle_timeout / 1000

    async def _ack(self, entries: Sequence[tuple[Any, Any]]) -> list[Exception | None]:
        return await in_chunks(self._ack_chunk, entries)

    async def _ack_chunk(
        self,
        entries: Sequence[tuple[Any, Any]],
    ) -> list[Exception | None]:
        group = self._broker.consumer_group_name
        return await self._by_stream(
            entries,
            lambda stream, ids: ("XACK", stream, group, *ids),
        )

    async def _claim(
        self,
        entries: Sequence[tuple[Any, Any]],
        how: tuple[Any, ...] = (),
    ) -> list[Exception | None]:
        """Claim entries again, those that are acknowledged left out.

        They count as delivered no more often than before.
        """
        group, own = self._broker.consumer_group_name, self._broker.consumer_name
        return await self._by_stream(
            entries,
            lambda stream, ids: ("XCLAIM", stream, group, own, 0, *ids, *how, "JUSTID"),
        )

    async def _by_stream(
        self,
        entries: Sequence[tuple[Any, Any]],
        command: Callable[[Any, list[Any]], tuple[Any, ...]],
    ) -> list[Exception | None]:
        """Run one command for the entries of each stream, all in one round trip."""
        if not entries:
            return []
        ids: defaultdict[Any, list[Any]] = defaultdict(list)
        for stream, entry_id in entries:
            ids[stream].append(entry_id)
        commands = [command(stream, those) for stream, those in ids.items()]
        async with self._broker._redis() as redis:  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] - part of it
            replies = await _pipelined(redis, commands, parse_justid=True)
        errors = dict(zip(ids, map(_error, replies), strict=True))
        return [errors[stream] for stream, _ in entries]


def _entries(messages: Iterable[AckableMessage]) -> list[tuple[Any, Any]]:
    own = cast("Iterable[_StreamMessage]", messages)
    return [(each.stream, each.id) for each in own]


def _streams_of(replies: Any) -> Iterable[tuple[Any, Any]]:
    """Give the names and entries of streams that were read.

    By version 3 of the protocol they are a mapping, with lists of lists of entries.
    """
    pairs: Iterable[tuple[Any, Any]] = replies
    if isinstance(replies, dict):
        pairs = ((stream, chain(*lists)) for stream, lists in replies.items())
    return pairs


def _data_of(entries: Iterable[tuple[Any, Any]]) -> Iterable[tuple[Any, bytes]]:
    """Give the ids and bytes of entries as the client reads them.

    An entry without `data` is nobody's message: it has no bytes, and cannot be read.
    """
    return (
        (entry_id, _as_bytes(fields.get(b"data", fields.get("data", b""))))
        for entry_id, fields in entries
        if fields  # else it was deleted, by MAXLEN for one
    )


def _as_bytes(text: str | bytes) -> bytes:
    """Give what was sent, also by a client that is made to decode what it reads."""
    return text.encode() if isinstance(text, str) else text


def _unpacked(sizes: Any, data: bytes) -> Iterable[tuple[Any, bytes]]:
    """Give the ids and bytes of entries that `_READ_PACKED` has packed."""
    words, start = iter(sizes.split()), 0
    for entry_id, size in zip(words, words, strict=True):
        end = start + int(size)
        yield entry_id, data[start:end]
        start = end


class _New:
    """Reads messages that nobody was given yet.

    Where the last read was as large as it may be there is more to come: the next one
    waits for nothing, and is packed.
    """

    def __init__(self, broker: _StreamBroker) -> None:
        self._broker = broker
        names = (broker.queue_name, *broker.additional_streams)
        self._streams = dict.fromkeys(names, ">")
        self._has_more = False
        self._can_pack = True

    async def messages(self, redis: Any, longest_wait: float) -> list[_StreamMessage]:
        """Read new messages.

        :param longest_wait: seconds to wait for one at most.
        """
        messages: list[_StreamMessage] = []
        if self._has_more and self._can_pack:
            messages = await self._read_packed(redis)
        if not messages:
            messages = await self._read(redis, longest_wait)
        count = self._broker.count
        self._has_more = (
            count is not None
            and len(messages) >= count
            and sum(len(each.data) for each in messages) <= _PACKED
        )
        return messages

    async def _read(self, redis: Any, longest_wait: float) -> list[_StreamMessage]:
        broker = self._broker
        longest = min(broker.block or _LONGEST_BLOCK, _LONGEST_BLOCK)
        longest = min(longest, int(longest_wait * 1000) + 1)
        replies = await redis.xreadgroup(
            broker.consumer_group_name,
            broker.consumer_name,
            self._streams,
            block=longest if longest_wait > 0 else None,
            count=broker.count,
        )
        return [
            message
            for stream, entries in _streams_of(replies)
            for message in broker._messages(stream, _data_of(entries))  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] - part of it
        ]

    async def _read_packed(self, redis: Any) -> list[_StreamMessage]:
        broker, streams = self._broker, self._streams
        how = broker.consumer_group_name, broker.consumer_name, broker.count
        arguments = (*streams, *how, *streams.values())
        try:
            replies = await redis.eval(_READ_PACKED, len(streams), *arguments)
        except client.ResponseError:
            # No right to run scripts, for one; what else it was, a plain read says.
            self._can_pack = False
            return []
        packed = iter(replies)
        return [
            message
            for stream, sizes, data in zip(packed, packed, packed, strict=True)
            for message in broker._messages(stream, _unpacked(sizes, _as_bytes(data)))  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] - part of it
        ]


class _Earlier:
    """Reads what this consumer was given before and has not acknowledged, once.

    That is what an id means in `additional_streams`, other than `>`: entries after it
    that a consumer of this name was given. A stream that has no more of them gives
    nothing, at once and always: it is read for new messages then.
    """

    def __init__(self, broker: _StreamBroker) -> None:
        self._broker = broker
        #: The streams that may have more, and the id of the last entry of each.
        self._left = {
            stream: last
            for stream, last in broker.additional_streams.items()
            if last not in {">", b">"}
        }

    @property
    def is_left(self) -> bool:
        """Whether there may be more."""
        return bool(self._left)

    async def messages(self, redis: Any) -> list[_StreamMessage]:
        """Read the next ones of each stream, as many as new ones are read at once."""
        broker = self._broker
        replies = await redis.xreadgroup(
            broker.consumer_group_name,
            broker.consumer_name,
            dict(self._left),
            count=broker.count,
        )
        found: list[_StreamMessage] = []
        left: dict[Any, Any] = {}
        # There is a reply for each, in their order.
        pairs = zip(self._left, _streams_of(replies), strict=True)
        for name, (stream, given) in pairs:
            entries = list(given)
            if not entries:
                continue
            left[name] = entries[-1][0]
            messages = broker._messages(stream, _data_of(entries))  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] - part of it
            await broker._held.count(redis, stream, messages)  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
            found += messages
        self._left = left  # what failed before this is read again
        return found


class _Abandoned:
    """Finds messages that were delivered long ago and not acknowledged."""

    def __init__(self, broker: _StreamBroker) -> None:
        self._broker = broker
        self._held = broker._held  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] - part of it
        self._cursors: dict[Any, Any] = {}
        self._is_due_at = 0.0

    @property
    def longest_wait(self) -> float:
        """Seconds until the next look; 0 if the last one has not seen all."""
        if any(self._cursors.values()):
            return 0
        return max(self._due_at - asyncio.get_running_loop().time(), 0.0)

    @property
    def _due_at(self) -> float:
        returned_at = self._held.next_return()
        if returned_at is None:
            return self._is_due_at
        return min(self._is_due_at, returned_at)

    async def messages(self, redis: Any) -> list[_StreamMessage]:
        """Take over such messages, some of each stream, if it is time to look."""
        now = asyncio.get_running_loop().time()
        if now < self._due_at:
            return []
        self._held.returned(now)
        broker = self._broker
        messages = [
            message
            for stream in (broker.queue_name, *broker.additional_streams)
            for message in await self._claim(redis, stream)
        ]
        if not any(self._cursors.values()):
            self._is_due_at = now + min(broker.idle_timeout / 10_000, _LONGEST_PAUSE)
        return messages

    async def _claim(self, redis: Any, stream: str) -> list[_StreamMessage]:
        broker = self._broker
        cursor, entries, *_ = await redis.xautoclaim(
            stream,
            broker.consumer_group_name,
            broker.consumer_name,
            min_idle_time=broker.idle_timeout,
            start_id=self._cursors.get(stream) or _BEGINNING,
            count=broker.unacknowledged_batch_size,
        )
        has_seen_all = cursor in {_BEGINNING, _BEGINNING.encode()}
        self._cursors[stream] = None if has_seen_all else cursor
        messages = broker._messages(stream, _data_of(entries))  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] - part of it
        await self._held.count(redis, stream, messages)
        return messages


# -- Result backends ----------------------------------------------------------------


class _Results(GroupedResults[_ReturnType]):
    """What stores and reads many results in one round trip."""

    @cached_property
    def rate_store(self) -> RateStore:  # type: ignore[override]
        """Where calls of tasks with a rate are counted, if the broker has no store."""
        return _Rates(self._redis, lambda name: self._task_name(f"taskiq-rate:{name}"))

    @cached_property
    def unique_store(self) -> UniqueStore:  # type: ignore[override]
        """Where keys of unique tasks are held: beside the results."""
        return _UniqueKeys(self)

    # What the plugin keeps of its arguments.
    keep_results: bool
    result_ex_time: int | None
    result_px_time: int | None
    prefix_str: str | None
    #: Gives the key of a result.
    _task_name: Callable[[str], str]
    #: Whether one command may store results of several keys.
    _can_store_together = True

    @abstractmethod
    def _redis(self) -> AbstractAsyncContextManager[Any]:
        """Give a client of the server."""

    async def _save(
        self,
        entries: Sequence[tuple[str, bytes]],
    ) -> list[Exception | None]:
        return await in_chunks(
            self._save_chunk,
            entries,
            lambda entry: _size_of_text(entry[0]) + len(entry[1]),
        )

    async def _save_chunk(
        self,
        entries: Sequence[tuple[str, bytes]],
    ) -> list[Exception | None]:
        stored = [(self._task_name(task_id), data) for task_id, data in entries]
        expiry = self._expiry
        # Whether the last commands, the announcements, could be made is of no interest.
        told = self._announcements([task_id for task_id, _ in entries])
        async with self._redis() as redis:
            if self._can_store_together and not expiry and len(entries) > 1:
                command = ("MSET", *chain.from_iterable(stored))
                reply, *_ = await _pipelined(redis, [command, *told])
                if _error(reply) is None:
                    return [None] * len(entries)
                # None of them is stored, maybe for the sake of one.
            commands = [("SET", key, data, *expiry) for key, data in stored]
            replies = await _pipelined(redis, [*commands, *told])
        return [_error(reply) for reply in replies[: len(entries)]]

    @property
    def _expiry(self) -> tuple[Any, ...]:
        if self.result_ex_time:
            return ("EX", self.result_ex_time)
        if self.result_px_time:
            return ("PX", self.result_px_time)
        return ()

    def _announcements(self, task_ids: list[str]) -> list[tuple[Any, ...]]:
        """Give commands that tell those who wait for these results."""
        del task_ids
        return []

    async def _read(
        self,
        task_ids: Sequence[str],
    ) -> list[bytes | Exception | None]:
        return await in_chunks(self._read_chunk, task_ids, _size_of_text)

    async def _read_chunk(
        self,
        task_ids: Sequence[str],
    ) -> list[bytes | Exception | None]:
        command = "GET" if self.keep_results else "GETDEL"
        keys = map(self._task_name, task_ids)
        async with self._redis() as redis:
            return await _pipelined(redis, [(command, key) for key in keys])


class _ToldResults(ToldResults[_ReturnType], _Results[_ReturnType]):
    """What is told of results: whoever stores them publishes their ids."""

    @cached_property
    def abort_store(self) -> AbortStore:  # type: ignore[override]
        """Where marks of aborted messages are kept: beside the results."""
        return _Aborts(self)

    @property
    def _channel(self) -> str:
        """Where ids are published. Channels are not keys and cannot meet them."""
        return self._task_name("taskiq-results")

    def _announcements(self, task_ids: list[str]) -> list[tuple[Any, ...]]:
        return [
            ("PUBLISH", self._channel, payload)
            for payload in payloads(task_ids, max_size=1 << 20)
        ]

    async def _read_chunk(
        self,
        task_ids: Sequence[str],
    ) -> list[bytes | Exception | None]:
        if not self.keep_results:
            return await super()._read_chunk(task_ids)
        keys = [self._task_name(task_id) for task_id in task_ids]
        async with self._redis() as redis:
            found: list[bytes | Exception | None] = await redis.mget(keys)
        return found

    async def _follow(self, waiters: Waiters) -> None:
        async with self._subscriber() as redis, redis.pubsub() as subscription:
            await subscription.subscribe(self._channel)
            async for message in subscription.listen():
                if message["type"] == "subscribe":
                    waiters.connected()
                elif message["type"] == "message":
                    waiters.tell_payload(message["data"])

    @property
    def _aborts_key(self) -> str:
        """Name of the sorted set of marks, and of the channel that tells of them."""
        return self._task_name("taskiq-aborts")

    @abstractmethod
    def _subscriber(self) -> AbstractAsyncContextManager[Any]:
        """Give a client with a connection of its own."""


class _Aborts(AbortStore):
    """Marks in a sorted set, by the time in seconds when each ends.

    The clocks of the processes tell the time: a day is long for them.
    """

    def __init__(self, results: _ToldResults[Any]) -> None:
        super().__init__()
        self._results = results

    async def mark(self, task_id: str) -> None:
        """Set a mark, forget those that have ended, and tell."""
        key, now = self._results._aborts_key, time.time()  # noqa: SLF001 - part of it
        commands = [
            ("ZADD", key, now + self.ttl, task_id),
            ("PUBLISH", key, as_payload(task_id)),
            ("ZREMRANGEBYSCORE", key, "-inf", now),
            ("EXPIRE", key, int(self.ttl) + 1),
        ]
        async with self._results._redis() as redis:  # noqa: SLF001
            replies = await _pipelined(redis, commands)
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply

    async def look(self, task_ids: Sequence[str]) -> Collection[str]:
        """Say which of these ids are marked, in one round trip."""
        key, now = self._results._aborts_key, time.time()  # noqa: SLF001
        async with self._results._redis() as redis:  # noqa: SLF001
            ends = await redis.zmscore(key, list(task_ids))
        return {
            task_id
            for task_id, end in zip(task_ids, ends, strict=True)
            if end is not None and float(end) > now
        }

    async def follow(self) -> None:
        """Subscribe, then read all marks, then hear of new ones."""
        results = self._results
        key = results._aborts_key  # noqa: SLF001
        async with results._subscriber() as redis, redis.pubsub() as subscription:  # noqa: SLF001
            await subscription.subscribe(key)
            async for message in subscription.listen():
                if message["type"] == "subscribe":
                    await self._hear_all(key)
                elif message["type"] == "message":
                    hear_payload(self.aborts, message["data"])

    async def _hear_all(self, key: str) -> None:
        now = time.time()
        async with self._results._redis() as redis:  # noqa: SLF001
            marks = await redis.zrangebyscore(key, now, "+inf", withscores=True)
        self.aborts.hear_until(
            {
                task_id.decode() if isinstance(task_id, bytes) else task_id: end - now
                for task_id, end in marks
            },
        )
        self.aborts.is_current = True


class _UniqueKeys(GroupedUniqueKeys):
    """Keys of unique tasks as keys that expire, by the clock of the server.

    Each command is for one key: on a cluster they go to the server that has it.
    """

    def __init__(self, results: _Results[Any]) -> None:
        super().__init__()
        self._results = results

    async def claim_many(self, claims: Sequence[Claim]) -> Sequence[str | Exception]:
        """Take keys in one round trip."""
        return await in_chunks(
            self._claim_chunk, claims, lambda claim: _size_of_text(claim.token)
        )

    async def _claim_chunk(self, claims: Sequence[Claim]) -> list[str | Exception]:
        commands = [
            ("EVAL", _CLAIM, 1, self._name(key), token, max(int(ttl * 1000), 1))
            for key, token, ttl in claims
        ]
        return [
            reply if isinstance(reply, Exception) else _as_text(reply)
            for reply in await self._run(commands)
        ]

    async def _release_many(self, held: Sequence[tuple[str, str]]) -> Sequence[Any]:
        return await in_chunks(
            self._release_chunk, held, lambda one: _size_of_text(one[1])
        )

    async def _release_chunk(self, held: Sequence[tuple[str, str]]) -> list[Any]:
        replies = await self._run(
            [("EVAL", _RELEASE, 1, self._name(key), token) for key, token in held],
        )
        return [_error(reply) for reply in replies]

    async def _renew_many(self, claims: Sequence[Claim]) -> Sequence[Any]:
        return await in_chunks(
            self._renew_chunk, claims, lambda claim: _size_of_text(claim.token)
        )

    async def _renew_chunk(self, claims: Sequence[Claim]) -> list[Any]:
        replies = await self._run(
            [
                ("EVAL", _RENEW, 1, self._name(key), token, max(int(ttl * 1000), 1))
                for key, token, ttl in claims
            ],
        )
        return [_error(reply) for reply in replies]

    async def _run(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        async with self._results._redis() as redis:  # noqa: SLF001 - part of it
            return await _pipelined(redis, commands)

    def _name(self, key: str) -> str:
        return self._results._task_name(f"taskiq-unique:{key}")  # noqa: SLF001


class _Rates(RateStore):
    """The next turn of each task, by the clock of the server.

    :param redis: gives a client.
    :param name: names the key of a task.
    """

    def __init__(
        self,
        redis: Callable[[], AbstractAsyncContextManager[Any]],
        name: Callable[[str], str],
    ) -> None:
        self._redis = redis
        self._name = name

    async def reserve(self, request: Request) -> Turns:
        """Reserve turns in one round trip."""
        started = "" if request.started is None else _microseconds(request.started)
        interval, lateness = map(_microseconds, (request.interval, LATENESS))
        key = self._name(request.task_name)
        arguments = (key, interval, request.turns, started, lateness)
        async with self._redis() as redis:
            wait, mark = await redis.execute_command("EVAL", _RESERVE, 1, *arguments)
        return Turns(int(wait) / 1e6, _as_text(mark))

    async def give_back(self, request: Request, mark: str) -> None:
        """Take turns back in one round trip."""
        key = self._name(request.task_name)
        length = _microseconds(request.turns * request.interval)
        async with self._redis() as redis:
            await redis.execute_command("EVAL", _GIVE_BACK, 1, key, mark, length)


def _microseconds(seconds: float) -> str:
    return f"{seconds * 1e6:.3f}"


def _as_text(reply: str | bytes) -> str:
    return reply.decode() if isinstance(reply, bytes) else reply


# -- One server -------------------------------------------------------------------


@asynccontextmanager
async def _own_connection(pool: Any) -> AsyncGenerator[Any]:
    """Give a client with one connection, not of a pool, which may have but few."""
    own = client.ConnectionPool(pool.connection_class, 1, **pool.connection_kwargs)
    redis = client.Redis.from_pool(own)
    try:
        yield redis
    finally:
        await redis.aclose()


class _OnPool:
    """A broker with connections to one server."""

    connection_pool: Any

    @cached_property
    def _client(self) -> Any:
        # One for all: to make one takes longer than most commands.
        return client.Redis(connection_pool=self.connection_pool)

    def _redis(self) -> AbstractAsyncContextManager[Any]:
        return nullcontext(self._client)

    def _reader(self) -> AbstractAsyncContextManager[Any]:
        return _own_connection(self.connection_pool)


class RedisStreamBroker(_OnPool, _StreamBroker, plugin.RedisStreamBroker):
    """`taskiq_redis.RedisStreamBroker`, in few round trips."""


class ListQueueBroker(_OnPool, _ListBroker, plugin.ListQueueBroker):
    """`taskiq_redis.ListQueueBroker`, sending in few round trips."""


class PubSubBroker(_OnPool, _PubSubBroker, plugin.PubSubBroker):
    """`taskiq_redis.PubSubBroker`, sending in few round trips."""


class RedisAsyncResultBackend(
    _ToldResults[_ReturnType],
    plugin.RedisAsyncResultBackend[_ReturnType],
):
    """`taskiq_redis.RedisAsyncResultBackend`, in few round trips, told of results."""

    redis_pool: Any

    @cached_property
    def _client(self) -> Any:
        return client.Redis(connection_pool=self.redis_pool)

    def _redis(self) -> AbstractAsyncContextManager[Any]:
        return nullcontext(self._client)

    def _subscriber(self) -> AbstractAsyncContextManager[Any]:
        return _own_connection(self.redis_pool)


# -- Sentinel -----------------------------------------------------------------------


class _OnMaster:
    """What asks sentinels for the master."""

    #: Connects to the master that the sentinels name.
    _acquire_master_conn: Any

    def _redis(self) -> AbstractAsyncContextManager[Any]:
        return cast("AbstractAsyncContextManager[Any]", self._acquire_master_conn())

    _subscriber = _reader = _redis


class RedisStreamSentinelBroker(
    _OnMaster, _StreamBroker, plugin.RedisStreamSentinelBroker
):
    """`taskiq_redis.RedisStreamSentinelBroker`, in few round trips."""


class ListQueueSentinelBroker(_OnMaster, _ListBroker, plugin.ListQueueSentinelBroker):
    """`taskiq_redis.ListQueueSentinelBroker`, sending in few round trips."""


class PubSubSentinelBroker(_OnMaster, _PubSubBroker, plugin.PubSubSentinelBroker):
    """`taskiq_redis.PubSubSentinelBroker`, sending in few round trips."""


class RedisAsyncSentinelResultBackend(
    _OnMaster,
    _ToldResults[_ReturnType],
    plugin.RedisAsyncSentinelResultBackend[_ReturnType],
):
    """`taskiq_redis.RedisAsyncSentinelResultBackend`, as that of one server."""


# -- Cluster --------------------------------------------------------------------------


class _OnCluster:
    """What has a client of a cluster; a pipeline is a round trip to each server."""

    redis: Any

    @asynccontextmanager
    async def _redis(self) -> AsyncGenerator[Any]:
        yield self.redis

    _reader = _redis

    async def _connection_of(self, redis: Any) -> None:
        """Say that there are many: to each server."""


class RedisStreamClusterBroker(
    _OnCluster, _StreamBroker, plugin.RedisStreamClusterBroker
):
    """`taskiq_redis.RedisStreamClusterBroker`, in few round trips."""


class ListQueueClusterBroker(_OnCluster, _ListBroker, plugin.ListQueueClusterBroker):
    """`taskiq_redis.ListQueueClusterBroker`, sending in few round trips."""


class RedisAsyncClusterResultBackend(
    _OnCluster,
    _Results[_ReturnType],
    plugin.RedisAsyncClusterResultBackend[_ReturnType],
):
    """`taskiq_redis.RedisAsyncClusterResultBackend`, in few round trips.

    Those who wait for results look for them: a cluster tells every server of all that
    is published.
    """

    # A command is for keys of one slot.
    _can_store_together = False
