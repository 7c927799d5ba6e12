"""Sending messages of a unique task: each has to claim its key before it leaves."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from taskiq.bulk import run_bounded
from taskiq.exceptions import UniqueError, UniqueNotSupportedError
from taskiq.labels import LabelType
from taskiq.message import TaskiqMessage
from taskiq.result_backends.dummy import DummyResultBackend
from taskiq.sending import Sending, handle_of
from taskiq.unique import (
    UNIQUE_LABEL,
    Claim,
    label_of,
    split_token,
    store_of,
    token_of,
)
from taskiq.unique_release import release

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from taskiq.abc.broker import AsyncBroker
    from taskiq.task import AsyncTaskiqTask
    from taskiq.unique import Unique

logger = logging.getLogger("taskiq.unique")

_AT_ONCE: Final = 100


class _Candidate(NamedTuple):
    """A message that leaves if it gets its key."""

    message: TaskiqMessage
    claim: Claim


class UniqueSending(Sending):
    """One call of `kiq` or `kiq_many` of a unique task.

    Hooks run for what is sent, and for nothing else.

    :param make: makes a message of its arguments.
    :param unique: what the task says.
    :param is_named: whether the id was given: other messages may have had it.
    :raises UniqueNotSupportedError: when keys cannot be held anywhere.
    """

    def __init__(
        self,
        broker: AsyncBroker,
        task_name: str,
        return_type: type[Any] | None,
        make: Callable[[tuple[Any, ...], dict[str, Any]], TaskiqMessage],
        unique: Unique,
        *,
        is_named: bool,
    ) -> None:
        super().__init__(broker, task_name, return_type, make)
        store = store_of(broker)
        if store is None:
            raise UniqueNotSupportedError(
                task_name=task_name,
                broker=type(broker).__name__,
                result_backend=type(broker.result_backend).__name__,
            )
        self._store = store
        self._unique = unique
        self._is_named = is_named
        # Of what this call has sent: for the same in a later chunk.
        self._by_token: dict[str, AsyncTaskiqTask[Any]] = {}

    async def _send_chunk(self, chunk: list[Any]) -> None:
        candidates = self._candidates(chunk)
        # Of those with the same key the first one stands for the others.
        first: dict[str, int] = {}
        for number, each in candidates.items():
            first.setdefault(each.claim.key, number)
        won = await self._claim({n: candidates[n] for n in first.values()})
        try:
            if won:
                await self._send_numbered((n, each.message) for n, each in won.items())
        finally:
            unsent = [each for n, each in won.items() if n not in self._handles]
            await self._give_up(each.claim for each in unsent)
        for number, each in won.items():
            if number in self._handles:
                self._by_token[each.claim.token] = self._handles[number]
        for number, each in candidates.items():
            self._follow(number, first[each.claim.key])

    def _message(self, item: Any) -> TaskiqMessage:
        return item if isinstance(item, TaskiqMessage) else super()._message(item)

    def _candidates(self, chunk: list[Any]) -> dict[int, _Candidate]:
        candidates: dict[int, _Candidate] = {}
        for number, item in enumerate(chunk, start=self._total):
            try:
                candidates[number] = self._candidate(self._message(item))
            except Exception as exc:  # noqa: BLE001, PERF203 - each fails for itself
                self._errors[number] = exc
        return candidates

    def _candidate(self, message: TaskiqMessage) -> _Candidate:
        key = self._unique.key(message.task_name, message.args, message.kwargs)
        nonce = os.urandom(8).hex() if self._is_named else ""
        message.labels[UNIQUE_LABEL] = label_of(key, nonce)
        if message.labels_types is not None:
            message.labels_types[UNIQUE_LABEL] = LabelType.STR.value
        token = token_of(message.task_id, nonce)
        return _Candidate(message, Claim(key, token, self._unique.ttl))

    def _follow(self, number: int, first: int) -> None:
        """Let a message end as the first one with its key did."""
        if number != first and first in self._handles:
            self._handles[number] = self._handles[first]
        elif number != first:
            self._errors[number] = self._errors[first]

    # -- Claiming ----------------------------------------------------------------------

    async def _claim(self, candidates: dict[int, _Candidate]) -> dict[int, _Candidate]:
        """Claim keys; give those who do not get theirs a handle, or an error.

        :returns: those who have.
        """
        holders = await self._holders([each.claim for each in candidates.values()])
        won: dict[int, _Candidate] = {}
        for (number, each), holder in zip(candidates.items(), holders, strict=True):
            if isinstance(holder, Exception):
                error = UniqueError(task_name=self._task_name)
                error.__cause__ = holder
                self._errors[number] = error
            elif holder == each.claim.token:
                won[number] = each
            else:
                self._handles[number] = self._handle_to(holder, each.message)
        return won

    async def _holders(self, claims: Sequence[Claim]) -> list[str | Exception]:
        """Claim keys, and those again whose holder turns out to have its outcome.

        A worker saves a result first and releases the key then: who has waited for the
        result may be here in between.
        """
        holders = await self._ask(claims)
        held = [
            number
            for number, claim in enumerate(claims)
            if holders[number].__class__ is str and holders[number] != claim.token
        ]
        ended = await run_bounded(self._has_ended, [holders[n] for n in held], _AT_ONCE)
        over = [n for n, is_over in zip(held, ended, strict=True) if is_over is True]
        await self._give_up(Claim(claims[n].key, str(holders[n]), 0) for n in over)
        again = await self._ask([claims[number] for number in over])
        for number, holder in zip(over, again, strict=True):
            holders[number] = holder
        return holders

    async def _ask(self, claims: Sequence[Claim]) -> list[str | Exception]:
        if not claims:
            return []
        holders: list[str | Exception]
        try:
            holders = list(await self._store.claim_many(claims))
        except Exception as exc:  # noqa: BLE001 - told for each message
            holders = [exc] * len(claims)
        except BaseException:
            await self._give_up(claims)
            raise
        # The claim may have been made all the same.
        failed = [n for n, each in enumerate(holders) if isinstance(each, Exception)]
        await self._give_up(claims[number] for number in failed)
        return holders

    async def _has_ended(self, token: Any) -> bool:
        """Whether there is a result of the message that holds a key."""
        task_id, nonce = split_token(token)
        backend = self._broker.result_backend
        # Under an id that was given there may be the result of an earlier message.
        if nonce or isinstance(backend, DummyResultBackend):
            return False
        return await backend.is_result_ready(task_id)

    async def _give_up(self, claims: Iterable[Claim]) -> None:
        held = [(claim.key, claim.token) for claim in claims]
        if held:
            await release(self._store, held)

    def _handle_to(self, token: str, message: TaskiqMessage) -> AsyncTaskiqTask[Any]:
        """Give a handle to the message that holds the key of this one."""
        if token in self._by_token:
            return self._by_token[token]
        task_id, _ = split_token(token)
        logger.debug(
            "Not sent, as it is queued or running with ID %s: task %s with args=%s "
            "and kwargs=%s.",
            task_id,
            message.task_name,
            message.args,
            message.kwargs,
        )
        holder = message.model_copy(update={"task_id": task_id})
        return handle_of(self._broker, holder, self._return_type)
