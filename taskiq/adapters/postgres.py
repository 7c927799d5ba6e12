"""taskiq-postgres on asyncpg, with many operations in one statement.

The classes, their arguments, the tables and what is in them are those of
`taskiq_pg.asyncpg`, so that processes with and without this module share them.
"""

# pyright: reportMissingImports=false, reportMissingTypeStubs=false
# pyright: reportUntypedBaseClass=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportPrivateUsage=false, reportIncompatibleVariableOverride=false
# The plugin may not be installed where types are checked, and asyncpg has no types.

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import math
import time
from collections import deque
from contextlib import asynccontextmanager, suppress
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast
from weakref import WeakValueDictionary

from taskiq.aborts import AbortStore
from taskiq.acks import AckableMessage
from taskiq.adapters._abandoned import Versions
from taskiq.adapters._aborts import as_payload, hear_payload
from taskiq.adapters._bulk import in_chunks, plugin_is_missing
from taskiq.adapters._feed import Waiters, payloads
from taskiq.adapters._results import GroupedResults, ToldResults
from taskiq.adapters._unique import GroupedUniqueKeys
from taskiq.bulk import GroupCommit, cancel_all, run_bounded
from taskiq.lifecycle import reconnecting
from taskiq.models import maker_of

try:
    import asyncpg
    from taskiq_pg import asyncpg as plugin
except ImportError as exc:
    raise plugin_is_missing(__name__, "taskiq-postgres[asyncpg]") from exc

if TYPE_CHECKING:
    from collections.abc import (
        AsyncGenerator,
        Awaitable,
        Callable,
        Collection,
        Iterable,
        Sequence,
    )

    from taskiq.message import BrokerMessage
    from taskiq.unique import Claim, UniqueStore

__all__ = ["AsyncpgBroker", "AsyncpgResultBackend"]

_Entry = TypeVar("_Entry")

logger = logging.getLogger("taskiq.adapters")

#: Seconds between two looks for messages that no notification has told of.
_LONGEST_PAUSE: Final = 5.0
#: How many messages are taken at once, at most.
_MOST_AT_ONCE: Final = 100
#: Seconds in which a worker that is not busy asks for the next message.
_AT_ONCE: Final = 0.05
#: Seconds after which what is due is looked for.
_A_LITTLE: Final = 0.01
#: How many messages with a delay are sent at once, by the plugin.
_DELAYED_AT_ONCE: Final = 100
#: Bytes that a notification may have.
_NOTIFICATION: Final = 7999
#: Seconds between two looks for keys of unique tasks that nobody has released.
_FORGETTING_PAUSE: Final = 60.0

#: What a statement with a value that the server does not take fails with. Nothing of
#: that statement is done.
_REFUSALS: Final = (
    asyncpg.DataError,
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.ProgramLimitExceededError,
)

#: What a server that is away makes operations fail with.
_TROUBLE: Final = (
    OSError,
    asyncio.TimeoutError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
)

#: What all but one of several processes fail with that make a table at once, though
#: they make it only if there is none: by how far the other one was, its row in the
#: catalogue, the table's type or the table itself is there already.
_MADE_MEANWHILE: Final = (
    asyncpg.UniqueViolationError,
    asyncpg.DuplicateObjectError,
    asyncpg.DuplicateTableError,
)

_SEND: Final = """
WITH sent AS (
    INSERT INTO {table} (task_id, task_name, message, labels)
    SELECT task_id, task_name, message, labels::jsonb
    FROM unnest($1::text[], $2::text[], $3::text[], $4::text[])
        WITH ORDINALITY AS given (task_id, task_name, message, labels, number)
    ORDER BY number
    RETURNING id
)
SELECT pg_notify($5, id::text) FROM sent
"""
#: One whose delay is not over is left to the process that sent it.
_TAKE: Final = """
UPDATE {table} SET status = 'processing'
WHERE id IN (
    SELECT id FROM {table}
    WHERE status = 'pending' AND CASE
        WHEN labels->>'delay' IS NULL THEN true
        WHEN labels->>'delay' ~ '^-?[0-9]{{1,9}}([.][0-9]{{1,6}})?$' THEN created_at
            + make_interval(secs => (labels->>'delay')::float8) <= now()
        ELSE false
    END
    ORDER BY id LIMIT $1 FOR UPDATE SKIP LOCKED
)
RETURNING id, message, {returns} AS returns
"""
_VERSIONS: Final = """
SELECT id, xmin::text AS version FROM {table} WHERE status = 'processing'
"""
#: Writes a row as it is: its version changes.
_RENEW: Final = """
UPDATE {table} SET status = 'processing'
WHERE id = ANY($1::bigint[]) AND status = 'processing'
"""
_TAKE_OVER: Final = """
UPDATE {table} AS held SET status = 'processing', labels = {counted}
FROM unnest($1::bigint[], $2::text[]) AS seen (id, version)
WHERE held.id = seen.id AND held.xmin::text = seen.version
    AND held.status = 'processing'
RETURNING held.id, held.message, {returns} AS returns
"""
_GIVE_BACK: Final = """
WITH given_back AS (
    UPDATE {table} SET status = 'pending'
    WHERE id = ANY($1::bigint[]) AND status = 'processing'
    RETURNING id
)
SELECT pg_notify($2, id::text) FROM given_back
"""
_NACK: Final = """
WITH given_back AS (
    UPDATE {table} SET status = 'pending', labels = {counted}
    WHERE id = $1 AND status = 'processing'
    RETURNING id
)
SELECT pg_notify($2, id::text) FROM given_back
"""
#: The time to wait is counted from when the message was sent, as `_TAKE` reads it.
_NACK_LATER: Final = """
UPDATE {table} SET status = 'pending', labels = jsonb_set({counted}, '{{delay}}',
    to_jsonb(round((extract(epoch FROM now() - created_at) + $2)::numeric, 3)))
WHERE id = $1 AND status = 'processing'
"""
#: How often a message came back, of which the plugin keeps no count: it has no way to
#: give one back, and leaves alone what a killed worker held.
_RETURNS: Final = """
CASE WHEN labels->>'X-Taskiq-returns' ~ '^[0-9]{1,8}$'
    THEN (labels->>'X-Taskiq-returns')::int ELSE 0 END
"""
_COUNTED: Final = f"""
jsonb_set(labels, '{{X-Taskiq-returns}}', to_jsonb(1 + {_RETURNS}))
"""
_ACKNOWLEDGE: Final = "DELETE FROM {table} WHERE id = ANY($1::bigint[])"

_SAVE: Final = """
WITH stored AS (
    INSERT INTO {table} (task_id, result)
    SELECT task_id::{id_type}, result
    FROM unnest($1::text[], $2::bytea[]) AS given (task_id, result)
    ORDER BY task_id
    ON CONFLICT (task_id) DO UPDATE SET result = EXCLUDED.result
)
SELECT pg_notify($3, payload) FROM unnest($4::text[]) AS told (payload)
"""
_READ: Final = """
SELECT number, result
FROM unnest($1::text[]) WITH ORDINALITY AS wanted (task_id, number)
JOIN {table} AS stored ON stored.task_id = wanted.task_id::{id_type}
WHERE result IS NOT NULL
"""
_MAKE_ABORTS: Final = """
CREATE TABLE IF NOT EXISTS {table}_aborts (
    task_id text PRIMARY KEY, ends timestamptz NOT NULL
)
"""
_ABORT: Final = """
WITH ended AS (
    DELETE FROM {table}_aborts WHERE ends <= now() AND task_id <> $1
), marked AS (
    INSERT INTO {table}_aborts (task_id, ends)
    VALUES ($1, now() + make_interval(secs => $2::float8))
    ON CONFLICT (task_id) DO UPDATE SET ends = EXCLUDED.ends
)
SELECT pg_notify($3, $4)
"""
_ABORTED: Final = """
SELECT task_id, extract(epoch FROM ends - now())::float8 AS seconds
FROM {table}_aborts WHERE ends > now()
"""
_MAKE_UNIQUE: Final = """
CREATE TABLE IF NOT EXISTS {table}_unique (
    key text PRIMARY KEY, token text NOT NULL, ends timestamptz NOT NULL
)
"""
#: Writes the row of who holds a key, too: it is the only way to be given it at once.
#: Keys are locked in their order, here and below, so that nobody waits in a circle.
_CLAIM: Final = """
INSERT INTO {table}_unique AS held (key, token, ends)
SELECT key, token, now() + make_interval(secs => ttl)
FROM unnest($1::text[], $2::text[], $3::float8[]) AS given (key, token, ttl)
ORDER BY key
ON CONFLICT (key) DO UPDATE SET
    token = CASE WHEN held.ends > now() THEN held.token ELSE EXCLUDED.token END,
    ends = CASE WHEN held.ends > now() THEN held.ends ELSE EXCLUDED.ends END
RETURNING key, token
"""
_RENEW_UNIQUE: Final = """
WITH held AS (
    SELECT stored.key, given.ttl FROM {table}_unique AS stored
    JOIN unnest($1::text[], $2::text[], $3::float8[]) AS given (key, token, ttl)
        ON stored.key = given.key AND stored.token = given.token
    ORDER BY stored.key FOR UPDATE OF stored
)
UPDATE {table}_unique AS stored SET ends = now() + make_interval(secs => held.ttl)
FROM held WHERE stored.key = held.key
"""
_RELEASE: Final = """
WITH held AS (
    SELECT stored.key FROM {table}_unique AS stored
    JOIN unnest($1::text[], $2::text[]) AS given (key, token)
        ON stored.key = given.key AND stored.token = given.token
    ORDER BY stored.key FOR UPDATE OF stored
)
DELETE FROM {table}_unique AS stored USING held WHERE stored.key = held.key
"""
#: Keys that nobody has released. Those that somebody is about to take are left alone.
_FORGET_UNIQUE: Final = """
DELETE FROM {table}_unique WHERE key IN (
    SELECT key FROM {table}_unique WHERE ends <= now() LIMIT 1000
    FOR UPDATE SKIP LOCKED
)
"""
_FORGET: Final = "DELETE FROM {table} WHERE task_id = ANY($1::text[]::{id_type}[])"


async def _in_statements(
    statement: Callable[[Sequence[_Entry]], Awaitable[Sequence[Any]]],
    entries: Sequence[_Entry],
) -> Sequence[Any]:
    """Do entries in one statement; in several, if the server refuses one of them.

    :returns: for each entry, in order, its outcome or why it failed.
    """
    try:
        return await statement(entries)
    except _REFUSALS as exc:
        if len(entries) == 1:
            return [exc]
    middle = len(entries) // 2
    halves = [entries[:middle], entries[middle:]]
    return [
        outcome
        for half in halves
        for outcome in await in_chunks(partial(_in_statements, statement), half)
    ]


class _Lease:
    """The right to acknowledge a message, kept by who may do so."""

    __slots__ = ("__weakref__", "id")

    def __init__(self, row_id: int) -> None:
        self.id = row_id


class _Message(AckableMessage):
    id: int


_message: Final = maker_of(_Message)


class AsyncpgBroker(plugin.AsyncpgBroker):
    """`taskiq_pg.asyncpg.AsyncpgBroker`, with many messages in one statement.

    A worker also takes messages that no notification has told of, and takes over what
    another one has held for longer than `idle_timeout` without a sign of life: that one
    was killed, or gave up on the message. A worker with this class gives signs of life;
    one with the plugin's does not.
    """

    #: Milliseconds after which a message that is not acknowledged is taken over.
    idle_timeout: int = 600_000
    #: For `taskiq.capabilities`. Leases are renewed by the broker itself.
    message_capabilities = ("nack", "delayed_nack", "deliveries")
    # The plugin's connection for notifications.
    _read_conn: Any

    @cached_property
    def _sends(self) -> GroupCommit[BrokerMessage, None]:
        return GroupCommit(self._send)

    @cached_property
    def _acks(self) -> _Acks:
        return _Acks(self)

    async def startup(self) -> None:
        """Start as the plugin does, at the same time as other processes, too."""
        try:
            await super().startup()
        except _MADE_MEANWHILE as exc:
            if exc is self.lifecycle.hook_error:
                raise
            with reconnecting():  # what the application wants at a start is done
                await super().startup()

    async def kick(self, message: BrokerMessage) -> None:
        """Send one message, together with others that are sent at the same time."""
        if message.labels.get("delay") is not None:
            await super().kick(message)
        else:
            await self._sends.submit(message)

    async def kick_many(
        self,
        messages: Sequence[BrokerMessage],
    ) -> list[Exception | None]:
        """Send many messages, a thousand in one statement; each fails for itself.

        Those with a label `delay` are sent one by one: who sends them notifies later.
        """
        delayed = [each for each in messages if each.labels.get("delay") is not None]
        others = [each for each in messages if each.labels.get("delay") is None]
        outcomes = iter(await self._send(others))
        of_delayed = iter(await run_bounded(super().kick, delayed, _DELAYED_AT_ONCE))
        return [
            next(outcomes if each.labels.get("delay") is None else of_delayed)
            for each in messages
        ]

    async def _send(self, messages: Sequence[BrokerMessage]) -> list[Exception | None]:
        outcomes: list[Exception | None] = [None] * len(messages)
        rows: dict[int, tuple[str, str, str, str]] = {}
        for number, each in enumerate(messages):
            try:
                text, labels = each.message.decode(), json.dumps(each.labels)
            except (TypeError, ValueError) as exc:  # noqa: PERF203 - each for itself
                outcomes[number] = exc
            else:
                rows[number] = (each.task_id, each.task_name, text, labels)
        sent = await in_chunks(
            partial(_in_statements, self._insert),
            list(rows.values()),
            lambda row: len(row[2]) + len(row[3]),
        )
        for number, outcome in zip(rows, sent, strict=True):
            outcomes[number] = outcome
        return outcomes

    async def _insert(
        self,
        rows: Sequence[tuple[str, str, str, str]],
    ) -> list[Exception | None]:
        columns = [list(column) for column in zip(*rows, strict=True)]
        await self._fetch(_SEND, *columns, self.channel_name)
        return [None] * len(rows)

    async def _fetch(self, statement: str, *arguments: Any) -> list[Any]:
        if self._write_pool is None:
            raise ValueError("The broker has no connections, call startup first.")
        rows: list[Any] = await self._write_pool.fetch(
            statement.format(
                table=self.table_name,
                returns=_RETURNS,
                counted=_COUNTED,
            ),
            *arguments,
        )
        return rows

    async def listen(self) -> AsyncGenerator[AckableMessage, None]:
        """Receive new messages, and those that others hold no longer."""
        taking = _Taking(self)
        notifications: Any = self._queue  # filled by the plugin
        messages: deque[_Message] = deque()
        renewing = asyncio.create_task(taking.keep_renewing())
        try:
            while True:
                _forget(notifications)
                messages = await taking.take()
                while messages:
                    yield messages.popleft()
                if taking.was_all():
                    await self._wait_for(notifications)
        finally:
            await cancel_all([renewing])
            await taking.give_back(messages)

    async def _wait_for(self, notifications: Any) -> None:
        await self._listen_again()
        pause = min(_LONGEST_PAUSE, Versions(self.idle_timeout / 1000).pause)
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(notifications.get(), pause)

    def _wake(self) -> None:
        """Let who listens look for messages now, as if one was announced."""
        notifications: Any = self._queue  # filled by the plugin
        notifications.put_nowait("")

    async def _listen_again(self) -> None:
        """Replace a lost connection; until then messages are found by looking."""
        lost = self._read_conn
        if lost is None or not lost.is_closed() or not self._owns_read_conn:
            return
        try:
            connection = await asyncpg.connect(self.dsn, **self.read_kwargs)
            await connection.add_listener(self.channel_name, self._notification_handler)
        except _TROUBLE as exc:
            logger.warning("No notifications of new messages: %r", exc)
        else:
            self._read_conn = connection


def _forget(notifications: Any) -> None:
    """Forget what the next look for messages finds anyway."""
    with suppress(asyncio.QueueEmpty):
        while True:
            notifications.get_nowait()


class _Acks:
    """Acknowledges messages."""

    def __init__(self, broker: AsyncpgBroker) -> None:
        self._fetch = broker._fetch  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] - part of it
        self._channel = broker.channel_name
        self._group = GroupCommit(self._ack)
        self._wake = broker._wake  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] - part of it

    async def ack_one(self, lease: _Lease) -> None:
        """Acknowledge a message, with others that are acknowledged meanwhile."""
        await self._group.submit(lease.id)

    async def nack(self, lease: _Lease, delay: float | None) -> None:
        """Let a message be taken again, by any worker, after `delay` seconds.

        Workers look for it every few seconds, this one when it is due.
        """
        if delay is None or delay <= 0:
            await self._fetch(_NACK, lease.id, self._channel)
            return
        await self._fetch(_NACK_LATER, lease.id, delay)
        # It is not to be missed by the last digits of either clock.
        asyncio.get_running_loop().call_later(delay + _A_LITTLE, self._wake)

    async def ack(
        self,
        messages: Sequence[AckableMessage],
    ) -> list[Exception | None]:
        """Acknowledge messages in one statement."""
        own = cast("Sequence[_Message]", messages)
        return await self._ack([message.id for message in own])

    async def _ack(self, ids: Sequence[int]) -> list[Exception | None]:
        return await in_chunks(self._delete, ids)

    async def _delete(self, ids: Sequence[int]) -> list[Exception | None]:
        await self._fetch(_ACKNOWLEDGE, ids)
        return [None] * len(ids)


class _Taking:
    """What one listener takes, and how much of it at once.

    A worker that is busy takes one message at a time, so that others have theirs; one
    that asks for the next at once is given twice as many as the last time.
    """

    def __init__(self, broker: AsyncpgBroker) -> None:
        self._broker = broker
        self._fetch = broker._fetch  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] - part of it
        self._acks = broker._acks  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] - part of it
        self._now = asyncio.get_running_loop().time
        self._size = 1
        self._taken = 0
        self._taken_at = 0.0
        self._versions = Versions(broker.idle_timeout / 1000)
        # Those that can still be acknowledged: whoever gives up on a message drops it.
        self._leases: WeakValueDictionary[int, _Lease] = WeakValueDictionary()

    async def take(self) -> deque[_Message]:
        """Take messages that nobody has, or had for too long."""
        rows = await self._fetch(_TAKE, self._size)
        self._taken = len(rows)
        rows += await self._take_over()
        self._taken_at = self._now()
        return deque(
            self._message(row) for row in sorted(rows, key=lambda row: row["id"])
        )

    def was_all(self) -> bool:
        """Tell whether there were no more when the last ones, all used, were taken."""
        was_all = self._taken < self._size
        is_busy = self._now() - self._taken_at > _AT_ONCE
        self._size = 1 if is_busy else min(2 * self._size, _MOST_AT_ONCE)
        return was_all

    async def give_back(self, messages: Iterable[_Message]) -> None:
        """Let others have messages that nobody here asked for."""
        if ids := [message.id for message in messages]:
            try:
                await self._fetch(_GIVE_BACK, ids, self._broker.channel_name)
            except _TROUBLE as exc:
                logger.warning(
                    "%s messages are left to be taken over: %r", len(ids), exc
                )

    async def keep_renewing(self) -> None:
        """Give signs of life: change the versions of what is held."""
        while True:
            await asyncio.sleep(self._versions.interval)
            if held := list(self._leases):
                try:
                    await self._fetch(_RENEW, held)
                except _TROUBLE as exc:
                    logger.warning("Others may take over messages held here: %r", exc)

    async def _take_over(self) -> list[Any]:
        now = self._now()
        if not self._versions.is_due(now):
            return []
        rows = await self._fetch(_VERSIONS)
        seen = {row["id"]: row["version"] for row in rows}
        for held in list(self._leases):
            seen.pop(held, None)
        abandoned = self._versions.unchanged(seen, now)
        if not abandoned:
            return []
        return await self._fetch(
            _TAKE_OVER, list(abandoned), [seen[row_id] for row_id in abandoned]
        )

    def _message(self, row: Any) -> _Message:
        lease = self._leases[row["id"]] = _Lease(row["id"])
        return _message(
            {
                "data": row["message"].encode(),
                "ack": partial(self._acks.ack_one, lease),
                "ack_group": self._acks,
                "nack": partial(self._acks.nack, lease),
                "nack_delays": True,
                "reject": None,
                "extend": None,
                "lease": None,
                "deliveries": 1 + row["returns"],
                "id": row["id"],
            },
        )


class AsyncpgResultBackend(
    ToldResults[Any], GroupedResults[Any], plugin.AsyncpgResultBackend
):
    """`taskiq_pg.asyncpg.AsyncpgResultBackend`, with many results in one statement.

    Whoever stores results notifies of their ids; one connection listens for all who
    wait in an event loop.
    """

    async def startup(self) -> None:
        """Start as the plugin does, at the same time as other processes, too."""
        try:
            await super().startup()
        except _MADE_MEANWHILE:
            await super().shutdown()  # what was opened is opened again
            await super().startup()

    @cached_property
    def abort_store(self) -> AbortStore:  # type: ignore[override]
        """Where marks of aborted messages are kept: in a table of their own."""
        return _Aborts(self)

    @cached_property
    def unique_store(self) -> UniqueStore:  # type: ignore[override]
        """Where keys of unique tasks are held: in a table of their own."""
        return _UniqueKeys(self)

    @property
    def _channel(self) -> str:
        """Where ids are notified of: the name has to have less than 64 bytes."""
        return f"stored:{self.table_name}".encode()[:63].decode(errors="ignore")

    async def _save(
        self,
        entries: Sequence[tuple[str, bytes]],
    ) -> list[Exception | None]:
        return await in_chunks(
            partial(_in_statements, self._upsert),
            entries,
            lambda entry: len(entry[1]),
        )

    async def _upsert(
        self,
        entries: Sequence[tuple[str, bytes]],
    ) -> list[Exception | None]:
        # Of those with the same id the last one stays, as if stored one by one.
        stored = dict(entries)
        told = payloads(list(stored), _NOTIFICATION)
        ids, results = list(stored), list(stored.values())
        await self._fetch(_SAVE, ids, results, self._channel, told)
        return [None] * len(entries)

    async def _read(
        self,
        task_ids: Sequence[str],
    ) -> list[bytes | Exception | None]:
        return await in_chunks(partial(_in_statements, self._select), task_ids)

    async def _select(self, task_ids: Sequence[str]) -> list[bytes | Exception | None]:
        rows = await self._fetch(_READ, task_ids)
        results: list[bytes | Exception | None] = [None] * len(task_ids)
        for row in rows:
            results[row["number"] - 1] = row["result"]
        if rows and not self.keep_results:
            await self._fetch(_FORGET, [task_ids[row["number"] - 1] for row in rows])
        return results

    async def _fetch(self, statement: str, *arguments: Any) -> list[Any]:
        rows: list[Any] = await self._database_pool.fetch(
            statement.format(table=self.table_name, id_type=self.field_for_task_id),
            *arguments,
        )
        return rows

    async def _follow(self, waiters: Waiters) -> None:
        async def connected() -> None:
            waiters.connected()

        await self._listen(self._channel, waiters.tell_payload, connected)

    async def _listen(
        self,
        channel: str,
        tell: Callable[[str], None],
        connected: Callable[[], Awaitable[None]],
    ) -> None:
        """Listen for notifications until the connection is lost."""
        lost = asyncio.Event()

        def lose(connection: Any) -> None:
            del connection
            lost.set()

        def notified(*notification: Any) -> None:
            tell(notification[-1])

        async with self._listener() as connection:
            connection.add_termination_listener(lose)
            await connection.add_listener(channel, notified)
            await connected()
            await lost.wait()

    @asynccontextmanager
    async def _listener(self) -> AsyncGenerator[Any]:
        if not self._owns_pool:
            if self._database_pool.get_max_size() == 1:
                await asyncio.Event().wait()  # the only one is not to be kept busy
            async with self._database_pool.acquire() as connection:
                yield connection
            return
        # What the plugin was given is for a pool; this is no connection of the pool.
        accepted = inspect.signature(asyncpg.connect).parameters
        options = {
            name: value
            for name, value in self.connect_kwargs.items()
            if name in accepted
        }
        connection = await asyncpg.connect(self.dsn, **options)
        try:
            yield connection
        finally:
            await connection.close()


class _Aborts(AbortStore):
    """Marks in a table beside that of the results, which is made when it is needed."""

    def __init__(self, results: AsyncpgResultBackend) -> None:
        super().__init__()
        self._results = results
        self._is_made = False

    @property
    def _channel(self) -> str:
        name = f"aborted:{self._results.table_name}"
        return name.encode()[:63].decode(errors="ignore")

    async def mark(self, task_id: str) -> None:
        """Set a mark, forget those that have ended, and notify."""
        payload = as_payload(task_id)
        if len(payload) > _NOTIFICATION:
            raise ValueError(f"an id of {len(payload)} bytes is too long to notify of")
        await self._fetch(_ABORT, task_id, self.ttl, self._channel, payload)

    async def look(self, task_ids: Sequence[str]) -> Collection[str]:
        """Say which of these ids are marked, in one statement."""
        statement = f"{_ABORTED} AND task_id = ANY($1::text[])"
        rows = await self._fetch(statement, list(task_ids))
        return {row["task_id"] for row in rows}

    async def follow(self) -> None:
        """Listen, then read all marks, then hear of new ones."""
        await self._results._listen(  # noqa: SLF001 - part of it
            self._channel,
            partial(hear_payload, self.aborts),
            self._hear_all,
        )

    async def _hear_all(self) -> None:
        rows = await self._fetch(_ABORTED)
        self.aborts.hear_until({row["task_id"]: row["seconds"] for row in rows})
        self.aborts.is_current = True

    async def _fetch(self, statement: str, *arguments: Any) -> list[Any]:
        if not self._is_made:
            with suppress(*_MADE_MEANWHILE):
                await self._results._fetch(_MAKE_ABORTS)  # noqa: SLF001
            self._is_made = True
        return await self._results._fetch(statement, *arguments)  # noqa: SLF001


class _UniqueKeys(GroupedUniqueKeys):
    """Keys of unique tasks in a table beside that of the results.

    It is made when it is needed. The clock of the server tells the time.
    """

    def __init__(self, results: AsyncpgResultBackend) -> None:
        super().__init__()
        self._results = results
        self._is_made = False
        self._forgot_at = -math.inf

    async def claim_many(self, claims: Sequence[Claim]) -> Sequence[str | Exception]:
        """Take keys in one statement; of several claims of a key the first one."""
        await self._forget_ended()
        return await in_chunks(partial(_in_statements, self._claim_all), claims)

    async def _claim_all(self, claims: Sequence[Claim]) -> list[str | Exception]:
        asked: dict[str, Claim] = {}
        for claim in claims:
            asked.setdefault(claim.key, claim)
        columns = [list(column) for column in zip(*asked.values(), strict=True)]
        rows = await self._fetch(_CLAIM, *columns)
        holders: dict[str, str] = {row["key"]: row["token"] for row in rows}
        return [holders[claim.key] for claim in claims]

    async def _release_many(self, held: Sequence[tuple[str, str]]) -> Sequence[Any]:
        return await in_chunks(partial(_in_statements, self._release_all), held)

    async def _release_all(self, held: Sequence[tuple[str, str]]) -> list[Any]:
        columns = [list(column) for column in zip(*held, strict=True)]
        await self._fetch(_RELEASE, *columns)
        return [None] * len(held)

    async def _renew_many(self, claims: Sequence[Claim]) -> Sequence[Any]:
        return await in_chunks(partial(_in_statements, self._renew_all), claims)

    async def _renew_all(self, claims: Sequence[Claim]) -> list[Any]:
        columns = [list(column) for column in zip(*claims, strict=True)]
        await self._fetch(_RENEW_UNIQUE, *columns)
        return [None] * len(claims)

    async def _forget_ended(self) -> None:
        now = time.monotonic()
        if now - self._forgot_at >= _FORGETTING_PAUSE:
            self._forgot_at = now
            await self._fetch(_FORGET_UNIQUE)

    async def _fetch(self, statement: str, *arguments: Any) -> list[Any]:
        if not self._is_made:
            with suppress(*_MADE_MEANWHILE):
                await self._results._fetch(_MAKE_UNIQUE)  # noqa: SLF001 - part of it
            self._is_made = True
        return await self._results._fetch(statement, *arguments)  # noqa: SLF001
