"""The result backend brokers start with: it keeps nothing."""

import warnings
from typing import TypeVar

from taskiq.abc.result_backend import AsyncResultBackend
from taskiq.result import TaskiqResult

_ReturnType = TypeVar("_ReturnType")


class DummyResultBackend(AsyncResultBackend[_ReturnType]):
    """Keeps nothing; every task looks finished, with an empty result."""

    async def set_result(self, task_id: str, result: TaskiqResult[_ReturnType]) -> None:
        """Forget the result.

        :param task_id: id of the task's message.
        :param result: its result.
        """

    async def is_result_ready(
        self,
        task_id: str,  # noqa: ARG002 - every task looks finished
    ) -> bool:
        """Tell that there is a result, so that nobody waits for one.

        :param task_id: id of the task's message.
        :returns: always `True`.
        """
        return True

    async def get_result(
        self,
        task_id: str,  # noqa: ARG002 - nothing is kept
        with_logs: bool = False,  # noqa: ARG002 - nothing is kept
    ) -> TaskiqResult[_ReturnType]:
        """Make up an empty result, with a warning that nothing is kept.

        :param task_id: id of the task's message.
        :param with_logs: has no effect.
        :returns: a result without value or error.
        """
        warnings.warn(
            "No result backend is configured, an empty result is returned.",
            stacklevel=2,
        )
        return TaskiqResult(
            is_err=False,
            log=None,
            return_value=None,  # type: ignore[arg-type] # nothing was kept
            execution_time=0,
        )
