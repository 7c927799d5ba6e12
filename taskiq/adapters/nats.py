"""taskiq-nats, with many operations at the same time.

The classes, their arguments, the subjects, streams and buckets and what is in them are
those of `taskiq_nats`, so that processes with and without this module share them.
"""

# pyright: reportMissingImports=false, reportMissingTypeStubs=false
# pyright: reportUntypedBaseClass=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportInvalidTypeVarUse=false
# The plugin may not be installed where types are checked, and is typed in part.

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar, cast

from taskiq.abc.broker import AsyncBroker
from taskiq.adapters._bulk import in_chunks, load_all, plugin_is_missing
from taskiq.adapters._results import ToldResults
from taskiq.bulk import run_bounded
from taskiq.unique import Claim, UniqueStore

try:
    import taskiq_nats as plugin
    from nats.js.api import KeyValueConfig
    from nats.js.errors import (
        APIError,
        BucketNotFoundError,
        KeyNotFoundError,
        KeyWrongLastSequenceError,
        NotFoundError,
    )
except ImportError as exc:
    raise plugin_is_missing(__name__, "taskiq-nats") from exc

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from taskiq.adapters._feed import Waiters
    from taskiq.message import BrokerMessage
    from taskiq.result import TaskiqResult

__all__ = [
    "NATSObjectStoreResultBackend",
    "NatsBroker",
    "PullBasedJetStreamBroker",
    "PushBasedJetStreamBroker",
]

_ReturnType = TypeVar("_ReturnType")

#: Seconds that the server has to say that it has stored, as with the plugin.
_PATIENCE: Final = 5.0
#: How many results are stored or read at the same time.
_RESULTS_AT_ONCE: Final = 100
#: Seconds after which the server forgets a key that nobody has released or renewed.
_LONGEST_HOLD: Final = 30 * 86400
#: How often to look again at a key that others have changed meanwhile.
_MOST_LOOKS: Final = 100
#: What the server says of a key that is not as it was seen.
_WRONG_LAST_SEQUENCE: Final = 10071


def _size(message: BrokerMessage) -> int:
    return len(message.message)


class NatsBroker(plugin.NatsBroker):
    """`taskiq_nats.NatsBroker`, with many messages in one round trip."""

    async def kick_many(
        self,
        messages: Sequence[BrokerMessage],
    ) -> list[Exception | None]:
        """Send many messages, and have the server confirm a thousand at a time."""
        return await in_chunks(self._publish, messages, _size)

    async def _publish(
        self,
        messages: Sequence[BrokerMessage],
    ) -> list[Exception | None]:
        outcomes: list[Exception | None] = []
        for message in messages:
            try:
                await self.kick(message)
            except Exception as exc:  # noqa: BLE001, PERF203 - each for itself
                outcomes.append(exc)
            else:
                outcomes.append(None)
        await self.client.flush(int(_PATIENCE))
        return outcomes


class _JetStreamBroker(AsyncBroker):
    """What publishes many messages before it waits for the server to store them."""

    async def kick_many(
        self,
        messages: Sequence[BrokerMessage],
    ) -> list[Exception | None]:
        """Send many messages, a thousand in one round trip; each fails for itself."""
        return await in_chunks(self._publish, messages, _size)

    async def _publish(
        self,
        messages: Sequence[BrokerMessage],
    ) -> list[Exception | None]:
        plugins_own: Any = self
        publish, subject = plugins_own.js.publish_async, plugins_own.subject
        outcomes: list[Exception | None] = [None] * len(messages)
        stored: dict[int, asyncio.Future[Any]] = {}
        try:
            for number, message in enumerate(messages):
                try:
                    stored[number] = await publish(
                        subject,
                        message.message,
                        headers=message.labels,
                    )
                except Exception as exc:  # noqa: BLE001, PERF203 - each for itself
                    outcomes[number] = exc
            if stored:
                await asyncio.wait(stored.values(), timeout=_PATIENCE)
            for number, future in stored.items():
                outcomes[number] = _error_of(future)
        finally:
            for future in stored.values():
                future.cancel()
        return outcomes


def _error_of(stored: asyncio.Future[Any]) -> Exception | None:
    """Tell why it is not known that a message is stored, `None` if it is."""
    if not stored.done():
        return asyncio.TimeoutError(
            f"the server did not say within {_PATIENCE} s that it stored the message",
        )
    if stored.cancelled():
        return ConnectionError(
            "the connection was closed before the message was stored"
        )
    error = stored.exception()
    if error is None or isinstance(error, Exception):
        return error
    raise error


class PushBasedJetStreamBroker(_JetStreamBroker, plugin.PushBasedJetStreamBroker):
    """`taskiq_nats.PushBasedJetStreamBroker`, with many messages in one round trip."""


class PullBasedJetStreamBroker(_JetStreamBroker, plugin.PullBasedJetStreamBroker):
    """`taskiq_nats.PullBasedJetStreamBroker`, with many messages in one round trip."""


class NATSObjectStoreResultBackend(
    ToldResults[_ReturnType],
    plugin.NATSObjectStoreResultBackend[_ReturnType],
):
    """`taskiq_nats.NATSObjectStoreResultBackend`, with many results at the same time.

    What is written to a bucket can be subscribed to: one subscription tells all who
    wait in an event loop, whether the worker has this class or the plugin's.
    """

    @cached_property
    def unique_store(self) -> UniqueStore:  # type: ignore[override]
        """Where keys of unique tasks are held: in a bucket of their own."""
        return _UniqueKeys(self)

    async def set_results(
        self,
        results: Mapping[str, TaskiqResult[Any]],
    ) -> Mapping[str, Exception]:
        """Store many results, a hundred at the same time; each fails for itself."""

        async def store(task_id: str) -> None:
            await self.set_result(task_id, results[task_id])

        outcomes = await run_bounded(store, list(results), _RESULTS_AT_ONCE)
        return {
            task_id: outcome
            for task_id, outcome in zip(results, outcomes, strict=True)
            if outcome is not None
        }

    async def get_results(
        self,
        task_ids: Sequence[str],
        with_logs: bool = False,
    ) -> Mapping[str, TaskiqResult[_ReturnType]]:
        """Read those of many results that are there, a hundred at the same time."""
        unique = list(dict.fromkeys(task_ids))
        read = await run_bounded(self._look, unique, _RESULTS_AT_ONCE)
        return load_all(unique, read, partial(self._load, with_logs=with_logs))

    async def _look(self, task_id: str) -> bytes | None:
        """Read a result without what the plugin needs for one of many pieces."""
        try:
            data: Any
            info = await self.object_store.get_info(task_id)
            if info.chunks == 1:
                piece = await self.nats_jetstream.get_last_msg(
                    f"OBJ_{self.bucket_name}",
                    f"$O.{self.bucket_name}.C.{info.nuid}",
                )
                data = piece.data
            else:
                data = (await self.object_store.get(task_id)).data
            if not self.keep_results:
                await self.object_store.delete(task_id)
        except NotFoundError:
            return None
        return cast("bytes", data)

    async def _follow(self, waiters: Waiters) -> None:
        """Hear what is written about objects; each of them is described once stored."""
        subscription = await self.nats_client.subscribe(f"$O.{self.bucket_name}.M.*")
        try:
            await self.nats_client.flush()
            waiters.connected()
            async for message in subscription.messages:
                info = json.loads(message.data)
                if not info.get("deleted"):
                    waiters.tell([info["name"]])
        finally:
            if not self.nats_client.is_closed:
                await subscription.unsubscribe()


class _Holder(NamedTuple):
    """Who holds a key.

    :ivar revision: of what the bucket has of it.
    :ivar ends: when the key is free, in seconds since the epoch.
    """

    revision: int
    token: str
    ends: float


class _UniqueKeys(UniqueStore):
    """Keys of unique tasks in a bucket of keys and values, made when it is needed.

    Each write is for the revision that was read. The clocks of the processes tell the
    time. What is released leaves a small marker, for as long as keys are kept.
    """

    def __init__(self, results: NATSObjectStoreResultBackend[Any]) -> None:
        self._results: Any = results
        self._opening: asyncio.Task[Any] | None = None

    async def claim(self, claim: Claim) -> str:
        """Take a key if nobody holds it: one round trip if nobody ever has.

        :raises ValueError: when it is to be held for longer than the server keeps it.
        """
        if claim.ttl > _LONGEST_HOLD:
            raise ValueError(
                f"on NATS unique_ttl must be at most {_LONGEST_HOLD} s, not {claim.ttl}"
            )
        bucket, name = await self._bucket(), _name(claim.key)
        for _ in range(_MOST_LOOKS):
            try:
                await bucket.create(name, _value(claim))
            except KeyWrongLastSequenceError:
                holder = await _look(bucket, name)
                if holder is None:
                    continue
                if holder.ends > time.time():
                    return holder.token
                if not await _update(bucket, name, claim, holder):
                    continue
            return claim.token
        raise RuntimeError(f"the key {claim.key} changes all the time")

    async def renew(self, claim: Claim) -> None:
        """Hold a key on if it is held under this token."""
        bucket, name = await self._bucket(), _name(claim.key)
        for _ in range(_MOST_LOOKS):
            holder = await _look(bucket, name)
            if holder is None or holder.token != claim.token:
                return
            if await _update(bucket, name, claim, holder):
                return

    async def release(self, key: str, token: str) -> None:
        """Let go of a key if it is held under this token."""
        bucket, name = await self._bucket(), _name(key)
        for _ in range(_MOST_LOOKS):
            holder = await _look(bucket, name)
            if holder is None or holder.token != token:
                return
            # Just what was seen, not what was written since. Not a purge of the key up
            # to there: servers of 2.9 may take the key for held after it.
            try:
                await bucket.delete(name, last=holder.revision)
            except KeyWrongLastSequenceError:
                continue
            except APIError as exc:
                if exc.err_code != _WRONG_LAST_SEQUENCE:
                    raise

    @property
    def _bucket_name(self) -> str:
        return f"{self._results.bucket_name}-unique"

    async def _bucket(self) -> Any:
        """Open the bucket, once for all who ask."""
        if self._opening is None or _has_failed(self._opening):
            self._opening = asyncio.ensure_future(self._open())
        return await asyncio.shield(self._opening)

    async def _open(self) -> Any:
        jetstream = self._results.nats_jetstream
        try:
            return await jetstream.key_value(self._bucket_name)
        except BucketNotFoundError:
            config = KeyValueConfig(self._bucket_name, ttl=_LONGEST_HOLD)
            return await jetstream.create_key_value(config)


def _has_failed(opening: asyncio.Task[Any]) -> bool:
    return opening.done() and (opening.cancelled() or opening.exception() is not None)


def _name(key: str) -> str:
    """Name the key in the bucket, where not all characters may be."""
    return hashlib.sha256(key.encode()).hexdigest()


def _value(claim: Claim) -> bytes:
    return json.dumps([claim.token, time.time() + claim.ttl]).encode()


async def _look(bucket: Any, name: str) -> _Holder | None:
    try:
        entry = await bucket.get(name)
    except KeyNotFoundError:  # or deleted by hand
        return None
    token, ends = json.loads(entry.value)
    return _Holder(entry.revision, token, ends)


async def _update(bucket: Any, name: str, claim: Claim, holder: _Holder) -> bool:
    """Hold a key that is as it was seen; says whether it was."""
    try:
        await bucket.update(name, _value(claim), last=holder.revision)
    except KeyWrongLastSequenceError:
        return False
    return True
