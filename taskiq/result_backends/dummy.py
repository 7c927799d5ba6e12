"""The result backend brokers start with: it keeps nothing."""

import warnings
from collections.abc import Mapping
from typing import Any, TypeVar

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

    async def set_results(
        self,
        results: Mapping[str, TaskiqResult[Any]],  # noqa: ARG002 - nothing is kept
    ) -> Mapping[str, Exception]:
        """Forget the results.

        :param results: results by the ids of their messages.
        :returns: nothing; none of them fails.
        """
        return {}

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
        task_id: str,
        with_logs: bool = False,  # noqa: ARG002 - nothing is kept
    ) -> TaskiqResult[_ReturnType]:
        """Make up an empty result, with a warning that nothing is kept.

        :param task_id: id of the task's message, named by the warning.
        :param with_logs: has no effect.
        :returns: a result without value or error.
        """
        warnings.warn(
            f"No result backend is configured: for task {task_id} an empty result is "
            "returned, whatever becomes of it. Give the broker one, on the side of "
            "the sender and of the worker: broker.with_result_backend(...).",
            stacklevel=2,
        )
        return TaskiqResult(
            is_err=False,
            log=None,
            return_value=None,  # type: ignore[arg-type] # nothing was kept
            execution_time=0,
        )
