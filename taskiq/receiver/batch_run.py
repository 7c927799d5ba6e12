"""Running one batch: its hooks, its call, and what becomes of each member."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from taskiq.batch import BatchInfo, FlushReason
from taskiq.hooks import hooks_of
from taskiq.receiver.batch_call import BatchCall
from taskiq.receiver.casualties import shared
from taskiq.receiver.containment import run_hooks
from taskiq.receiver.deliveries import Part, log_alone
from taskiq.receiver.diagnosis import describe_batch, log_batch
from taskiq.receiver.states import BatchState, MessageState
from taskiq.receiver.tasks import work_for

if TYPE_CHECKING:
    from collections.abc import Sequence

    from taskiq.outcome import Outcome
    from taskiq.receiver.batcher import Batch
    from taskiq.receiver.delivery import Delivery
    from taskiq.receiver.runtime import Runtime

_CALLED: Final = frozenset({BatchState.SEALED, BatchState.RUNNING})


class BatchRun:
    """One sealed batch, from its start to its last member.

    :param runtime: what its parts are asked of.
    :ivar broker: whose messages it has.
    :ivar is_paced: whether one more call of it waits for the rate of its task.
    """

    is_batched = True

    def __init__(self, runtime: Runtime, batch: Batch[Delivery]) -> None:
        self.broker: object = runtime.broker
        self._runtime = runtime
        self._batch = batch
        self.is_paced = False
        self._members = list(batch.members)
        self._name = ""
        self._waited = runtime.clock.time() - batch.opened_at
        self._info = self._info_of(self._members)

    def _info_of(self, members: Sequence[Delivery]) -> BatchInfo:
        return BatchInfo(
            # As random as a UUID, for half of its cost.
            batch_id=os.urandom(16).hex(),
            task_name=members[0].message.task_name,
            messages=tuple([member.message for member in members]),
            flush_reason=self._batch.reason or FlushReason.MANUAL,
            waited=self._waited,
        )

    async def run(self) -> None:
        """Call the function, give its slot back, settle each message.

        With suspects among them there are several calls. Those that are to be made one
        after another are made here, each settled before the next: what it does cannot
        be lost by a later one that kills the process. The others become batches of
        their own, which start as soon as there are slots.
        """
        parts = await self._parts()
        self._watch()
        for member in self._members:
            if member.context is not None:
                # What its hooks do from now on is done for the batch.
                member.context.run(work_for, self)
        for number, (members, turn, deliveries) in enumerate(parts, 1):
            if len(parts) > 1:
                self._info = self._info_of(members)
            if number > 1:
                await self._turn()
            if deliveries:
                log_alone(deliveries, members[0])
            await self._runtime.turns.enter(turn)
            try:
                is_last = number == len(parts)
                if not await self._run_together(members, is_last=is_last):
                    return
            finally:
                self._runtime.turns.leave(turn)

    async def _parts(self) -> Sequence[Part]:
        """Say which calls to make here, in order; the other ones are given away."""
        counting = self._runtime.deliveries
        if counting is None or self._runtime.listening is None:
            return (Part(self._members),)
        batch = self._batch
        runs = await counting.runs(self._members, batch.lane.config.size)
        if batch.is_part or len(runs) == 1:
            return [part for run in runs for part in run]
        away = [[each for part in run for each in part.members] for run in runs[1:]]
        self._runtime.part(batch, away)
        self._members = list(batch.members)
        self._info = self._info_of(self._members)
        return runs[0]

    async def _run_together(
        self, members: Sequence[Delivery], *, is_last: bool
    ) -> bool:
        """Note a call where its main process sees it, should this one die, and make it.

        :returns: as `_call`.
        """
        own = shared()
        if own is None:
            return await self._call(members, is_last=is_last)
        ids = [member.message.task_id for member in members]
        noted = own.running.begin(self._info.task_name, ids)
        try:
            return await self._call(members, is_last=is_last)
        finally:
            own.running.end(noted)

    async def _call(self, members: Sequence[Delivery], *, is_last: bool) -> bool:
        """Make one call and settle its messages.

        :returns: whether it was begun: not once the time to stop is over.
        """
        runtime = self._runtime
        if hooks_of(runtime.broker).on_batch_start:
            await self._run_hooks("on_batch_start")
        if not runtime.may_begin(self):
            return False
        if self._batch.state is BatchState.SEALED:
            self._batch.move(BatchState.RUNNING)
        call = BatchCall(
            runtime.broker,
            runtime.receiver.execution,
            self._info,
            members,
            self._turn,
            runtime.aborting,
        )
        outcomes = await call.run()
        if is_last:
            runtime.batcher.call_ended(self._batch)
        if call.extra_calls:
            self._info = replace(self._info, isolation_calls=call.extra_calls)
        await self._settle(members, outcomes, call.seconds)
        return True

    async def _turn(self) -> None:
        await self._runtime.turn_to_call_again(self, self._batch)

    async def _settle(
        self,
        members: Sequence[Delivery],
        outcomes: Sequence[Outcome],
        seconds: float,
    ) -> None:
        settlement = self._runtime.settlement
        results = settlement.give_results(members, outcomes, seconds)
        log_batch(self._info, outcomes, seconds)
        if hooks_of(self._runtime.broker).on_batch_end:
            await self._run_hooks("on_batch_end", results)
        if self._runtime.chunks.count:
            members = self._runtime.chunks.take_results(members, seconds)
        wanted = [
            member
            for member in members
            if member.settled is None or not member.is_given_up
        ]
        await settlement.settle_all(wanted)

    async def _run_hooks(self, hook: str, *args: object) -> None:
        middlewares = getattr(hooks_of(self._runtime.broker), hook)
        await run_hooks(middlewares, hook, self, self._info, *args)

    def _watch(self) -> None:
        runtime = self._runtime
        runtime.redeliveries.report(self._members)
        runtime.flushes.note(self._info, self._batch.lane.config)
        if runtime.listening is not None:
            runtime.short_batches.of(self._info.task_name).started(
                self._info,
                self._batch.lane.config,
                self._batch.opened_at,
                was_starved=runtime.listening.prefetch.is_reading,
            )

    def _watch_next(self) -> None:
        """Let be noted how soon the messages of the next batch come."""
        runtime, lane = self._runtime, self._batch.lane
        watch = runtime.short_batches.of(self._info.task_name)
        now = runtime.clock.time()
        watch.settled(now)
        seconds = watch.look_after(lane.config)
        if seconds is None or not runtime.is_open:
            return

        def look() -> None:
            watch.came_early(runtime.batcher.most_open(lane.owner))

        watch.look_at(runtime.clock.call_at(now + seconds, look))

    @property
    def is_over(self) -> bool:
        """Whether nothing more comes of it."""
        return self._batch.state is BatchState.SETTLED

    def leave(self) -> None:
        """Give up the members that are not settled; after all of them, let go of it."""
        runtime = self._runtime
        runtime.redeliveries.let_go(self._members)
        if self._batch.state in _CALLED:
            runtime.batcher.call_ended(self._batch)
        if not self.is_over:
            for member in self._members:
                member.end(MessageState.LEFT)
        self._watch_next()
        # Tasks that the function has begun work for this, and may never end.
        self._name = str(self)
        self._members, self._info = [], replace(self._info, messages=())
        self._batch.members.clear()

    def __str__(self) -> str:
        return self._name or describe_batch(self._info)
