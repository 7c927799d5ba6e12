"""Where results are kept."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from taskiq.result import TaskiqResult

if TYPE_CHECKING:
    from taskiq.depends.progress_tracker import TaskProgress
    from taskiq.task import AsyncTaskiqTask

__all__ = ["AsyncResultBackend", "TaskiqResult"]

_ReturnType = TypeVar("_ReturnType")


class AsyncResultBackend(ABC, Generic[_ReturnType]):
    """Stores results and gives them back; it may keep progress as well."""

    async def startup(self) -> None:
        """Prepare the backend, when the broker starts."""

    async def shutdown(self) -> None:
        """Release what the backend holds, when the broker shuts down."""

    @abstractmethod
    async def set_result(self, task_id: str, result: TaskiqResult[_ReturnType]) -> None:
        """Store a result.

        :param task_id: id of the task's message.
        :param result: its result.
        """

    @abstractmethod
    async def is_result_ready(self, task_id: str) -> bool:
        """Tell whether a result is stored.

        :param task_id: id of the task's message.
        :returns: whether `get_result` would return it.
        """

    @abstractmethod
    async def get_result(
        self,
        task_id: str,
        with_logs: bool = False,
    ) -> TaskiqResult[_ReturnType]:
        """Read a result.

        :param task_id: id of the task's message.
        :param with_logs: whether to read the stored log as well.
        :returns: the result.
        """

    async def set_progress(
        self,
        task_id: str,
        progress: TaskProgress[Any],
    ) -> None:
        """Store how far a task is; a backend that cannot do this ignores it.

        :param task_id: id of the task's message.
        :param progress: its progress.
        """

    async def get_progress(
        self,
        task_id: str,  # noqa: ARG002 - for backends that keep progress
    ) -> TaskProgress[Any] | None:
        """Read how far a task is.

        :param task_id: id of the task's message.
        :returns: its progress, `None` if none is stored.
        """
        return None

    def watch_handle(self, handle: AsyncTaskiqTask[Any]) -> None:
        """Learn of a handle that may ask for its result, before its message is sent.

        A backend that forgets results may keep this one while the handle lives; the
        others ignore it.

        :param handle: what the sender is given; do not keep it alive.
        """
