"""The handle of a sent task."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from taskiq.compat import parse_obj_as
from taskiq.exceptions import (
    ResultGetError,
    ResultIsReadyError,
    TaskiqResultTimeoutError,
)

if TYPE_CHECKING:
    from taskiq.abc.result_backend import AsyncResultBackend
    from taskiq.depends.progress_tracker import TaskProgress
    from taskiq.result import TaskiqResult

_ReturnType = TypeVar("_ReturnType")

logger = logging.getLogger("taskiq.task")


class AsyncTaskiqTask(Generic[_ReturnType]):
    """The handle of a sent task: where its result and progress are read.

    :param task_id: id of the task's message.
    :param result_backend: where the worker stores the result.
    :param return_type: what to convert the return value to; `None` leaves it as it is.
    """

    def __init__(
        self,
        task_id: str,
        result_backend: AsyncResultBackend[_ReturnType],
        return_type: type[_ReturnType] | None = None,
    ) -> None:
        self.task_id = task_id
        self.result_backend = result_backend
        self.return_type = return_type

    async def is_ready(self) -> bool:
        """Tell whether the result is stored.

        :returns: whether `get_result` would return it.
        :raises ResultIsReadyError: if the result backend fails.
        """
        try:
            return await self.result_backend.is_result_ready(self.task_id)
        except Exception as exc:
            raise ResultIsReadyError from exc

    async def get_result(self, with_logs: bool = False) -> TaskiqResult[_ReturnType]:
        """Read the result, which must be ready.

        A return value that does not fit the return type is kept as it was stored.

        :param with_logs: whether to read the stored log as well.
        :returns: the result; a failed task is a result with an error.
        :raises ResultGetError: if the result cannot be read.
        """
        try:
            result = await self.result_backend.get_result(
                self.task_id,
                with_logs=with_logs,
            )
            self._convert_return_value(result)
        except Exception as exc:
            raise ResultGetError from exc
        return result

    async def wait_result(
        self,
        check_interval: float = 0.2,
        timeout: float = -1.0,
        with_logs: bool = False,
    ) -> TaskiqResult[_ReturnType]:
        """Wait until the result is ready, and read it.

        :param check_interval: seconds between two looks at the result backend.
        :param timeout: seconds after which a result that is still not there is given
            up; zero or less waits forever.
        :param with_logs: whether to read the stored log as well.
        :returns: the result; a failed task is a result with an error.
        :raises TaskiqResultTimeoutError: if the result is not ready in time.
        :raises ResultIsReadyError: if the result backend fails while waiting.
        :raises ResultGetError: if the result cannot be read.
        """
        now = asyncio.get_running_loop().time
        started = now()
        while not await self.is_ready():
            if 0 < timeout < now() - started:
                raise TaskiqResultTimeoutError(timeout=timeout)
            await asyncio.sleep(check_interval)
        return await self.get_result(with_logs=with_logs)

    async def get_progress(self) -> TaskProgress[Any] | None:
        """Read how far the task is.

        :returns: its progress, `None` if none is stored.
        """
        return await self.result_backend.get_progress(self.task_id)

    def _convert_return_value(self, result: TaskiqResult[_ReturnType]) -> None:
        if self.return_type is None:
            return
        try:
            result.return_value = parse_obj_as(self.return_type, result.return_value)
        except ValueError as exc:
            logger.warning(
                "The return value of task %s is kept as it was stored, "
                "it cannot be parsed as %s: %s",
                self.task_id,
                self.return_type,
                exc,
            )
