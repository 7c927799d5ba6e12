"""Functions for working with several tasks."""

from __future__ import annotations

import asyncio
import math
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from taskiq.abc.result_backend import AsyncResultBackend
from taskiq.bulk import CHUNK_SIZE, cancel_all
from taskiq.exceptions import (
    ResultGetError,
    ResultIsReadyError,
    TaskiqResultTimeoutError,
)
from taskiq.outage import brief
from taskiq.waiting import (
    FAILURES_THAT_END_IT,
    growing_delays,
    poll,
    watched_wait,
)

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable, Sequence

    from taskiq.result import TaskiqResult
    from taskiq.task import AsyncTaskiqTask

_ReturnType = TypeVar("_ReturnType")


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
    :raises TaskiqResultTimeoutError: if a result is not ready in time; it names the
        first one of those.
    :raises ResultIsReadyError: if a result backend fails while waiting, three times in
        a row for one of them.
    :raises ResultGetError: if a result cannot be read.
    """
    results: dict[str, TaskiqResult[Any]] = {}
    pending = {task.task_id: task for task in tasks}
    failures = dict.fromkeys(pending, 0)

    async def fetch_if_ready(task: AsyncTaskiqTask[Any]) -> None:
        try:
            is_ready = await task.is_ready()
        except ResultIsReadyError:
            failures[task.task_id] += 1
            if failures[task.task_id] == FAILURES_THAT_END_IT:
                raise
            return
        failures[task.task_id] = 0
        if is_ready:
            results[task.task_id] = await task.get_result(with_logs=with_logs)
            del pending[task.task_id]

    now = asyncio.get_running_loop().time
    started = now()
    while pending:
        await asyncio.gather(*map(fetch_if_ready, pending.values()))
        if pending:
            await asyncio.sleep(periodicity)
            if 0 < timeout < now() - started:
                raise TaskiqResultTimeoutError(
                    timeout=timeout,
                    task_id=next(iter(pending)),
                )
    return tuple(results[task.task_id] for task in tasks)


async def gather_results(
    handles: Iterable[AsyncTaskiqTask[_ReturnType]],
    timeout: float = -1,
    with_logs: bool = False,
) -> list[TaskiqResult[_ReturnType]]:
    """Wait for the results of many tasks, and read them in few round trips.

    What is there already is read at once, a thousand results at a time. The others are
    waited for as `wait_result` does it: a backend that is told of results is not asked
    again, any other is asked for all that are missing at once.

    :param handles: such as `kiq_many` returns; the same one may be given twice.
    :param timeout: seconds after which missing results are given up; zero or less
        waits forever.
    :param with_logs: whether to read the stored logs as well.
    :returns: the results in the order of the handles; a failed task is a result with an
        error.
    :raises TaskiqResultTimeoutError: if a result is not ready in time.
    :raises ResultIsReadyError: if a result backend fails while waiting, three times in
        a row where it is asked; the cause is the last error.
    :raises ResultGetError: if a result cannot be read.
    """
    waits: dict[int, _ManyResults] = {}
    awaited: list[tuple[AsyncTaskiqTask[_ReturnType], _ManyResults]] = []
    for handle in handles:
        backend = handle.result_backend
        wait = waits.get(id(backend))
        if wait is None:
            wait = waits[id(backend)] = _ManyResults(backend, timeout, with_logs)
        wait.task_ids[handle.task_id] = None
        awaited.append((handle, wait))
    with watched_wait(lambda: f"{len(awaited)} tasks"):
        await _all_or_first_error([wait.read_all() for wait in waits.values()])
    try:
        return [
            handle.converted(wait.found[handle.task_id]) for handle, wait in awaited
        ]
    except Exception as exc:
        raise ResultGetError(failure=brief(exc)) from exc


class _ManyResults:
    """Results of one result backend, as they are found."""

    def __init__(
        self,
        backend: AsyncResultBackend[Any],
        timeout: float,
        with_logs: bool,
    ) -> None:
        #: Whose results to find; the keys, in order.
        self.task_ids: dict[str, None] = {}
        self.found: dict[str, TaskiqResult[Any]] = {}
        self._backend = backend
        self._timeout = timeout
        self._with_logs = with_logs
        self._now = asyncio.get_running_loop().time
        self._ends = self._now() + timeout if timeout > 0 else math.inf
        self._is_told = (
            type(backend).wait_for_result is not AsyncResultBackend[Any].wait_for_result
        )

    async def read_all(self) -> None:
        """Wait until all are found."""
        if not self._is_told:
            delays = growing_delays(self._timeout)
            await poll(self._look, delays, self._timeout)
            return
        while self._missing:
            # One failed look is not the end; what is wrong shows in the wait.
            with suppress(Exception):
                await self._look()
            await self._wait_for_some()

    @property
    def _missing(self) -> list[str]:
        return [each for each in self.task_ids if each not in self.found]

    async def _look(self) -> bool | None:
        """Read what is there; say whether that was all, `None` if not."""
        missing = self._missing
        for start in range(0, len(missing), CHUNK_SIZE):
            chunk = missing[start : start + CHUNK_SIZE]
            self.found.update(await self._backend.get_results(chunk, self._with_logs))
        return None if self._missing else True

    async def _wait_for_some(self) -> None:
        """Wait for those missing, or a thousand of them, to be told of."""
        await _all_or_first_error(
            [self._wait_for(each) for each in self._missing[:CHUNK_SIZE]],
        )

    async def _wait_for(self, task_id: str) -> None:
        left = self._ends - self._now()
        if left <= 0:
            raise TaskiqResultTimeoutError(timeout=self._timeout)
        timeout = -1.0 if left == math.inf else left
        wait = self._backend.wait_for_result(task_id, timeout, self._with_logs)
        try:
            self.found[task_id] = await wait
        except TaskiqResultTimeoutError as exc:
            raise TaskiqResultTimeoutError(
                timeout=self._timeout, failure=exc.failure
            ) from exc
        except ResultIsReadyError:
            raise
        except Exception as exc:
            raise ResultGetError(failure=brief(exc)) from exc


async def _all_or_first_error(works: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Run all at once; the first error ends the others, and is raised."""
    tasks = [asyncio.ensure_future(work) for work in works]
    if not tasks:
        return
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        await cancel_all(tasks)
    for task in done:
        task.result()
