"""Calling the function of a batch: from its members to an outcome for each.

Equal items are passed once, and after an error parts of the batch may be called again;
what is called next is decided in :mod:`taskiq.receiver.isolation`.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from taskiq.context import BatchContext
from taskiq.exceptions import NoResultError
from taskiq.outcome import Failed, Outcome, outcomes_of_return
from taskiq.receiver.execution import Call
from taskiq.receiver.isolation import Isolation

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from taskiq.abc.broker import AsyncBroker
    from taskiq.batch import BatchInfo
    from taskiq.receiver.delivery import Member
    from taskiq.receiver.execution import Execution

logger = logging.getLogger("taskiq.receiver.receiver")


class BatchCall:
    """The calls one batch comes down to: a single one, unless culprits are isolated.

    :param members: the messages of the batch.
    :ivar extra_calls: how many calls were made beyond the first.
    :ivar seconds: how long all calls took together.
    """

    def __init__(
        self,
        broker: AsyncBroker,
        execution: Execution,
        info: BatchInfo,
        members: Sequence[Member],
    ) -> None:
        self._broker = broker
        self._execution = execution
        self._info = info
        self._members = members
        self._config = members[0].plan.config
        self.extra_calls = 0
        self.seconds = 0.0

    async def run(self) -> Sequence[Outcome]:
        """Call the function.

        :returns: an outcome for each member, in order.
        """
        passed = self._passed()
        outcomes, error = await self._call(passed)
        if error is not None:
            if len(passed) == 1 or not self._config.isolates(error):
                # Logged with its traceback where it was caught, once for all of them.
                outcomes = [own or Failed(error) for own in outcomes]
                return self._handed_out(passed, outcomes)
            await self._isolate(passed, outcomes, error)
        handed_out = self._handed_out(passed, outcomes)
        self._log_failures(handed_out)
        return handed_out

    def _passed(self) -> Sequence[Member]:
        """List the members whose items are passed: of equal ones the first.

        The others become its `twins`.
        """
        if self._config.coalesce is None:
            return self._members
        equal: dict[Hashable, list[Member]] = {}
        for member in self._members:
            equal.setdefault(member.same, []).append(member)
        for first, *twins in equal.values():
            first.twins = twins
        return [members[0] for members in equal.values()]

    def _handed_out(
        self,
        passed: Sequence[Member],
        outcomes: Sequence[Outcome | None],
    ) -> list[Outcome]:
        """Give each member the outcome of its item."""
        if self._config.coalesce is None:
            return [outcome for outcome in outcomes if outcome is not None]
        by_member = {
            id(member): outcome
            for first, outcome in zip(passed, outcomes, strict=True)
            if outcome is not None
            for member in (first, *first.twins)
        }
        return [by_member[id(member)] for member in self._members]

    def _log_failures(self, outcomes: Sequence[Outcome]) -> None:
        """Name each message that failed without failing its neighbours."""
        for member, outcome in zip(self._members, outcomes, strict=True):
            if isinstance(outcome, Failed) and not isinstance(
                outcome.error,
                NoResultError,
            ):
                logger.error(
                    "Exception found while executing %s in batch %s: %r",
                    member,
                    self._info.batch_id,
                    outcome.error,
                )

    async def _call(
        self,
        passed: Sequence[Member],
    ) -> tuple[list[Outcome | None], BaseException | None]:
        """Call the function with the items of these members.

        :returns: an outcome for each of them, `None` where the error of the call is
            still to become one; and that error, if there is one.
        """
        first = passed[0]
        context = BatchContext(
            passed,
            self._broker,
            self._info.batch_id,
            self._info.flush_reason,
        )
        outcome, seconds = await self._execution.run(
            Call(
                task=first.task,
                target=first.function,
                args=([member.item for member in passed], *first.rest.args),
                kwargs=first.rest.kwargs,
                context=context,
                timeout=first.timeout,
            ),
        )
        self.seconds += seconds
        decided = context.close()
        if isinstance(outcome, Failed):
            return list(decided), outcome.error
        returned = outcomes_of_return(
            self._config.results,
            outcome.value,
            len(passed),
            self._info.task_name,
        )
        return [
            own or other for own, other in zip(decided, returned, strict=True)
        ], None

    async def _isolate(
        self,
        passed: Sequence[Member],
        outcomes: list[Outcome | None],
        error: BaseException,
    ) -> None:
        """Call parts again until only the culprits have failed.

        :param outcomes: filled in where it holds `None`.
        """
        suspects = [index for index, own in enumerate(outcomes) if own is None]
        if not suspects:
            return
        logger.warning(
            "Batch %s of task %s failed with %r; looking for the culprits among "
            "%d items.",
            self._info.batch_id,
            self._info.task_name,
            error,
            len(suspects),
        )
        isolation = Isolation(len(suspects), error)
        while called := [suspects[index] for index in isolation.next_call()]:
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
