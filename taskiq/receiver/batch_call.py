"""Calling the function of a batch: from its members to an outcome for each.

Equal items are passed once, and after an error parts of the batch may be called again;
what is called next is decided in :mod:`taskiq.receiver.isolation`.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, cast

from taskiq.context import BatchContext
from taskiq.exceptions import NoResultError, TaskAbortedError
from taskiq.outcome import Failed, Outcome, Succeeded, outcomes_of_return
from taskiq.receiver.aborting import log_aborted
from taskiq.receiver.containment import attempt
from taskiq.receiver.execution import Call
from taskiq.receiver.failures import log_culprits, log_failure
from taskiq.receiver.isolation import Isolation

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from taskiq.abc.broker import AsyncBroker
    from taskiq.batch import BatchInfo
    from taskiq.receiver.aborting import Aborting
    from taskiq.receiver.delivery import Delivery
    from taskiq.receiver.execution import Execution

logger = logging.getLogger("taskiq.receiver.receiver")


class BatchCall:
    """The calls one batch comes down to: a single one, unless culprits are isolated.

    :param members: the messages of the batch.
    :param turn: waits until one more call may start.
    :ivar extra_calls: how many calls were made beyond the first.
    :ivar seconds: how long all calls took together.
    """

    def __init__(
        self,
        broker: AsyncBroker,
        execution: Execution,
        info: BatchInfo,
        members: Sequence[Delivery],
        turn: Callable[[], Awaitable[None]],
        aborting: Aborting | None = None,
    ) -> None:
        self._turn = turn
        self._broker = broker
        self._execution = execution
        self._info = info
        self._members = members
        self._config = members[0].group.lane.config
        self._aborting = aborting
        # What became of members before the call: those that cannot be compared, and
        # those that were aborted.
        self._before: dict[Delivery, Outcome] = {}
        # Whether the error of the latest call was told of where it was caught.
        self._is_told = False
        self.extra_calls = 0
        self.seconds = 0.0

    async def run(self) -> Sequence[Outcome]:
        """Call the function.

        :returns: an outcome for each member, in order.
        """
        members = self._leave_out_aborted()
        passed = (
            members if self._config.coalesce is None else self._passed_once(members)
        )
        if not passed:
            return self._handed_out((), [])
        outcomes, error = await self._call(passed)
        if error is None:
            self._log_failures(passed, outcomes)
        elif len(passed) == 1 or not self._config.isolates(error):
            self._log_failure(passed, outcomes, error)
            outcomes = [own or Failed(error) for own in outcomes]
        else:
            await self._isolate(passed, outcomes, error)
            self._log_failures(passed, outcomes)
        # In each of these cases there is one for each item by now.
        return self._handed_out(passed, cast("list[Outcome]", outcomes))

    def _leave_out_aborted(self) -> Sequence[Delivery]:
        """List the members that are to run."""
        aborting = self._aborting
        if aborting is None or not aborting.is_any:
            return self._members
        for member in self._members:
            outcome = aborting.outcome_of((member,))
            if outcome is not None:
                self._before[member] = outcome
        if not self._before:
            return self._members
        return [member for member in self._members if member not in self._before]

    def _passed_once(self, members: Sequence[Delivery]) -> list[Delivery]:
        """List the members whose items are passed: of equal ones the first.

        The others become its `twins`.
        """
        passed: list[Delivery] = []
        twins: dict[Delivery, list[Delivery]] = {}
        by_hash: dict[int, list[Delivery]] = {}
        for member in members:
            assert member.same is not None  # noqa: S101 - as the task coalesces
            candidates = by_hash.setdefault(member.same.hash, [])
            first = attempt(_find_equal, member, candidates)
            if isinstance(first, Failed):
                self._before[member] = first
                logger.error("Cannot compare the item of %s: %r", member, first.error)
            elif first is None:
                candidates.append(member)
                passed.append(member)
            else:
                twins.setdefault(first, []).append(member)
        for first, others in twins.items():
            first.twins = others
        return passed

    def _handed_out(
        self,
        passed: Sequence[Delivery],
        outcomes: list[Outcome],
    ) -> list[Outcome]:
        """Give each member the outcome of its item."""
        if self._config.coalesce is None and not self._before:
            return self._with_aborted(outcomes)
        by_member = self._before
        for first, outcome in zip(passed, outcomes, strict=True):
            by_member.update(dict.fromkeys((first, *first.twins), outcome))
        return self._with_aborted([by_member[member] for member in self._members])

    def _with_aborted(self, outcomes: list[Outcome]) -> list[Outcome]:
        """Put that members were aborted in the place of what the function gave them."""
        if self._aborting is None or not self._aborting.is_any:
            return outcomes
        aborted: list[Delivery] = []
        for index, member in enumerate(self._members):
            outcome = self._aborting.outcome_of((member,))
            if outcome is not None:
                outcomes[index] = outcome
                aborted.append(member)
        if aborted:
            log_aborted(aborted)
        return outcomes

    def _log_failures(
        self,
        passed: Sequence[Delivery],
        outcomes: Sequence[Outcome | None],
    ) -> None:
        """Name the messages that failed without failing their neighbours."""
        failures = [
            (member.message, outcome.error)
            for first, outcome in zip(passed, outcomes, strict=True)
            if outcome.__class__ is not Succeeded
            and isinstance(outcome, Failed)
            and not isinstance(outcome.error, (NoResultError, TaskAbortedError))
            for member in (first, *first.twins)
        ]
        if failures:
            calls = self.extra_calls
            log_culprits(self._broker, self._info, failures, extra_calls=calls)

    def _log_failure(
        self,
        passed: Sequence[Delivery],
        outcomes: Sequence[Outcome | None],
        error: BaseException,
    ) -> None:
        """Say what the only call failed with, once for all of its messages."""
        if self._is_told:
            return
        info = self._info
        failed = [
            member.message
            for first, own in zip(passed, outcomes, strict=True)
            if own is None
            for member in (first, *first.twins)
        ] or list(info.messages)
        name = f"batch {info.batch_id} of task {info.task_name}"
        log_failure(self._broker, name, failed, error, info)

    async def _call(
        self,
        passed: Sequence[Delivery],
    ) -> tuple[list[Outcome | None], BaseException | None]:
        """Call the function with the items of these members.

        :returns: an outcome for each of them, `None` where the error of the call is
            still to become one; and that error, if there is one.
        """
        first, info = passed[0], self._info
        assert first.task is not None  # noqa: S101 - it was placed
        # Items of a chunk have theirs in common, with those of its other calls.
        rest = attempt(first.rest.copied) if first.is_part else first.rest
        if isinstance(rest, Failed):
            return [None] * len(passed), rest.error
        context = BatchContext(passed, self._broker, info.batch_id, info.flush_reason)
        call = Call(
            first.task,
            first.function,
            [[member.item for member in passed], *rest.args],
            rest.kwargs,
            context,
            first.timeout,
        )
        try:
            outcome, seconds = await self._execution.run(call)
        finally:
            self._execution.forget(context)
        self.seconds += seconds
        self._is_told = call.teardown is not None and outcome is call.teardown
        decided = self._decided(passed, context.close(), call.teardown)
        if isinstance(outcome, Failed):
            return list(decided), outcome.error
        returned = outcomes_of_return(
            self._config.results,
            outcome.value,
            len(passed),
            info.task_name,
        )
        return [
            own or other for own, other in zip(decided, returned, strict=True)
        ], None

    def _decided(
        self,
        passed: Sequence[Delivery],
        said: Sequence[Outcome | None],
        teardown: Failed | None,
    ) -> Sequence[Outcome | None]:
        """Give the outcomes that members have whatever the call returned.

        :param said: those that the function gave them by its context.
        :param teardown: what closing its dependencies failed with: what it said of its
            items was not kept either.
        """
        if teardown is not None:
            said = [
                own if own is None or isinstance(own, Failed) else teardown
                for own in said
            ]
        if self._aborting is None or not self._aborting.is_any:
            return said
        aborted = self._aborting.outcome_of
        return [
            aborted((first, *first.twins)) or own
            for first, own in zip(passed, said, strict=True)
        ]

    async def _isolate(
        self,
        passed: Sequence[Delivery],
        outcomes: list[Outcome | None],
        error: BaseException,
    ) -> None:
        """Call parts again until only the culprits have failed.

        :param outcomes: filled in where it holds `None`.
        """
        suspects = [index for index, own in enumerate(outcomes) if own is None]
        if not suspects:
            return
        logger.debug(
            "Batch %s of task %s failed with %r; looking for the culprits among "
            "%d items.",
            self._info.batch_id,
            self._info.task_name,
            error,
            len(suspects),
        )
        isolation = Isolation(len(suspects), error)
        while called := [suspects[index] for index in isolation.next_call()]:
            await self._turn()
            results, failure = await self._call([passed[index] for index in called])
            for index, result in zip(called, results, strict=True):
                outcomes[index] = result
            if failure is None:
                isolation.succeeded()
            else:
                is_final = not self._config.isolates(failure)
                decided = [
                    index for index, own in enumerate(results) if own is not None
                ]
                isolation.failed(failure, decided, is_final=is_final)
        for index, culprit in isolation.errors.items():
            outcomes[suspects[index]] = Failed(culprit)
        self.extra_calls = isolation.calls


def _find_equal(
    member: Delivery,
    candidates: Iterable[Delivery],
) -> Delivery | None:
    """Find the one of them whose item is equal to the member's."""
    for each in candidates:
        assert member.same is not None  # noqa: S101
        assert each.same is not None  # noqa: S101
        if bool(each.same.value == member.same.value):
            return each
    return None
