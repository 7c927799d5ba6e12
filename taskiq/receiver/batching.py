"""Running batches: from a placed message to its settled outcome.

The decisions are the :class:`~taskiq.receiver.batcher.Batcher`'s; here is the waiting
and the I/O around them.
"""

from __future__ import annotations

import asyncio
import logging
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from taskiq.batch import BatchInfo, FlushReason
from taskiq.hooks import hooks_of, run_hooks
from taskiq.receiver.batch_call import BatchCall
from taskiq.receiver.batcher import Batch, Batcher, BatcherStatistics, BatchState
from taskiq.receiver.cancellation import start_task
from taskiq.receiver.capacity import RedeliveryWatch, ShortBatchWatch
from taskiq.receiver.delivery import Member
from taskiq.receiver.running import RunningTasks, Slots, start_for, wait_for_all
from taskiq.receiver.settlement import as_stored, result_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from taskiq.abc.broker import AsyncBroker
    from taskiq.receiver.batcher import Clock
    from taskiq.receiver.execution import Execution
    from taskiq.receiver.settlement import Settlement
    from taskiq.result import TaskiqResult

logger = logging.getLogger("taskiq.receiver.receiver")

#: Messages of one batch that are settled at the same time. Clients make a connection
#: for each acknowledgement that is under way: with 32 of them Redis streams are drained
#: an eighth more slowly on a fast network; with 8 there is more to wait for on a slow
#: one.
SETTLED_AT_ONCE = 16


class Batching:
    """Gathers members, calls their function, settles each.

    :param running: where the asyncio tasks of the calls are kept.
    :param executions: the semaphore a call takes one unit of; `None` for no limit.
    :param is_starved: whether the broker was asked for more and gives nothing now;
        `None` where no broker is listened to.
    :param clock: the time that batches wait by; `None` is the event loop's.
    :ivar on_due: called when batches fall due and are about to start.
    """

    def __init__(
        self,
        broker: AsyncBroker,
        execution: Execution,
        settlement: Settlement,
        running: RunningTasks,
        executions: asyncio.Semaphore | None = None,
        is_starved: Callable[[], bool] | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self._clock = self.loop if clock is None else clock
        self._broker = broker
        self._execution = execution
        self._settlement = settlement
        self._running = running
        self._executions = executions
        self._is_starved = is_starved
        self.on_due: Callable[[], object] | None = None
        self._watches: dict[str, ShortBatchWatch] = {}
        self._redeliveries = RedeliveryWatch()
        self._batcher: Batcher[Member] = Batcher(
            self._clock,
            wake=self._wake,
            admitted=Member.admitted,
        )
        # Waits for capacity while a batch is due; there is none when none is.
        self._starter: asyncio.Task[None] | None = None
        # How many wait until nothing is held; what arrives meanwhile is flushed.
        self._drains = 0
        self._is_abandoned = False

    def add(self, member: Member) -> bool:
        """Take a message into the batch it belongs to, as soon as there is room.

        :returns: whether it needs no delivery slot: it was admitted, or given up.
        """
        if self._is_abandoned:
            self._give_up([member])
            return True
        self._redeliveries.took(member)
        return self._batcher.offer(
            member.task,
            member.plan.config,
            member.group,
            member,
            member.weight,
        )

    async def add_and_wait(self, member: Member) -> None:
        """Take a message in and return when it is settled.

        Cancelling the wait gives the message up: it is taken out of its batch, or gets
        no result and no ack if its call has started.
        """
        settled = member.settled = self.loop.create_future()
        if self.add(member):
            member.admitted()
        try:
            await settled
        except asyncio.CancelledError:
            settled.cancel()
            self._batcher.withdraw(
                member.task,
                member.group,
                member,
                member.weight,
            )
            self._redeliveries.let_go([member])
            raise

    async def run_alone(self, member: Member) -> None:
        """Run a message here and now, as a batch of its own, whatever the limits."""
        config = member.plan.config
        batch = self._batcher.take_alone(member.task, config, member.group, member)
        await start_for(self._broker, self._start, batch, Slots())

    @property
    def is_idle(self) -> bool:
        """Whether no message is waiting, running or being settled."""
        return self._batcher.is_empty

    @property
    def is_replaceable(self) -> bool:
        """Whether nothing is lost with it: it holds nothing, and nobody listens."""
        if self.loop.is_closed():
            return True
        return self.is_idle and self._is_starved is None

    def statistics(self) -> BatcherStatistics:
        """Count what is held now."""
        return self._batcher.statistics()

    def drain(self, reason: FlushReason) -> None:
        """Flush every batch, and each later one as soon as it has a member."""
        self._drains += 1
        self._batcher.drain(reason)

    def resume(self) -> None:
        """End what `drain` began, unless somebody else has begun it, too."""
        self._drains -= 1
        if self._drains == 0:
            self._batcher.resume()

    async def wait_idle(self) -> None:
        """Wait until nothing is held. `drain` first, or it may wait for nothing."""
        while not self.is_idle:
            await asyncio.wait(self._running.tasks)

    def abandon(self) -> None:
        """Let go of every message whose call has not started, and of any later one.

        None of them is acknowledged: the broker delivers them again.
        """
        self._is_abandoned = True
        if self._starter is not None:
            self._starter.cancel()
        self._give_up(self._batcher.abandon())

    def _give_up(self, members: list[Member]) -> None:
        if not members:
            return
        self._redeliveries.let_go(members)
        for member in members:
            member.release()
            member.tell_settled()
        logger.warning(
            "Discarding %d buffered messages during Receiver cleanup, "
            "not acknowledged: %s.",
            len(members),
            ", ".join(str(member) for member in members),
        )

    def _wake(self) -> None:
        if self._starter is None and self._batcher.is_ready:
            if self.on_due is not None:
                self.on_due()
            work, start = self._start_due(), self._running.start
            # What it starts works for this broker, too: contexts are inherited.
            self._starter = start_for(
                self._broker, start, self.loop, work, Slots(), None
            )

    async def _start_due(self) -> None:
        """Start batches while one is due, each with an execution slot of its own."""
        if self._starter is None:
            # An eager task runs inside the call that made it, and that is one of the
            # batcher's: let it be done first.
            await asyncio.sleep(0)  # pragma: no cover - Python 3.12 and later
        try:
            while self._batcher.is_ready:
                slots = Slots()
                if self._executions is not None:
                    await self._executions.acquire()
                    slots.hold_execution(self._executions)
                batch = self._batcher.take()
                if batch is None:
                    slots.release()
                    continue
                self._start(batch, slots)
        finally:
            self._starter = None

    def _start(self, batch: Batch[Member], slots: Slots) -> asyncio.Task[None]:
        info = self._info(batch)
        self._redeliveries.report(batch.members)
        if self._is_starved is not None:
            self._watch(info.task_name).started(
                info,
                batch.lane.config,
                batch.opened_at,
                was_starved=self._is_starved(),
            )
        work = self._run(batch, info, slots)
        return self._running.start(self.loop, work, slots, _Subject(info))

    def _watch(self, task_name: str) -> ShortBatchWatch:
        watch = self._watches.get(task_name)
        if watch is None:
            watch = self._watches[task_name] = ShortBatchWatch()
        return watch

    def _info(self, batch: Batch[Member]) -> BatchInfo:
        return BatchInfo(
            # As random as a UUID, for half of its cost.
            batch_id=os.urandom(16).hex(),
            task_name=batch.members[0].task.name,
            messages=tuple(member.message for member in batch.members),
            flush_reason=batch.reason or FlushReason.MANUAL,
            waited=self._clock.time() - batch.opened_at,
        )

    async def _run(self, batch: Batch[Member], info: BatchInfo, slots: Slots) -> None:
        """Call the function, give its slot back, settle each message."""
        call = BatchCall(self._broker, self._execution, info, batch.members)
        subject = _Subject(info)
        try:
            try:
                if hooks_of(self._broker).on_batch_start:
                    await run_hooks(self._broker, "on_batch_start", subject, info)
                batch.move(BatchState.RUNNING)
                outcomes = await call.run()
            finally:
                self._batcher.call_ended(batch)
                slots.release_execution()
            if call.extra_calls:
                info = replace(info, isolation_calls=call.extra_calls)
            seconds = as_stored(call.seconds)
            results = [
                result_of(outcome, seconds, message)
                for outcome, message in zip(outcomes, info.messages, strict=True)
            ]
            _log_batch(info, results, call.seconds)
            if hooks_of(self._broker).on_batch_end:
                await run_hooks(self._broker, "on_batch_end", subject, info, results)
            await self._settle(batch, results)
        finally:
            self._redeliveries.let_go(batch.members)
            if batch.unsettled:
                # Ended early: nobody waits for these now, and nothing counts them.
                for member in batch.members:
                    member.tell_settled()
                for _ in range(batch.unsettled):
                    self._batcher.member_settled(batch)
            self._watch(info.task_name).settled(self._clock.time())

    async def _settle(
        self,
        batch: Batch[Member],
        results: Sequence[TaskiqResult[Any]],
    ) -> None:
        """Settle the messages side by side, each independent of its neighbours."""
        pairs = zip(batch.members, results, strict=True)
        if len(results) == 1:
            await self._settle_each(batch, pairs)
            return
        others: list[asyncio.Task[None]] = []

        def share() -> None:
            helpers = min(SETTLED_AT_ONCE, len(results)) - 1
            others.extend(
                start_task(self.loop, self._settle_each(batch, pairs))
                for _ in range(helpers)
            )

        # Others help only once settling has to wait for something: where it never
        # does, as with results in memory, this coroutine settles all by itself.
        call_for_help = self.loop.call_soon(share)
        try:
            await self._settle_each(batch, pairs)
            call_for_help.cancel()
            await wait_for_all(others, None)
        except asyncio.CancelledError:
            call_for_help.cancel()
            for other in others:
                other.cancel()
            await wait_for_all(others, None)
            raise

    async def _settle_each(
        self,
        batch: Batch[Member],
        pairs: Iterator[tuple[Member, TaskiqResult[Any]]],
    ) -> None:
        """Settle what is left of `pairs`, which is shared with other settlers."""
        settle, member_settled = self._settlement.settle, self._batcher.member_settled
        hooks = hooks_of(self._broker)
        for member, result in pairs:
            waiter = member.settled  # mostly nobody
            if waiter is None or not waiter.cancelled():
                await settle(member, result, hooks)
            if waiter is not None:
                member.tell_settled()
            member_settled(batch)


class _Subject:
    """Names a batch in the log."""

    __slots__ = ("_info",)

    def __init__(self, info: BatchInfo) -> None:
        self._info = info

    def __str__(self) -> str:
        ids = ", ".join(message.task_id for message in self._info.messages)
        return f"batch {self._info.batch_id} of task {self._info.task_name} ({ids})"


def _log_batch(
    info: BatchInfo,
    results: Sequence[TaskiqResult[Any]],
    seconds: float,
) -> None:
    if not logger.isEnabledFor(logging.INFO):
        return
    logger.info(
        "Batch %s of task %s: %d messages (%d failed), flushed by %s, "
        "waited %.3f s, took %.3f s.",
        info.batch_id,
        info.task_name,
        len(results),
        sum(result.is_err for result in results),
        info.flush_reason.value,
        info.waited,
        seconds,
    )
    if logger.isEnabledFor(logging.DEBUG):
        logger.debug("Messages of %s.", _Subject(info))
