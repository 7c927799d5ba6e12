"""Aborting what one event loop holds: what waits, what is in a batch, what runs."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from taskiq.aborts import store_of
from taskiq.acks import AcknowledgeType
from taskiq.bulk import GroupCommit, cancel_all
from taskiq.chunks import sent_id
from taskiq.exceptions import TaskAbortedError
from taskiq.outcome import Failed
from taskiq.receiver.containment import contain
from taskiq.receiver.states import MessageState

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from taskiq.aborts import AbortStore
    from taskiq.outcome import Outcome
    from taskiq.receiver.delivery import Delivery
    from taskiq.receiver.execution import Call
    from taskiq.receiver.runtime import Runtime

logger = logging.getLogger("taskiq.receiver.receiver")

#: Seconds before a lost subscription is made again, at first and at most.
_FIRST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 5.0
#: Seconds that a look at the store may take, and that none follows one that failed.
_PATIENCE: Final = 5.0
#: Most messages that one line names.
_MOST_NAMED: Final = 10


class Aborting:
    """Settles the messages of one event loop that were aborted.

    Of what is to be done the store's `aborts` tell in any thread; it is done in the
    loop, once for all that were told together.

    :param runtime: what holds the messages.
    :param store: where marks are kept.
    """

    def __init__(self, runtime: Runtime, store: AbortStore) -> None:
        self._runtime = runtime
        self._loop = runtime.loop
        self._store = store
        self._aborts = store.aborts
        self._heard: deque[Collection[str]] = deque()
        self._is_sweeping = False
        self._looks: GroupCommit[str, bool] = GroupCommit(self._look)
        self._no_look_before = 0.0
        self._following: asyncio.Task[None] | None = None
        self._calls = runtime.receiver.execution.waiting_in(runtime.loop)
        store.aborts.attach(self)

    @staticmethod
    def of(runtime: Runtime) -> Aborting | None:
        """Make it for a broker that has a store."""
        store = store_of(runtime.broker)
        return None if store is None else Aborting(runtime, store)

    # -- Before a call -------------------------------------------------------------

    def concerns(self, task_id: str) -> bool:
        """Whether there is something to ask about a message before it runs."""
        aborts = self._aborts
        return not aborts.is_current or task_id in aborts

    async def before(self, delivery: Delivery) -> Failed | None:
        """Say that a message was aborted, if it was."""
        task_id = delivery.message.task_id
        if task_id in self._aborts or (
            not self._aborts.is_current and await self._looks.submit(task_id)
        ):
            return abort(delivery)
        return None

    async def _look(self, task_ids: Sequence[str]) -> Sequence[bool]:
        """Look at the store for several; one that is away marks nothing.

        Nor is it looked at for a while then, for those that wait meanwhile either.
        """
        marked: Any = ()
        if self._loop.time() >= self._no_look_before:
            marked = await contain(self._store.look, task_ids, seconds=_PATIENCE)
        if isinstance(marked, Failed):
            self._no_look_before = self._loop.time() + _PATIENCE
            logger.warning(
                "Cannot look whether messages were aborted: %r. Those of the next "
                "%g seconds run unless they are told of.",
                marked.error,
                _PATIENCE,
            )
            marked = ()
        return [task_id in marked for task_id in task_ids]

    # -- In a batch ----------------------------------------------------------------

    @property
    def is_any(self) -> bool:
        """Whether there is a mark at all."""
        return bool(self._aborts)

    def outcome_of(self, members: Sequence[Delivery]) -> Outcome | None:
        """Say that an item was aborted: each of the messages that it stands for."""
        for member in members:
            if sent_id(member.message) not in self._aborts:
                return None
        return abort(members[0])

    # -- What is told --------------------------------------------------------------

    def heard(self, task_ids: Collection[str]) -> None:
        """Abort what is held of these, soon; to be called from any thread."""
        self._heard.append(task_ids)
        if self._is_sweeping:
            return
        self._is_sweeping = True
        with suppress(RuntimeError):  # it is closed, and holds nothing
            self._loop.call_soon_threadsafe(self._sweep)

    def _sweep(self) -> None:
        self._is_sweeping = False
        heard: set[str] = set()
        while self._heard:
            heard.update(self._heard.popleft())
        for call, steps in self._calls.find(heard):
            if self._is_over(call):
                task_id = call.context.message.task_id
                steps.interrupt_for(TaskAbortedError(task_id=task_id))
        runtime = self._runtime
        for member in runtime.batcher.find(heard):
            runtime.batcher.withdraw(member)
            if member.is_part:
                runtime.chunks.abort(member)
                continue
            runtime.redeliveries.let_go([member])
            member.move(MessageState.SETTLING)
            work = self._settle(member)
            runtime.tasks.begin(work, member, context=runtime.base)

    def _is_over(self, call: Call) -> bool:
        """Whether nobody wants a call any more: all of its messages are aborted."""
        return all(each in self._aborts for each in call.sent_ids())

    async def _settle(self, delivery: Delivery) -> None:
        """Settle a message that waited in a batch."""
        with delivery:
            settlement = self._runtime.settlement
            settlement.give_results([delivery], [abort(delivery)], 0.0)
            log_aborted([delivery])
            await settlement.settle(delivery)
            delivery.end(MessageState.DONE)

    # -- Following -----------------------------------------------------------------

    def follow(self) -> None:
        """Begin to follow the store, unless that goes on."""
        if self._following is None and not self._store.is_local:
            self._following = self._loop.create_task(self._keep_following())

    async def close(self) -> None:
        """Follow the store no longer."""
        if self._following is not None:
            following, self._following = self._following, None
            await cancel_all([following])

    async def _keep_following(self) -> None:
        pause = _FIRST_PAUSE
        try:
            while True:
                ended: Any = await contain(self._store.follow)
                if self._aborts.is_current:
                    pause = _FIRST_PAUSE
                self._aborts.is_current = False
                logger.warning(
                    "No longer told of aborted messages: %s. The store is looked at "
                    "for each message until that is mended; trying in %g s.",
                    repr(ended.error) if isinstance(ended, Failed) else "it ended",
                    pause,
                )
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
        finally:
            self._aborts.is_current = False


def abort(delivery: Delivery) -> Failed:
    """Let a message end as aborted: it is acknowledged though nobody else will.

    :returns: its outcome.
    """
    if delivery.ack_type is AcknowledgeType.MANUAL:
        delivery.ack_type = AcknowledgeType.WHEN_SAVED
    return Failed(TaskAbortedError(task_id=delivery.message.task_id))


def log_aborted(deliveries: Sequence[Delivery]) -> None:
    """Name messages that were aborted."""
    named = ", ".join(str(each) for each in deliveries[:_MOST_NAMED])
    more = len(deliveries) - _MOST_NAMED
    logger.info("Aborted: %s%s.", named, f" and {more} more" if more > 0 else "")
