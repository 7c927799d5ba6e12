"""What follows an outcome: hooks, the result backend and the acknowledgement.

The messages of a batch go through these phases together, so that each phase can be one
round trip; but whatever goes wrong or takes long for one of them is its own affair,
logged with its name and id, and changes nothing for another.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from taskiq.abc.result_backend import AsyncResultBackend
from taskiq.acks import AcknowledgeType
from taskiq.exceptions import NoResultError
from taskiq.hooks import hooks_of
from taskiq.models import maker_of
from taskiq.outage import brief, is_unreachable
from taskiq.outcome import Failed, Outcome, Succeeded, own_copy
from taskiq.receiver.containment import (
    Steps,
    attempt,
    contain,
    in_context,
    run_hooks,
    start,
)
from taskiq.receiver.diagnosis import describe
from taskiq.receiver.endings import Endings
from taskiq.receiver.states import MessageState
from taskiq.receiver.tasks import Crew, wait_for_all
from taskiq.receiver.unique_keys import is_free
from taskiq.result import TaskiqResult
from taskiq.unstorable import storable_instead
from taskiq.utils import is_odd_text, maybe_awaitable

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from taskiq.abc.broker import AsyncBroker
    from taskiq.acks import AckableMessage
    from taskiq.hooks import HookLists
    from taskiq.message import TaskiqMessage
    from taskiq.receiver.delivery import Delivery
    from taskiq.receiver.receiver import Receiver
    from taskiq.receiver.tasks import Tasks
    from taskiq.receiver.unique_keys import UniqueKeys

    #: Gives what says whether a message is to be taken further, or that it is.
    Step: TypeAlias = Callable[[Delivery], Literal[True] | Coroutine[Any, Any, bool]]

logger = logging.getLogger("taskiq.receiver.receiver")

_WHEN_EXECUTED: Final = AcknowledgeType.WHEN_EXECUTED
_WHEN_SAVED: Final = AcknowledgeType.WHEN_SAVED

_DONE: Final = MessageState.DONE

#: After one of these it would not help to ask for each result by itself.
_UNREACHABLE: Final = (
    OSError,
    TimeoutError,
    asyncio.TimeoutError,  # another one on Python 3.10
    asyncio.CancelledError,
)

_CANNOT_SET: Final = "Cannot set the result of"
_CANNOT_ACK: Final = "Cannot acknowledge"

#: Seconds that saving a result, or an acknowledgement, may take.
SAVE_TIMEOUT: Final = 30.0


#: Seconds: what is shorter is stored as none.
_LEAST_STORED: Final = 0.005


def result_of(
    outcome: Outcome,
    seconds: float,
    labels: dict[str, Any],
) -> TaskiqResult[Any]:
    """Make the result object of one message.

    :param seconds: how long its call took, `as_stored`.
    :param labels: those of the message.
    """
    if isinstance(outcome, Failed):
        value, error = None, outcome.error
    else:
        value, error = outcome.value, None
    fields = {
        "is_err": error is not None,
        "log": None,
        "return_value": value,
        "execution_time": seconds,
        "labels": labels.copy() if labels else {},
        "error": error,
    }
    return _result_of_fields(fields)


_result_of_fields: Final[Callable[[dict[str, Any]], TaskiqResult[Any]]] = maker_of(
    TaskiqResult,
)


def as_stored(seconds: float) -> float:
    """Round how long a call took to what results tell of it."""
    # Rounding costs more than most calls of a plain task.
    return round(seconds, 2) if seconds >= _LEAST_STORED else 0.0


class Settlement:
    """Settles messages: hooks, result backend, acknowledgement, in this order.

    :param unique_keys: the keys that messages hold.
    :param receiver: whose broker it is, and how long saving and acknowledging may take:
        a client may wait for ever on a connection that is gone, and nobody would get
        the capacity back that its message holds.
    """

    def __init__(
        self, receiver: Receiver, tasks: Tasks, unique_keys: UniqueKeys
    ) -> None:
        self._receiver = receiver
        self._broker = receiver.broker
        self._tasks = tasks
        self._outage = receiver.broker.lifecycle.outage
        self.unique_keys = unique_keys
        self.endings = Endings(self._broker, receiver.save_timeout, unique_keys)
        self._steps: tuple[Step, ...] = (
            self._tell,
            self._save,
            self._tell_saved,
            self._release,
            self._ack,
        )

    def give_results(
        self,
        deliveries: Sequence[Delivery],
        outcomes: Sequence[Outcome],
        seconds: float,
    ) -> list[TaskiqResult[Any]]:
        """Make the results of messages, which hooks may change one by one.

        Where nobody looks at them before they are saved, each is made when that is its
        turn: those of a large batch would be alive together, for the garbage collector
        to walk.

        :param seconds: how long their call took.
        :returns: the results; none where they are made later.
        """
        hooks = hooks_of(self._broker)
        stored = as_stored(seconds)
        if len(outcomes) > 1 and hooks.take_results:
            outcomes = _unshared(outcomes)
        is_made = hooks.take_results or self._is_bulk or _has_failure(outcomes)
        results: list[TaskiqResult[Any]] = []
        for delivery, outcome in zip(deliveries, outcomes, strict=True):
            if is_made:
                delivery.result = result_of(outcome, stored, delivery.message.labels)
                results.append(delivery.result)
            else:
                delivery.outcome, delivery.seconds = outcome, stored
        return results

    async def settle(self, delivery: Delivery, *, raise_err: bool = False) -> None:
        """Take one message from its outcome to its end, each step in its order.

        :param raise_err: raise what saving it or a hook after that failed with.
        """
        hooks, error = delivery.hooks, delivery.result.error
        if (
            error is not None
            or hooks.post_execute
            or delivery.ack_type is _WHEN_EXECUTED
        ):
            await self._tell(delivery)
            error = delivery.result.error
        failure: BaseException | None = None
        if error is None or not isinstance(error, NoResultError):
            stored = self._begin_to_store(delivery)
            if stored.__class__ is Steps:
                stored = await self._finish_storing(delivery, stored)
            if stored.__class__ is Failed:
                failure = await self._store_instead(delivery, stored.error)
            elif self._outage.is_on:
                self._outage.worked(_CANNOT_SET)
        is_saved = failure is None
        if is_saved and hooks.post_save:
            failure = await self._tell_all_saved(delivery, raise_err=raise_err)
        if delivery.unique is not None:
            await self._release(delivery, is_saved=is_saved)
        if is_saved and (failure is None or not raise_err):
            if error is not None and delivery.ending is not None:
                await self.endings.carry_out(delivery)
            elif delivery.ack_type is _WHEN_SAVED and delivery.controller.is_ackable:
                await self._acknowledge(delivery)
        if failure is not None and raise_err:
            raise failure

    async def settle_all(self, deliveries: Sequence[Delivery]) -> None:
        """Take the messages of a batch from their outcomes to their ends."""
        hooks = hooks_of(self._broker)
        if hooks.take_results:
            for delivery in deliveries:
                if delivery.context is None:
                    delivery.context = contextvars.copy_context()
        needed = _needed_steps(deliveries, hooks)
        at_work: list[set[asyncio.Task[None]]] = []
        for number, step in enumerate(self._steps):
            if not needed[number] or not deliveries:
                continue
            done, alone = await self._do_many(step, deliveries)
            if alone:
                crew = Crew(self._tasks, step, alone, self._follow_from(number + 1))
                done = await crew.run()
                at_work.append(crew.at_work)
            deliveries = done
        for delivery in deliveries:
            if delivery.settled is None:
                delivery.move(_DONE)
            else:
                delivery.end(_DONE)
        for helpers in at_work:
            while helpers:
                await wait_for_all(helpers, None)

    async def _do_many(
        self,
        step: Step,
        deliveries: Sequence[Delivery],
    ) -> tuple[Sequence[Delivery], Sequence[Delivery]]:
        """Take messages through a step in one call, where there is one for it.

        :returns: those to be taken further, and those that still have to take it.
        """
        if step == self._save and self._is_bulk and len(deliveries) > 1:
            saved = await self._save_many(deliveries)
            return ((), deliveries) if saved is None else (saved, ())
        if step == self._release:
            # In one round trip, if the store can.
            free = [each for each in deliveries if is_free(each, is_saved=True)]
            await self.unique_keys.release(free)
            return deliveries, ()
        if step == self._ack:
            return (), await self._ack_many(deliveries)
        return (), deliveries

    def _follow_from(
        self,
        number: int,
    ) -> Callable[[list[Delivery]], Coroutine[Any, Any, None]]:
        """Give what takes messages that were late through the steps from this one."""

        async def follow(deliveries: list[Delivery]) -> None:
            for delivery in deliveries:
                for step in self._steps[number:]:
                    if not await maybe_awaitable(step(delivery)):
                        break
                else:
                    delivery.end(_DONE)

        return follow

    async def _tell(self, delivery: Delivery) -> bool:
        """Acknowledge what is executed, and call the hooks after that."""
        if delivery.outcome is not None:  # no hook is interested, and it succeeded
            if delivery.is_acked_at(_WHEN_EXECUTED):
                await self._acknowledge(delivery)
            return True
        hooks, message, result = delivery.hooks, delivery.message, delivery.result
        is_kept = result.error is not None and self.endings.may_keep(delivery)
        if delivery.is_acked_at(_WHEN_EXECUTED) and not is_kept:
            await self._acknowledge(delivery)
        if result.error is not None and not delivery.is_error_told and hooks.on_error:
            await in_context(
                delivery.context, report_error(self._broker, message, result)
            )
        if result.error is not None:
            await self.endings.decide(delivery)
        if hooks.post_execute:
            await in_context(
                delivery.context,
                run_hooks(
                    hooks.post_execute,
                    "post_execute",
                    delivery,
                    message,
                    result,
                ),
            )
        if delivery.ending is not None:
            self.endings.settle_for(delivery)
        if is_kept and delivery.is_acked_at(_WHEN_EXECUTED):
            await self._acknowledge(delivery)
        return True

    def _save(self, delivery: Delivery) -> Literal[True] | Coroutine[Any, Any, bool]:
        """Save the result of one message, unless there is none on purpose.

        :returns: whether that is done, or what gives that: what is not saved is not
            acknowledged.
        """
        if delivery.outcome is None:
            error = delivery.result.error
            if error is not None and isinstance(error, NoResultError):
                return True
        stored = self._begin_to_store(delivery)
        if stored is not None:
            return self._finish_saving(delivery, stored)
        if self._outage.is_on:
            self._outage.worked(_CANNOT_SET)
        return True

    async def _finish_saving(self, delivery: Delivery, stored: Any) -> bool:
        if stored.__class__ is Steps:
            stored = await self._finish_storing(delivery, stored)
        if stored.__class__ is not Failed:
            if self._outage.is_on:
                self._outage.worked(_CANNOT_SET)
            return True
        if await self._store_instead(delivery, stored.error) is None:
            return True
        await self._release(delivery, is_saved=False)
        delivery.end(_DONE)
        return False

    def _begin_to_store(self, delivery: Delivery) -> Any:
        """Begin to save a result: mostly there is nothing to wait for.

        :returns: `None` where it is saved, else a `Failed`, or the steps that are left.
        """
        message, context = delivery.message, delivery.context
        result = delivery.result if delivery.outcome is None else _late_result(delivery)
        store = self._broker.result_backend.set_result
        if context is None:
            return start(store, message.task_id, result)
        return context.run(start, store, message.task_id, result)

    def _finish_storing(
        self,
        delivery: Delivery,
        steps: Steps,
    ) -> Coroutine[Any, Any, Any]:
        work = steps.finish(self._receiver.save_timeout)
        return in_context(delivery.context, work)

    async def _store(self, delivery: Delivery) -> Any:
        """Save a result; returns a `Failed` where that fails."""
        stored = self._begin_to_store(delivery)
        if stored.__class__ is Steps:
            stored = await self._finish_storing(delivery, stored)
        return stored

    async def _store_instead(
        self,
        delivery: Delivery,
        error: BaseException,
    ) -> BaseException | None:
        """Save an error in the place of a result that cannot be stored.

        :param error: what storing the result failed with.
        :returns: what it failed with in the end, which is logged.
        """
        failure: BaseException | None = error
        if self._replace_result(delivery, error):
            stored = await self._store(delivery)
            failure = stored.error if isinstance(stored, Failed) else None
        if failure is None:
            return None
        if is_odd_text(delivery.message.task_id) and not is_unreachable(failure):
            # Nor could it be the next time: without an end it would run for ever.
            text = "No result can be stored under the ID of %s: %s"
            logger.error(text, delivery, brief(failure))
            return None
        self._log_failure(_CANNOT_SET, delivery, failure)
        return failure

    def _replace_result(self, delivery: Delivery, error: BaseException) -> bool:
        """Put an error that names what cannot be stored in the place of a result.

        :returns: whether the value was at fault: another one may be stored then.
        """
        if not isinstance(error, Exception):
            return False
        backend = self._broker.result_backend
        result = delivery.result if delivery.outcome is None else _late_result(delivery)
        instead = attempt(storable_instead, result, error, backend)
        if instead is None or isinstance(instead, Failed):
            return False
        logger.error("The result of %s cannot be stored: %s", delivery, instead.error)
        delivery.result, delivery.outcome = instead, None
        return True

    @property
    def _is_bulk(self) -> bool:
        """Whether the backend can store many results in less than one call each."""
        backend: Any = type(self._broker.result_backend)
        base: Any = AsyncResultBackend
        return backend.set_results is not base.set_results

    async def _save_many(
        self,
        deliveries: Sequence[Delivery],
    ) -> list[Delivery] | None:
        """Save the results of messages in one call.

        :returns: those whose result is saved, or has none on purpose; `None` when each
            is to be saved by itself, as the backend has stumbled over one of them.
        """
        results = {
            delivery.message.task_id: delivery.result
            for delivery in deliveries
            if not isinstance(delivery.result.error, NoResultError)
        }
        failed: Any = {}
        if results:
            failed = await contain(
                self._broker.result_backend.set_results,
                results,
                seconds=self._receiver.save_timeout,
            )
        if isinstance(failed, Failed):
            if not isinstance(failed.error, _UNREACHABLE):
                logger.warning(
                    "Cannot set %d results at once: %r. Each is set by itself.",
                    len(results),
                    failed.error,
                )
                return None
            failed = dict.fromkeys(results, failed.error)
        saved: list[Delivery] = []
        for delivery in deliveries:
            error = failed.get(delivery.message.task_id) if failed else None
            if error is None or await self._store_instead(delivery, error) is None:
                saved.append(delivery)
            else:
                await self._release(delivery, is_saved=False)
                delivery.end(_DONE)
        if self._outage.is_on and len(saved) == len(deliveries):
            self._outage.worked(_CANNOT_SET)
        return saved

    async def _tell_saved(self, delivery: Delivery) -> bool:
        await self._tell_all_saved(delivery)
        return True

    async def _tell_all_saved(
        self,
        delivery: Delivery,
        *,
        raise_err: bool = False,
    ) -> BaseException | None:
        """Call the hooks after saving.

        :param raise_err: whether the first failure is raised: it stops the others.
        :returns: what the last of those that failed did so with.
        """
        hooks, result = delivery.hooks.post_save, delivery.result
        if not hooks or isinstance(result.error, NoResultError):
            return None
        failed = await in_context(
            delivery.context,
            run_hooks(
                hooks,
                "post_save",
                delivery,
                delivery.message,
                result,
                ends_with_failure=raise_err,
            ),
        )
        return None if failed is None else failed.error

    async def _release(self, delivery: Delivery, *, is_saved: bool = True) -> bool:
        """Release the key of a message, if this is its end."""
        if is_free(delivery, is_saved=is_saved):
            await self.unique_keys.release([delivery])
        return True

    async def _ack(self, delivery: Delivery) -> bool:
        if delivery.ending is not None:
            await self.endings.carry_out(delivery)
        elif delivery.is_acked_at(_WHEN_SAVED):
            await self._acknowledge(delivery)
        return True

    async def _ack_many(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        """Acknowledge together the messages that can be.

        :returns: the others, each of which is to be acknowledged by itself.
        """
        alone: list[Delivery] = []
        groups: dict[int, list[tuple[Delivery, AckableMessage]]] = {}
        for delivery in deliveries:
            message = delivery.controller.message
            if message is None or not delivery.is_acked_at(_WHEN_SAVED):
                alone.append(delivery)
            elif delivery.controller.reserve():
                groups.setdefault(id(message.ack_group), []).append((delivery, message))
            else:
                alone.append(delivery)
        for members in groups.values():
            await self._ack_group(members)
        return alone

    async def _ack_group(
        self,
        members: Sequence[tuple[Delivery, AckableMessage]],
    ) -> None:
        """Acknowledge messages of one group in one call."""
        messages = [message for _, message in members]
        group = messages[0].ack_group
        assert group is not None  # noqa: S101 - they are of one
        try:
            outcomes: Any = await contain(
                group.ack,
                messages,
                seconds=self._receiver.save_timeout,
            )
        except BaseException:
            for delivery, _ in members:
                delivery.controller.release()
            raise
        if isinstance(outcomes, Failed):
            outcomes = [outcomes.error] * len(messages)
        elif len(outcomes) != len(messages):
            wrong = f"told {len(outcomes)} fates of {len(messages)} messages"
            outcomes = [RuntimeError(f"{group!r} {wrong}")] * len(messages)
        for (delivery, _), error in zip(members, outcomes, strict=True):
            delivery.controller.is_acked = error is None
            delivery.controller.release()
            if error is not None:
                self._log_failure(_CANNOT_ACK, delivery, error)
            delivery.end(_DONE)
        if self._outage.is_on and not any(outcomes):
            self._outage.worked(_CANNOT_ACK)

    async def settle_refused(self, delivery: Delivery) -> None:
        """Settle a message that nobody can run: put aside, or acknowledged."""
        message = None if delivery.refusal is None else delivery.refusal[2]
        if not await self.endings.refuse(delivery):
            if message is not None:
                await self.unique_keys.release_of(message)
            await self.ack_received(delivery)
            return
        if message is not None and delivery.ending is not None:
            # Somebody may wait for it.
            delivery.result = result_of(
                Failed(delivery.ending.error), 0.0, message.labels
            )
            stored = await self._store(delivery)
            if isinstance(stored, Failed):
                self._log_failure(_CANNOT_SET, delivery, stored.error)

    async def ack_received(self, delivery: Delivery) -> None:
        """Acknowledge a message whatever comes of it."""
        if delivery.controller.is_ackable:
            await self._acknowledge(delivery)

    async def _acknowledge(self, delivery: Delivery) -> None:
        """Acknowledge a message. A broker that cannot be reached harms nobody else."""
        acked = start(delivery.controller.ack)
        if acked.__class__ is Steps:
            acked = await acked.finish(self._receiver.save_timeout)
        if acked.__class__ is Failed:
            self._log_failure(_CANNOT_ACK, delivery, acked.error)
        elif self._outage.is_on:
            self._outage.worked(_CANNOT_ACK)

    def _log_failure(self, what: str, delivery: Delivery, error: BaseException) -> None:
        if isinstance(error, asyncio.CancelledError):
            # The backend or the broker did: no reason to end anybody else.
            logger.error(
                "%s %s: Settling %s cancelled itself; what was left of it is not done.",
                what,
                delivery,
                delivery,
                exc_info=error,
            )
        elif is_unreachable(error):
            self._outage.not_settled(what, delivery, error)
        else:
            logger.error("%s %s.", what, delivery, exc_info=error)


def _late_result(delivery: Delivery) -> TaskiqResult[Any]:
    """Make the result of a message that nobody has looked at, and do not keep it."""
    assert delivery.outcome is not None  # noqa: S101 - else it was made already
    return result_of(delivery.outcome, delivery.seconds, delivery.message.labels)


def _has_failure(outcomes: Sequence[Outcome]) -> bool:
    """Whether one of them is a failure."""
    # One value that a batch was given is the outcome of each of its messages.
    last: Outcome | None = None
    for outcome in outcomes:
        if outcome is not last and isinstance(outcome, Failed):
            return True
        last = outcome
    return False


def _needed_steps(deliveries: Sequence[Delivery], hooks: HookLists) -> tuple[bool, ...]:
    """Say which of the steps of settling there is something to do in."""
    is_told = bool(hooks.on_error or hooks.post_execute)
    is_acked = False
    for delivery in deliveries:
        if delivery.outcome is None and delivery.result.error is not None:
            # It may end otherwise, also where nothing can be acknowledged.
            is_told = is_acked = True
            break
        if delivery.controller.is_ackable:
            is_acked = True
            if delivery.ack_type is _WHEN_EXECUTED:
                is_told = True
                break
    task = deliveries[0].task if deliveries else None
    is_unique = task is not None and task.unique_ttl is not None
    return is_told, True, bool(hooks.post_save), is_unique, is_acked


async def report_error(
    broker: AsyncBroker,
    message: TaskiqMessage,
    result: TaskiqResult[Any],
) -> None:
    """Tell the `on_error` hooks. They may replace the error of the result."""
    hooks = hooks_of(broker).on_error
    if hooks:
        told = (message, result, result.error)
        await run_hooks(hooks, "on_error", describe(message), *told)


def _unshared(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Give each message a value or error of its own where several share one."""
    seen: set[int] = set()
    unshared: list[Outcome] = []
    for outcome in outcomes:
        shared = outcome.error if isinstance(outcome, Failed) else outcome.value
        if id(shared) in seen:
            copied = attempt(own_copy, shared)
            if isinstance(copied, Failed):  # by more than an `Exception`
                copied = shared
            unshared.append(
                Failed(copied) if isinstance(outcome, Failed) else Succeeded(copied),
            )
        else:
            seen.add(id(shared))
            unshared.append(outcome)
    return unshared
