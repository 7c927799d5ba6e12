"""Releasing the keys of unique tasks, with the outcome of the message that holds each.

A middleware does it, which is on a broker as soon as a unique task is. It comes first
in the list, so that of the hooks after a run its own are the last.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

import anyio

from taskiq.abc.middleware import TaskiqMiddleware
from taskiq.bulk import run_bounded
from taskiq.exceptions import MessageNackedError, NoResultError
from taskiq.outage import brief
from taskiq.policies import Action, Reason, is_sent_again
from taskiq.unique import UNIQUE_LABEL, held_by, store_of

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

    from taskiq.dead_letters.letter import DeadLetter
    from taskiq.message import TaskiqMessage
    from taskiq.policies import Ending
    from taskiq.result import TaskiqResult
    from taskiq.unique import UniqueStore

logger = logging.getLogger("taskiq.unique")

#: Seconds that releasing keys may take: the capacity of its message is held meanwhile.
RELEASE_TIMEOUT: Final = 30.0

_RELEASES_AT_ONCE: Final = 1000

#: The attribute of a message that has an `Ending`.
_ENDING: Final = "__taskiq_unique_ending"

#: Such a message does not run, now or later: it need not hold its key any longer.
_NEVER_RUN: Final = frozenset(
    {Reason.UNKNOWN_TASK, Reason.BAD_LABEL, Reason.MAX_DELIVERIES},
)


class UniqueRelease(TaskiqMiddleware):
    """Releases the key of a message that has its outcome.

    That is when its result is saved, when it ends without one, or when it is kept as a
    dead letter. A message that runs again holds its key: one that was retried, requeued
    or given back, or whose result could not be saved.

    Messages of other tasks come by, too: a hook fewer counts, so there is none that is
    called with the outcome of every message but `post_save`.
    """

    def on_error(
        self,
        message: TaskiqMessage,
        result: TaskiqResult[Any],
        exception: BaseException,  # noqa: ARG002 - a hook may have replaced it
    ) -> Coroutine[Any, Any, None] | None:
        """Release the key of a message that ends without a result."""
        error = result.error
        is_end = isinstance(error, NoResultError) and not (
            isinstance(error, MessageNackedError) or is_sent_again(message)
        )
        return self._release(message) if is_end else None

    def on_ending(
        self,
        message: TaskiqMessage | None,
        ending: Ending,
    ) -> Coroutine[Any, Any, None] | None:
        """Note how a message ends; release at once what will not be run."""
        if message is None or UNIQUE_LABEL not in message.labels:
            return None
        # The message forbids attributes that it does not declare.
        object.__setattr__(message, _ENDING, ending.action)
        if ending.action is Action.ACK and ending.reason in _NEVER_RUN:
            return self._release(message)
        return None

    def post_save(
        self,
        message: TaskiqMessage,
        result: TaskiqResult[Any],
    ) -> Coroutine[Any, Any, None] | None:
        """Release the key of a message whose result is saved, if that is its end."""
        if UNIQUE_LABEL not in message.labels or is_sent_again(message):
            return None
        is_kept = _ending_of(message) in {Action.GIVE_BACK, Action.DEAD_LETTER}
        if result.error is not None and is_kept:
            return None
        return self._release(message)

    async def on_dead_letter(self, letter: DeadLetter) -> None:
        """Release the key of a message that is kept as a dead letter."""
        try:
            message = self.broker.formatter.loads(letter.data)
        except Exception:  # noqa: BLE001 - that is why it is a dead letter
            return
        await self._release(message)

    async def _release(self, message: TaskiqMessage) -> None:
        held = held_by(message.task_id, message.labels)
        store = store_of(self.broker)
        if held is not None and store is not None:
            await release(store, [held])


def _ending_of(message: TaskiqMessage) -> Action | None:
    action: Action | None = getattr(message, _ENDING, None)
    return action


async def release(store: UniqueStore, held: Sequence[tuple[str, str]]) -> None:
    """Release keys; if that fails it is logged, and they are held until their end.

    :param held: the keys, each with the token it is held under.
    """

    async def release_one(one: tuple[str, str]) -> None:
        await store.release(*one)

    failed: list[Any]
    try:
        with anyio.fail_after(RELEASE_TIMEOUT):
            if len(held) == 1:
                await release_one(held[0])
                return
            failed = await run_bounded(release_one, held, _RELEASES_AT_ONCE)
    except Exception as exc:  # noqa: BLE001 - harms nobody but the next of these keys
        failed = [exc] * len(held)
    errors = {key: exc for (key, _), exc in zip(held, failed, strict=True) if exc}
    if errors:
        key, error = next(iter(errors.items()))
        logger.warning(
            "Cannot release the unique key %s%s: %s. Who has it holds it until its "
            "unique_ttl is over.",
            key,
            f" and {len(errors) - 1} more" if len(errors) > 1 else "",
            brief(error),
        )


def ensure_release(broker: Any) -> None:
    """See to it that a broker releases the keys of the messages it runs."""
    middlewares: list[TaskiqMiddleware] = broker.middlewares
    if not any(isinstance(each, UniqueRelease) for each in middlewares):
        middleware = UniqueRelease()
        middleware.set_broker(broker)
        middlewares.insert(0, middleware)
