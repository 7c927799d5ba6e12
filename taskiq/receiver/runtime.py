"""The one path of every message, and all that changes while messages take it.

There is a runtime for each event loop: nothing of one loop is waited for, or held, in
another. The decisions are made elsewhere; here is the order in which they are asked.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from typing import TYPE_CHECKING, Any, Final

from taskiq.chunks import is_chunk
from taskiq.exceptions import TaskAbortedError
from taskiq.outage import brief
from taskiq.rates import store_of
from taskiq.receiver.aborting import Aborting, abort, log_aborted
from taskiq.receiver.admission import Admission
from taskiq.receiver.batch_run import BatchRun
from taskiq.receiver.batcher import Batcher
from taskiq.receiver.casualties import shared
from taskiq.receiver.chunks import Chunks
from taskiq.receiver.containment import attempt
from taskiq.receiver.deliveries import Deliveries
from taskiq.receiver.delivery import Delivery
from taskiq.receiver.diagnosis import (
    RedeliveryWatch,
    ShortBatchWatches,
    SlotWatch,
    log_start,
)
from taskiq.receiver.flushes import FlushHistory
from taskiq.receiver.leases import Leases
from taskiq.receiver.paces import Paces
from taskiq.receiver.pacing import Pacing
from taskiq.receiver.settlement import Settlement
from taskiq.receiver.states import BatchState, Holder, MessageState, Unit
from taskiq.receiver.tasks import Tasks, subject_of, work_for
from taskiq.receiver.turns import Turns
from taskiq.receiver.unique_keys import UniqueKeys
from taskiq.waiting import wait_watches

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from taskiq.acks import AckableMessage
    from taskiq.batch import BatcherStatistics, FlushReason
    from taskiq.clock import Clock
    from taskiq.outcome import Failed
    from taskiq.receiver.batcher import Batch
    from taskiq.receiver.listening import Listening
    from taskiq.receiver.receiver import Receiver
    from taskiq.receiver.tasks import Subject

logger = logging.getLogger("taskiq.receiver.receiver")

# By name: on Python 3.11 a member costs as much as a call each time it is asked for.
_READ: Final = MessageState.READ
_ADMITTING: Final = MessageState.ADMITTING
_RUNNING: Final = MessageState.RUNNING
_SETTLING: Final = MessageState.SETTLING

#: What a callback of somebody's own is called for: it takes the units over.
_lent: contextvars.ContextVar[Delivery | None] = contextvars.ContextVar(
    "taskiq_lent_delivery",
    default=None,
)


class Runtime:
    """The messages of one receiver in one event loop.

    :param receiver: its configuration, and what applications may replace of it.
    :param loop: the running event loop.
    :param clock: the time that batches wait by; `None` is the loop's.
    :ivar base: the context that batches start from, which is no message's.
    :ivar flushes: how the last batches left.
    :ivar listening: the `listen` that goes on, or did last; `None` in process.
    :ivar is_open: whether one goes on.
    :ivar not_begun: calls that a stop had no time for.
    """

    def __init__(
        self,
        receiver: Receiver,
        loop: asyncio.AbstractEventLoop,
        clock: Clock | None,
    ) -> None:
        broker = receiver.broker
        self.receiver = receiver
        self.broker = broker
        self.loop = loop
        self.base = contextvars.Context()
        self.tasks = Tasks(loop)
        # Bound once, and not for each of thousands that wait.
        self._take_sent = self._read_in_process
        self.clock: Clock = loop if clock is None else clock
        self.unique_keys = UniqueKeys(broker, self.clock, self._begin)
        self.settlement = Settlement(receiver, self.tasks, self.unique_keys)
        self.leases = Leases(broker)
        self.admission = Admission(receiver, self.settlement, self.leases)
        self.admission.aborting = self.aborting = Aborting.of(self)
        self.paces = Paces(self.clock, lambda: store_of(broker), self._begin)
        self.pacing = Pacing(self.clock, self.paces.make)
        self.batcher: Batcher[Delivery] = Batcher(
            self.clock, self._wake, self.paces.make
        )
        self.chunks = Chunks(self)
        self.listening: Listening | None = None
        self.is_open = False
        self.short_batches = ShortBatchWatches()
        self.redeliveries = RedeliveryWatch()
        # Counts how often messages were delivered, where the broker can.
        self.deliveries = Deliveries.of(broker)
        self.flushes = FlushHistory()
        self.not_begun = 0
        # Set by whatever wakes the starter, where somebody waits for batches that wait
        # for the rate of their task.
        self._woken: asyncio.Event | None = None
        # Resolved when a batch that runs begins to wait for its rate.
        self._paced: asyncio.Future[None] | None = None
        # Waits for capacity while a batch is due; there is none when none is.
        self._starter: asyncio.Task[Any] | None = None
        # Which calls may begin beside one that may kill this process.
        self.turns = Turns(self.clock, lambda: self._slots.is_any)
        # Looks after calls that wait for results while this is listening.
        self._slots = SlotWatch(receiver.sem, self._is_call, self.turns.look)
        self.admission.slots = self._slots.most
        # How many wait until nothing is held; what arrives meanwhile is flushed.
        self._drains = 0
        # Those of them that are messages or batches: they do not wait for one another.
        self._draining: list[Subject] = []
        # Whether the receiver stops: what is still on its way is left.
        self._is_stopped = False

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[Any]:
        """Begin what is no message's: it asks a store for something."""
        return self.tasks.begin(work, None, context=self.base)

    # -- One message ---------------------------------------------------------------

    def delivery(self, message: bytes | AckableMessage) -> Delivery:
        """Make a delivery of a message that somebody's callback was given.

        It takes over the units that the message was read with, if this is asked by what
        was begun for it, also from an asyncio task of its own.
        """
        delivery = Delivery(self.broker, message)
        lent = _lent.get()
        if lent is not None and lent.broker is self.broker:
            delivery.take_over(lent)
        self.admission.read(delivery)
        return delivery

    async def take(
        self,
        delivery: Delivery,
        *,
        raise_err: bool = False,
        is_waited_for: bool = False,
    ) -> None:
        """Take one message through every step, in order.

        :param raise_err: raise what saving its result raises.
        :param is_waited_for: whether to return only when it is settled with its batch.
        """
        with delivery:
            if delivery.refusal is not None:
                self._start(delivery)
                delivery.move(_SETTLING)
                await self.settlement.settle_refused(delivery)
                return
            if delivery.is_paced:
                await self._turn_of(delivery)
            if logger.isEnabledFor(logging.INFO):
                log_start(delivery)
            task = delivery.task
            failed: Failed | None = None
            if self.admission.waits(delivery):
                self._start(delivery)
                failed = await self.admission.admit(delivery)
            if failed is None and delivery.is_batched:
                failed = self.join(delivery)
                if failed is None:
                    if is_waited_for:
                        await self._settled(delivery)
                    return
            if failed is not None:
                self.refuse(delivery, failed)
            elif self.receiver.stop.is_asked and not self.may_begin(delivery):
                delivery.leave()
                return
            elif task is None or task.is_limited or self.turns.is_asked:
                await self._call_in_turn(delivery)
            else:
                # Counted all the same: one that is to run alone may come meanwhile.
                self.turns.gate.begin(None)
                try:
                    await self._call(delivery)
                finally:
                    self.turns.leave(None)
            delivery.move(_SETTLING)
            await self.settlement.settle(delivery, raise_err=raise_err)

    async def _call(self, delivery: Delivery) -> None:
        """Call the function of a plain task."""
        delivery.move(_RUNNING)
        delivery.result = result = await self.receiver.run_task(
            target=delivery.function,
            message=delivery.message,
            ack_controller=delivery.controller,
        )
        delivery.is_error_told = True
        if isinstance(result.error, TaskAbortedError):
            abort(delivery)

    async def _call_in_turn(self, delivery: Delivery) -> None:
        """Call the function of a plain task when that may begin beside what runs.

        Of messages that are delivered a limited number of times it is noted where the
        main process sees it, should this one die.
        """
        turn = delivery.turn
        has_waited = await self.turns.enter(turn)
        task, message = delivery.task, delivery.message
        own = shared() if task is not None and task.is_limited else None
        noted = own and own.running.begin(message.task_name, (message.task_id,))
        try:
            failed: Failed | None = None
            if has_waited and self.aborting is not None:
                failed = await self.aborting.before(delivery)
            if failed is None:
                await self._call(delivery)
            else:
                self.refuse(delivery, failed)
        finally:
            if own is not None:
                own.running.end(noted)
            self.turns.leave(turn)

    def refuse(self, delivery: Delivery, failed: Failed) -> None:
        """Give a message what kept it from running for its result."""
        error = failed.error
        if isinstance(error, TaskAbortedError):
            log_aborted([delivery])
        else:
            logger.error("Cannot run %s: %s", delivery, brief(error), exc_info=error)
        self.settlement.give_results([delivery], [failed], 0.0)

    async def _fail(self, delivery: Delivery, failed: Failed) -> None:
        """Settle a message that fits in no batch."""
        with delivery:
            work_for(delivery)
            self.refuse(delivery, failed)
            delivery.move(_SETTLING)
            await self.settlement.settle(delivery)

    def join(self, delivery: Delivery) -> Failed | None:
        """Let a message join its batch.

        Whatever its arguments raise when they are cast, keyed, weighed, hashed or
        compared happens here, and fails this message alone.

        :returns: that failure.
        """
        message = delivery.message
        if message.kwargs and is_chunk(message):  # most have none
            failed = self.chunks.join(delivery)
        else:
            failed = attempt(
                delivery.place, self.batcher.group, self.receiver.validate_params
            )
            if failed is None:
                if delivery.fingerprint is not None:
                    self.redeliveries.took(delivery)
                self.batcher.offer(delivery)
        if failed is not None:
            return failed
        if self._is_stopped:
            self._give_up(self.batcher.abandon())
        return None

    async def _settled(self, delivery: Delivery) -> None:
        """Wait until a message is settled with its batch.

        Cancelling the wait gives the message up: it is taken out of its batch, or gets
        no result and no ack if its call has started.
        """
        settled = delivery.settled
        if settled is None:
            settled = delivery.settled = self.loop.create_future()
        try:
            await settled
        except asyncio.CancelledError:
            settled.cancel()
            self.redeliveries.let_go([delivery])
            is_chunked = self.chunks.give_up(delivery)
            if not is_chunked and self.batcher.withdraw(delivery):
                delivery.end(MessageState.LEFT)
            raise

    # -- Where messages come in ------------------------------------------------------

    def begin(self, delivery: Delivery) -> None:
        """Begin to take a message that was read, of a plain task."""
        self.tasks.begin(self.take(delivery), delivery)
        self._start(delivery)

    def hold_back(
        self,
        delivery: Delivery,
        go: Callable[[Delivery], object],
    ) -> None:
        """Let a message that was read wait for the rate of its task.

        :param go: called with it when it is its turn to be given a slot.
        """
        self._start(delivery)
        self.pacing.enter(delivery, lambda: go(delivery), is_held=True)

    async def _turn_of(self, delivery: Delivery) -> None:
        """Wait for the rate of a message's task where nobody has done that."""
        turn = self.loop.create_future()

        def go() -> None:
            delivery.is_paced = False
            if not turn.done():  # it may have been cancelled just now
                turn.set_result(None)

        self.pacing.enter(delivery, go, is_held=False)
        try:
            await turn
        except asyncio.CancelledError:
            self.pacing.leave(delivery)
            raise
        self.pacing.started(delivery)

    def begin_callback(self, delivery: Delivery) -> None:
        """Begin the callback of somebody's own for a message that was read."""
        work = self.receiver.callback(message=delivery.raw, raise_err=False)
        self._begin_own_callback(delivery, work)
        self._start(delivery)

    def begin_batched(self, delivery: Delivery) -> None:
        """Begin to take a message of a batch task.

        What never waits is done here and now, and costs no asyncio task.
        """
        if self.admission.waits(delivery):
            self.tasks.begin(self.take(delivery), delivery)
        else:
            if logger.isEnabledFor(logging.DEBUG):
                log_start(delivery)
            failed = self.join(delivery)
            if failed is None:
                return
            self.tasks.begin(self._fail(delivery, failed), delivery)
        self._start(delivery)

    @staticmethod
    def _start(delivery: Delivery) -> None:
        """Note that it is on its way: a worker without a limit reads the next one."""
        if delivery.state is _READ:
            delivery.move(_ADMITTING)

    def _begin_own_callback(
        self,
        delivery: Delivery,
        work: Coroutine[Any, Any, None],
    ) -> None:
        context = contextvars.copy_context()
        context.run(_lent.set, delivery)
        context.run(self.tasks.begin, work, delivery)

    def enter(
        self,
        message: bytes | AckableMessage,
        *,
        is_plain: bool = False,
    ) -> None:
        """Take a message that its broker sends in this process.

        :param is_plain: whether it is known not to be of a batch task: it is read when
            its turn comes then. Thousands that wait would hold what they were read to.
        """
        delivery = Delivery(self.broker, message)
        if self.receiver.has_own_callback:
            work = self.receiver.callback(message=message)
            self._begin_own_callback(delivery, work)
            return
        if is_plain:
            self.tasks.begin_in_turn(self._take_sent, delivery)
            return
        self.admission.read(delivery)
        if delivery.is_batched and not self.admission.waits(delivery):
            self.begin_batched(delivery)
        else:
            self.tasks.begin(self._take_in_process(delivery), delivery)

    def enter_again(self, message: AckableMessage, seconds: float) -> None:
        """Take a message of this process once more, after so many seconds."""
        work = self._enter_after(message, seconds)
        self.tasks.begin(work, None, context=self.base)

    async def _enter_after(self, message: AckableMessage, seconds: float) -> None:
        if seconds > 0:
            moment = asyncio.Event()
            alarm = self.clock.call_at(self.clock.time() + seconds, moment.set)
            try:
                await moment.wait()
            finally:
                alarm.cancel()
        else:
            await asyncio.sleep(0)  # whoever gave it back is not done with it
        self.enter(message)

    async def _take_in_process(self, delivery: Delivery) -> None:
        # Here and not before it starts, which would copy the context of each message.
        work_for(delivery)
        await self.take(delivery)

    async def _read_in_process(self, delivery: Delivery) -> None:
        self.tasks.started(delivery)
        work_for(delivery)
        self.admission.read(delivery)
        await self.take(delivery)

    async def take_in_place(self, message: bytes) -> None:
        """Take a message of this process from start to end, for who waits for it.

        A message of a batch task is a batch of its own: it waits for no other.
        """
        delivery = Delivery(self.broker, message)
        if not self.receiver.has_own_callback:
            self.admission.read(delivery)
            if delivery.is_batched:
                await self.tasks.run_here(self._take_alone(delivery))
                return
        await self.receiver.callback(message=message)

    async def _take_alone(self, delivery: Delivery) -> None:
        with delivery:
            self._start(delivery)
            failed = await self.admission.admit(delivery)
            is_alone = not is_chunk(delivery.message)
            if failed is None and not is_alone:
                failed = await self.chunks.take_alone(delivery)
            elif failed is None:
                place = delivery.place
                failed = attempt(
                    place, self.batcher.group, self.receiver.validate_params
                )
            if failed is None and is_alone:
                run = BatchRun(self, self.batcher.take_alone(delivery))
                await self.tasks.run(run.run(), run, context=self.base)
            elif failed is None:
                await self._settled(delivery)
            else:
                self.refuse(delivery, failed)
                delivery.move(_SETTLING)
                await self.settlement.settle(delivery)

    # -- Batches -------------------------------------------------------------------

    def _wake(self) -> None:
        if self._woken is not None:
            self._woken.set()
        if self._starter is not None or self._is_stopped or not self.batcher.is_ready:
            return
        if self.listening is not None:
            self.listening.prefetch.give_way()
        self._starter = self.tasks.begin(self._start_due(), None, context=self.base)
        self._starter.add_done_callback(self._starter_ended)

    def _starter_ended(self, starter: asyncio.Task[Any]) -> None:
        if self._starter is starter:  # it was cancelled, perhaps before its first step
            self._starter = None
            self._wake()

    async def turn_to_call_again(self, run: BatchRun, batch: Batch[Delivery]) -> None:
        """Wait for the rate of a task before one more call of a batch that runs."""
        if batch.lane.pace is None:
            return
        turn = self.loop.create_future()

        def go() -> None:
            if not turn.done():  # it may have been cancelled just now
                turn.set_result(None)

        self.batcher.call_again(batch, go)
        run.is_paced = True
        if self._paced is not None and not self._paced.done():
            self._paced.set_result(None)
        try:
            await turn
        except asyncio.CancelledError:
            self.batcher.call_no_more(batch, go)
            raise
        finally:
            run.is_paced = False

    async def _start_due(self) -> None:
        """Start batches while one is due, each with an execution slot of its own."""
        if self._starter is None:
            # An eager task runs inside the call that made it, and that is one of the
            # batcher's: let it be done first.
            await asyncio.sleep(0)  # pragma: no cover - Python 3.12 and later
        while self.batcher.is_ready:
            turn = Holder(BatchState.SEALED)
            executions = self.receiver.sem
            if self.listening is not None and executions is not None:
                await executions.acquire()
                turn.hold(Unit.EXECUTION, executions)
            batch = self.batcher.take()
            if batch is None:  # it was taken out meanwhile
                turn.move(BatchState.SETTLING)
                continue
            batch.take_over(turn)
            run = BatchRun(self, batch)
            self.tasks.begin(run.run(), run, context=self.base)
        self._starter = None

    def part(self, batch: Batch[Delivery], parts: Sequence[Sequence[Delivery]]) -> None:
        """Let members of a batch that starts be batches of their own."""
        self.batcher.part(batch, parts)
        if self._is_stopped:
            self._give_up(self.batcher.abandon())

    # -- Stopping ------------------------------------------------------------------

    def may_begin(self, subject: Subject) -> bool:
        """Tell whether a call may begin: not once the time to stop is over.

        That is the time of a `listen`: in another event loop, or once it has ended,
        nobody waits for the end of what is called.
        """
        limit = self.receiver.wait_tasks_timeout
        if not (self.is_open and self.receiver.stop.is_over(limit)):
            return True
        logger.debug("The time to stop is over, not begun: %s.", subject)
        self.not_begun += 1
        return False

    @property
    def is_idle(self) -> bool:
        """Whether nothing is held and nothing runs."""
        return self.batcher.is_empty and not self.tasks

    def statistics(self) -> BatcherStatistics:
        """Count what waits and runs in batches now."""
        return self.batcher.statistics()

    async def wait_running(self) -> None:
        """Wait for what runs, and not for what waits for the rate of its task."""
        await asyncio.sleep(0)  # who has just begun is to say that it waits
        while running := self.tasks.of(_is_running):
            # Any of them may come to wait, or let others begin.
            if self.pacing.is_used or self.batcher.has_rates:
                paced = self._paced = self._paced or self.loop.create_future()
                until = asyncio.FIRST_COMPLETED
                await asyncio.wait((*running, paced), return_when=until)
                if self._paced is paced and paced.done():
                    self._paced = None
            else:
                await asyncio.wait(running)
            await asyncio.sleep(0)

    async def wait_idle(
        self,
        reason: FlushReason,
        *,
        is_batched: bool = False,
    ) -> None:
        """Flush every batch, also those begun meanwhile, and wait for all of them.

        What it is called from is not waited for.

        :param reason: why they leave, for hooks and the log.
        :param is_batched: whether to wait for messages of batch tasks only.
        """
        own = subject_of(self.broker)
        # Who is about to join a batch is not to be called without those who follow.
        await self.tasks.wait_until(
            lambda: True,
            lambda subject: subject is not own and _is_joining(subject),
        )

        def is_waited_for(subject: Subject | None) -> bool:
            if subject is None or subject is own:
                # Who helps to settle a batch may be one that waits here for it.
                return own is None
            if own is not None and any(subject is each for each in self._draining):
                return False
            return subject.is_batched or not is_batched

        self._drains += 1
        if own is not None:
            self._draining.append(own)
        self.batcher.drain(reason)
        try:
            await self._wait_for_batches(own, is_waited_for)
        finally:
            self._drains -= 1
            if own is not None:
                self._draining.remove(own)
            if self._drains == 0:
                self.batcher.resume()

    async def _wait_for_batches(
        self,
        own: Subject | None,
        is_waited_for: Callable[[Subject | None], bool],
    ) -> None:
        """Wait until every batch has been called, those of a rate at their pace.

        :param own: what it is called from, `None` from outside.
        """
        while True:
            await self.tasks.wait_until(
                lambda: (
                    (self.batcher.is_empty if own is None else not self._starter)
                    or self.batcher.is_paced
                ),
                is_waited_for,
            )
            if not self.batcher.is_paced:
                return
            # Nothing runs, and nothing will before an alarm rings.
            woken = self._woken = self._woken or asyncio.Event()
            await woken.wait()
            if self._woken is woken:
                self._woken = None

    @property
    def session(self) -> Listening:
        """The `listen` that goes on, for its stages.

        :raises RuntimeError: outside of one.
        """
        if self.listening is None:
            raise RuntimeError("the stages of a receiver run inside its listen()")
        return self.listening

    def open(self, listening: Listening) -> None:
        """Begin to listen, from nothing: what was begun to end before is over."""
        self.listening = listening
        self.is_open = True
        if self.aborting is not None:
            self.aborting.follow()
        wait_watches.add(self._slots)
        self.base = contextvars.copy_context()
        self._drains = 0
        self.batcher.resume()

    def _is_call(self) -> bool:
        """Tell whether who asks is a call of this worker."""
        return self.tasks.is_own() or subject_of(self.broker) is not None

    def close(self) -> None:
        """End what `abandon` began: nothing is on its way any more."""
        self.is_open = False
        self.unique_keys.close()
        self.short_batches.close()
        if self.not_begun:
            calls = "1 call" if self.not_begun == 1 else f"{self.not_begun} calls"
            text = "The time to stop was over before %s began, not acknowledged."
            logger.warning(text, calls, extra={"calls": self.not_begun})
            self.not_begun = 0
        wait_watches.discard(self._slots)
        self._is_stopped = False
        self._drains = 0
        self.batcher.resume()

    def abandon(self) -> None:
        """Let go of every message whose call has not started, and of any later one.

        None of them is acknowledged: the broker delivers them again.
        """
        self._is_stopped = True
        if self._starter is not None:
            self.tasks.stop(self._starter)
        self._give_up(self.batcher.abandon())

    def _give_up(self, members: list[Delivery]) -> None:
        if not members:
            return
        self.redeliveries.let_go(members)
        for member in members:
            member.end(MessageState.LEFT)
        logger.warning(
            "Discarding %d buffered messages during Receiver cleanup, "
            "not acknowledged: %s.",
            len(members),
            ", ".join(str(member) for member in members),
        )


def _is_running(subject: Subject | None) -> bool:
    return not (isinstance(subject, (Delivery, BatchRun)) and subject.is_paced)


def _is_joining(subject: Subject | None) -> bool:
    return isinstance(subject, Delivery) and subject.is_joining
