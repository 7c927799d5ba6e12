"""Messages with many items: each item goes its own way, and one result comes of all.

A chunk is admitted like any message. Then each of its items is a member of a batch,
beside single messages: cast, keyed, weighed and called like these. When the last one
has its outcome the chunk is settled: one result, one round of hooks, one ack.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

from taskiq.acks import AckController, AcknowledgeType
from taskiq.chunks import messages_of, sent_id
from taskiq.exceptions import (
    ChunkItemError,
    MessageNackedError,
    NoResultError,
    TaskAbortedError,
)
from taskiq.models import maker_of
from taskiq.outage import brief
from taskiq.outcome import Failed, Succeeded
from taskiq.receiver.batch_run import BatchRun
from taskiq.receiver.containment import attempt
from taskiq.receiver.delivery import Delivery
from taskiq.receiver.settlement import as_stored, result_of
from taskiq.receiver.states import ENDED, MessageState
from taskiq.receiver.tasks import work_for
from taskiq.result import TaskiqResult

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Sequence

    from taskiq.batch import BatchConfig
    from taskiq.message import TaskiqMessage
    from taskiq.receiver.batcher import Batch, Group
    from taskiq.receiver.placing import Rest
    from taskiq.receiver.prepared import PreparedTask
    from taskiq.receiver.runtime import Runtime

logger = logging.getLogger("taskiq.receiver.receiver")

#: Most items that one line names.
_MOST_NAMED: Final = 10

_result_of_fields: Final[Callable[[dict[str, Any]], TaskiqResult[Any]]] = maker_of(
    TaskiqResult,
)


class ChunkItem(Delivery):
    """One item of a chunk, as a member of a batch.

    :param chunk: what it came with.
    :param index: its place in that.
    :param message: what `kiq` would have sent for it.
    """

    __slots__ = ("bound", "chunk", "index")

    is_part = True

    def __init__(self, chunk: Chunk, index: int, message: TaskiqMessage) -> None:
        whole = chunk.delivery
        super().__init__(whole.broker, whole.raw)
        self.chunk = chunk
        self.index = index
        self.message = message
        self.name, self.task_id = whole.name, message.task_id
        self.is_batched = True
        self.task, self.function = whole.task, whole.function
        self.hooks, self.ack_type = whole.hooks, whole.ack_type
        self.controller = chunk.controller_of(index)

    def place(
        self,
        find_group: Callable[[PreparedTask, BatchConfig, Hashable], Group[Delivery]],
        validate: bool,
    ) -> None:
        """Work out what it brings to a call.

        What follows the items may be large, and is bound once for all of them.
        """
        self.bound = self.chunk.bound
        super().place(find_group, validate)
        self.chunk.bound = self.rest

    @property
    def whole(self) -> Delivery:
        """The message that it came with."""
        return self.chunk.delivery

    def joined(self, batch: Batch[Delivery]) -> None:
        """Go into a batch."""
        super().joined(batch)
        self.chunk.is_placed(1)

    def parks(self) -> bool:
        """Wait on, and let others be read meanwhile, unless they are already."""
        super().parks()
        return self.chunk.parks()

    def end(self, state: MessageState) -> None:
        """Be done, or left: then so is what it came with."""
        if self.state not in ENDED:
            self.chunk.home.count -= 1
        super().end(state)
        if self.state is MessageState.LEFT:
            self.chunk.leave()


class Chunk:
    """A message with many items, until each of them has its outcome.

    :param delivery: the message. It holds what it was read with until each item has a
        place, and nothing after that.
    :param messages: what `kiq` would have sent for each item.
    :param home: the chunks that are held with it.
    :ivar bound: what follows each item, once it was bound.
    :ivar items: the items.
    :ivar results: what became of each, `None` for what is still to come.
    :ivar left: how many are still to come.
    """

    #: To be waited for with the messages of batch tasks.
    is_batched = True

    def __init__(
        self,
        delivery: Delivery,
        messages: Sequence[TaskiqMessage],
        home: Chunks,
    ) -> None:
        self.home = home
        self.broker = delivery.broker
        self.delivery = delivery
        self.bound: Rest | None = None
        self._name = str(delivery)
        self._acked: set[int] = set()
        self._unplaced = self.left = len(messages)
        self._seconds = 0.0
        #: Whether it has all results, and somebody is at it.
        self.is_settling = False
        self.results: list[TaskiqResult[Any] | None] = [None] * len(messages)
        self.items = [
            ChunkItem(self, index, message) for index, message in enumerate(messages)
        ]
        home.count += len(self.items)

    # -- Places ----------------------------------------------------------------------

    def is_placed(self, count: int) -> None:
        """Note that so many items have a place in a batch, or need none."""
        self._unplaced -= count
        waited = self.delivery.state in _WAITS
        if waited and not self._unplaced:
            self.delivery.move(MessageState.BUFFERED)

    def is_offered(self) -> None:
        """Note that each item was offered: others are read once all have a place."""
        if self._unplaced:
            self.delivery.waits()
        else:
            self.delivery.move(MessageState.BUFFERED)

    def parks(self) -> bool:
        """Let others be read while items wait for a place.

        :returns: whether they were not before: the first of its items does it for all.
        """
        return self.delivery.state is MessageState.WAITING and self.delivery.parks()

    # -- Outcomes --------------------------------------------------------------------

    def give(self, item: ChunkItem, result: TaskiqResult[Any]) -> None:
        """Give an item its result.

        The last one leaves its place to the message, which is still to be settled.
        """
        if not self.is_over:
            self.results[item.index] = result
            self.left -= 1
            if not self.left:
                self.delivery.take_over(item)
        item.end(MessageState.DONE)

    def took(self, seconds: float) -> None:
        """Add what a call with some of its items took."""
        self._seconds += seconds

    def result(self) -> TaskiqResult[Any]:
        """Make the result of all: it is a list of results, in the order of items."""
        value = Succeeded(self.results)
        return result_of(value, as_stored(self._seconds), self.delivery.message.labels)

    # -- Acknowledging by hand ---------------------------------------------------------

    def controller_of(self, index: int) -> AckController:
        """Give what acknowledges one item: the message is once each item was."""
        whole = self.delivery.controller
        if not whole.is_ackable:
            return whole

        async def acked() -> None:
            self._acked.add(index)
            if self.is_acked:
                await whole.ack()

        controller = AckController(acked)
        controller.is_acked = whole.is_acked
        return controller

    def never_runs(self, item: ChunkItem) -> None:
        """Note that no function will see an item, and so none will acknowledge it."""
        self._acked.add(item.index)

    @property
    def is_acked(self) -> bool:
        """Whether each of its items was acknowledged that could be."""
        return len(self._acked) == len(self.results)

    # -- The end -----------------------------------------------------------------------

    @property
    def is_over(self) -> bool:
        """Whether nothing more comes of it."""
        return self.delivery.state in ENDED

    def leave(self) -> None:
        """Give it up, if it is not done: it is delivered again."""
        if not self.is_over:
            self.delivery.end(MessageState.LEFT)
        # What the function has begun, and may never end, works for one of its items.
        self.items, self.results = [], []
        self.home.forget(self)

    def __str__(self) -> str:
        return self._name


_WAITS: Final = frozenset({MessageState.WAITING, MessageState.PARKED})


class Chunks:
    """The chunks that one event loop holds.

    :param runtime: what their items are handed to.
    :ivar count: how many of their items have not ended, those of chunks included that
        were given up: they must not be taken for messages.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._held: dict[Delivery, Chunk] = {}
        self.count = 0

    # -- From a message to its items ---------------------------------------------------

    def join(self, delivery: Delivery) -> Failed | None:
        """Let each item of a message join its batch.

        :returns: why there are no items in it.
        """
        chunk = self._open(delivery)
        if isinstance(chunk, Failed):
            return chunk
        for item in self._placeable(chunk):
            self._runtime.batcher.offer(item)
        chunk.is_offered()
        self._settle_if_done(chunk)
        return None

    async def take_alone(self, delivery: Delivery) -> Failed | None:
        """Take each item of a message from start to end, as a batch of its own.

        :returns: why there are no items in it.
        """
        chunk = self._open(delivery)
        if isinstance(chunk, Failed):
            return chunk
        runtime = self._runtime
        delivery.settled = runtime.loop.create_future()
        chunk.is_offered()
        for item in self._placeable(chunk):
            run = BatchRun(runtime, runtime.batcher.take_alone(item))
            await runtime.tasks.run(run.run(), run, context=runtime.base)
        self._settle_if_done(chunk)
        return None

    def _open(self, delivery: Delivery) -> Chunk | Failed:
        messages = attempt(messages_of, delivery.message)
        if isinstance(messages, Failed):
            return messages
        chunk = Chunk(delivery, messages, self)
        self._held[delivery] = chunk
        if delivery.fingerprint is not None:
            self._runtime.redeliveries.took(delivery)
            self._runtime.redeliveries.report([delivery])
        return chunk

    def _placeable(self, chunk: Chunk) -> Iterable[ChunkItem]:
        """Place item after item; each is to be offered before the next one is asked."""
        runtime = self._runtime
        failures: list[tuple[ChunkItem, BaseException]] = []
        for item in chunk.items:
            failed = attempt(
                item.place, runtime.batcher.group, runtime.receiver.validate_params
            )
            if failed is None:
                yield item
                continue
            failures.append((item, failed.error))
            chunk.never_runs(item)
            chunk.is_placed(1)
            item.move(MessageState.SETTLING)
            chunk.give(item, _own_result(failed, 0.0))
        if failures:
            _log_misfits(chunk, failures)

    # -- From outcomes to a result -----------------------------------------------------

    def take_results(
        self,
        members: Sequence[Delivery],
        seconds: float,
    ) -> list[Delivery]:
        """Hand the results of a batch to the chunks that its items came with.

        :param seconds: how long the call took.
        :returns: the other members, which are settled by themselves.
        """
        others: list[Delivery] = []
        touched: dict[Chunk, None] = {}
        for member in members:
            if isinstance(member, ChunkItem):
                touched[member.chunk] = None
                member.chunk.give(member, _result_of_member(member))
            else:
                others.append(member)
        for chunk in touched:
            chunk.took(seconds)
            self._settle_if_done(chunk)
        return others

    def abort(self, item: Delivery) -> None:
        """End an item whose message was aborted, before it was called."""
        assert isinstance(item, ChunkItem)  # noqa: S101 - it is a part
        error = TaskAbortedError(task_id=item.chunk.delivery.message.task_id)
        if item.state in _WAITS:
            item.chunk.is_placed(1)
        item.move(MessageState.SETTLING)
        item.chunk.give(item, _own_result(Failed(error), 0.0))
        self._settle_if_done(item.chunk)

    def _settle_if_done(self, chunk: Chunk) -> None:
        if not (chunk.left or chunk.is_settling or chunk.is_over):
            chunk.is_settling = True
            runtime = self._runtime
            runtime.tasks.begin(self._settle(chunk), chunk, context=runtime.base)

    async def _settle(self, chunk: Chunk) -> None:
        """Save one result for all items, and acknowledge the message."""
        # An eager task runs inside of what begins it: let that be done first.
        await asyncio.sleep(0)
        runtime, delivery = self._runtime, chunk.delivery
        if delivery.is_given_up:
            return
        if delivery.context is not None:
            # What its hooks do from now on is done for the whole of it.
            delivery.context.run(work_for, chunk)
        aborting = runtime.aborting
        aborted = None if aborting is None else aborting.outcome_of((delivery,))
        if isinstance(aborted, Failed):
            runtime.refuse(delivery, aborted)
        else:
            delivery.result = chunk.result()
            if chunk.is_acked and delivery.ack_type is AcknowledgeType.MANUAL:
                # The function has seen none of its items.
                delivery.ack_type = AcknowledgeType.WHEN_SAVED
        await runtime.settlement.settle(delivery)
        delivery.end(MessageState.DONE)

    # -- Giving up ---------------------------------------------------------------------

    def give_up(self, delivery: Delivery) -> bool:
        """Take the items of a chunk out of their batches, where nobody waits for it.

        :returns: whether it is one.
        """
        chunk = self._held.get(delivery)
        if chunk is None:
            return False
        for item in chunk.items:
            if self._runtime.batcher.withdraw(item):
                item.end(MessageState.LEFT)
        return True

    def forget(self, chunk: Chunk) -> None:
        """Keep nothing of a chunk that is over."""
        if self._held.pop(chunk.delivery, None) is not None:
            self._runtime.redeliveries.let_go([chunk.delivery])


def _result_of_member(item: ChunkItem) -> TaskiqResult[Any]:
    """Give what a batch made of an item, as the entry of a list."""
    if item.outcome is not None:
        return _own_result(item.outcome, item.seconds)
    result = item.result
    if isinstance(result.error, NoResultError):
        return _own_result(Failed(_unheard(item, result.error)), result.execution_time)
    # Those of the whole message are in its own result, once.
    result.labels = {}
    return result


def _unheard(item: ChunkItem, error: NoResultError) -> ChunkItemError:
    """Say what the task has asked for, which an item alone cannot have."""
    is_nacked = isinstance(error, MessageNackedError)
    wish = "to give it back" if is_nacked else "for no result, or for another run"
    return ChunkItemError(task_id=sent_id(item.message), index=item.index, wish=wish)


def _own_result(outcome: Succeeded | Failed, seconds: float) -> TaskiqResult[Any]:
    is_err = isinstance(outcome, Failed)
    fields: dict[str, Any] = {
        "is_err": is_err,
        "log": None,
        "return_value": outcome.value if isinstance(outcome, Succeeded) else None,
        "execution_time": seconds,
        "labels": {},
        "error": outcome.error if isinstance(outcome, Failed) else None,
    }
    return _result_of_fields(fields)


def _log_misfits(
    chunk: Chunk,
    failures: Sequence[tuple[ChunkItem, BaseException]],
) -> None:
    """Say in one line which items of a chunk fit in no batch."""
    named = [f"item {item.index}: {brief(error)}" for item, error in failures]
    if len(named) > _MOST_NAMED:
        named[_MOST_NAMED:] = [f"and {len(named) - _MOST_NAMED} more"]
    logger.error(
        "Cannot run %d of %d items of %s: %s",
        len(failures),
        len(chunk.results),
        chunk,
        "; ".join(named),
        exc_info=failures[0][1],
    )
