"""Functions for working with several tasks."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from taskiq.exceptions import TaskiqResultTimeoutError

if TYPE_CHECKING:
    from taskiq.result import TaskiqResult
    from taskiq.task import AsyncTaskiqTask


async def gather(
    *tasks: AsyncTaskiqTask[Any],
    timeout: float = -1,
    with_logs: bool = False,
    periodicity: float = 0.1,
) -> tuple[TaskiqResult[Any], ...]:
    """Wait for the results of several tasks.

    :param tasks: handles of the tasks; the same task may be given twice.
    :param timeout: seconds after which missing results are given up; zero or less
        waits forever.
    :param with_logs: whether to read the stored logs as well.
    :param periodicity: seconds between two looks at the result backend.
    :returns: the results in the order of the tasks.
    :raises TaskiqResultTimeoutError: if a result is not ready in time.
    :raises ResultIsReadyError: if a result backend fails while waiting.
    :raises ResultGetError: if a result cannot be read.
    """
    results: dict[str, TaskiqResult[Any]] = {}
    pending = {task.task_id: task for task in tasks}

    async def fetch_if_ready(task: AsyncTaskiqTask[Any]) -> None:
        if await task.is_ready():
            results[task.task_id] = await task.get_result(with_logs=with_logs)
            del pending[task.task_id]

    now = asyncio.get_running_loop().time
    started = now()
    while pending:
        await asyncio.gather(*map(fetch_if_ready, pending.values()))
        if pending:
            await asyncio.sleep(periodicity)
            if 0 < timeout < now() - started:
                raise TaskiqResultTimeoutError(timeout=timeout)
    return tuple(results[task.task_id] for task in tasks)
