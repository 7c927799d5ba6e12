"""Lets a task tell how far it is."""

import asyncio
from collections.abc import Sequence
from typing import Any, Final, Generic, TypeVar

from taskiq_dependencies import Depends

from taskiq.chunks import sent_id
from taskiq.context import Context
from taskiq.message import TaskiqMessage
from taskiq.progress import TaskProgress, TaskState

__all__ = ["ProgressTracker", "TaskProgress", "TaskState"]

_ProgressType = TypeVar("_ProgressType")

#: Messages of one batch that are reported to the result backend at the same time.
_MAX_CONCURRENT_REPORTS: Final = 50


# A pickle names the module of a class: workers and clients of every version find these
# two here.
TaskState.__module__ = __name__
TaskProgress.__module__ = __name__


class ProgressTracker(Generic[_ProgressType]):
    """Dependency that stores the progress of the running task in its result backend.

    A batch task reports for every message of the batch.

    :param context: context of the running task.
    """

    def __init__(
        self,
        context: Context = Depends(),  # noqa: B008 - how dependencies are declared
    ) -> None:
        self.context = context

    async def set_progress(
        self,
        state: TaskState | str,
        meta: _ProgressType | None = None,
    ) -> None:
        """Store how far the task is.

        :param state: the state it is in.
        :param meta: what else to tell; `None` keeps what was stored before.
        :raises pydantic.ValidationError: if the state is no string.
        """
        # Items of one chunk have one progress.
        first, *others = dict.fromkeys(sent_id(each) for each in self._messages)
        if not others:
            await self._report(first, state, meta)
            return

        slots = asyncio.Semaphore(_MAX_CONCURRENT_REPORTS)

        async def report(task_id: str) -> None:
            async with slots:
                await self._report(task_id, state, meta)

        outcomes = await asyncio.gather(
            *(report(task_id) for task_id in (first, *others)),
            # One message that cannot be reported must not silence the others.
            return_exceptions=True,
        )
        for outcome in outcomes:
            if outcome is not None:
                raise outcome

    async def get_progress(self) -> TaskProgress[_ProgressType] | None:
        """Read what was stored last; in a batch, for its first message.

        :returns: the progress, `None` if there is none yet.
        """
        first = sent_id(self._messages[0])
        return await self.context.broker.result_backend.get_progress(first)

    @property
    def _messages(self) -> Sequence[TaskiqMessage]:
        # What stands in for a Context by an override may know its message only.
        return getattr(self.context, "all_messages", (self.context.message,))

    async def _report(
        self,
        task_id: str,
        state: TaskState | str,
        meta: _ProgressType | None,
    ) -> None:
        backend = self.context.broker.result_backend
        if meta is None:
            previous = await backend.get_progress(task_id)
            meta = previous.meta if previous is not None else None
        progress: TaskProgress[Any] = TaskProgress(state=state, meta=meta)
        await backend.set_progress(task_id, progress)
