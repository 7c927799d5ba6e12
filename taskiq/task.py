"""The handle of a sent task."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from taskiq.aborts import AbortStore
from taskiq.compat import parse_obj_as
from taskiq.exceptions import (
    AbortError,
    AbortNotSupportedError,
    ResultGetError,
    ResultIsReadyError,
    TaskiqResultTimeoutError,
)
from taskiq.outage import brief
from taskiq.result_backends.dummy import DummyResultBackend
from taskiq.waiting import equal_delays, growing_delays, poll_for_result, watched_wait

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from taskiq.abc.result_backend import AsyncResultBackend
    from taskiq.progress import TaskProgress
    from taskiq.result import TaskiqResult

_ReturnType = TypeVar("_ReturnType")

_NOTHING: Final = type(None)

logger = logging.getLogger("taskiq.task")


class AsyncTaskiqTask(Generic[_ReturnType]):
    """The handle of a sent task: where its result and progress are read.

    :param task_id: id of the task's message.
    :param result_backend: where the worker stores the result.
    :param return_type: what to convert the return value to; `None` leaves it as it is.
    :ivar task_name: name of the task, for the texts of errors, where it is known.
    :ivar abort_store: where its broker keeps marks of aborted messages; `None` leaves
        it to the result backend.
    """

    task_name: str | None = None
    abort_store: AbortStore | None = None

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
            raise ResultIsReadyError(failure=brief(exc)) from exc

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
            return self.converted(result)
        except Exception as exc:
            raise ResultGetError(failure=brief(exc)) from exc

    async def wait_result(
        self,
        check_interval: float | None = None,
        timeout: float = -1.0,
        with_logs: bool = False,
    ) -> TaskiqResult[_ReturnType]:
        """Wait until the result is ready, and read it.

        :param check_interval: seconds between two looks at the result backend. `None`
            leaves it to the backend, which may be told when the result is stored; one
            that is not looks after 5 ms at first and each 200 ms at last.
        :param timeout: seconds after which a result that is still not there is given
            up; zero or less waits forever.
        :param with_logs: whether to read the stored log as well.
        :returns: the result; a failed task is a result with an error.
        :raises TaskiqResultTimeoutError: if the result is not ready in time.
        :raises ResultIsReadyError: if the result backend fails while waiting, three
            times in a row where it is looked at; the cause is the last error.
        :raises ResultGetError: if the result cannot be read.
        """
        try:
            with watched_wait(self._named):
                result = await self._wait_and_read(check_interval, timeout, with_logs)
            return self.converted(result)
        except TaskiqResultTimeoutError as exc:
            raise self._timed_out(timeout, exc.failure) from exc.__cause__
        except ResultIsReadyError:
            raise
        except Exception as exc:
            raise ResultGetError(failure=brief(exc)) from exc

    def _named(self) -> str:
        return f"task {self.task_name} with ID {self.task_id}"

    def _wait_and_read(
        self,
        check_interval: float | None,
        timeout: float,
        with_logs: bool,
    ) -> Awaitable[TaskiqResult[_ReturnType]]:
        backend, task_id = self.result_backend, self.task_id
        if check_interval is not None:
            delays = equal_delays(check_interval, timeout)
        elif hasattr(type(backend), "wait_for_result"):
            return backend.wait_for_result(task_id, timeout, with_logs)
        else:
            delays = growing_delays(timeout)
        return poll_for_result(backend, task_id, delays, timeout, with_logs)

    async def get_progress(self) -> TaskProgress[Any] | None:
        """Read how far the task is.

        :returns: its progress, `None` if none is stored.
        """
        return await self.result_backend.get_progress(self.task_id)

    async def abort(self) -> bool:
        """Abort the message, wherever it is: it ends with a `TaskAbortedError`.

        One that waits never runs. A plain task that runs sees a cancellation, one of a
        batch goes on and may ask its context; what either returns is dropped. Until
        the mark ends, a day unless the store says otherwise, whatever is delivered
        under this id ends in the same way: retries and redeliveries, too.

        :returns: whether the mark was set; `False` when there is a result already.
        :raises AbortNotSupportedError: when there is no store to set it in.
        :raises AbortError: when the store fails.
        :raises ResultIsReadyError: when the result backend does.
        """
        store: object = self.abort_store
        if store is None:
            store = getattr(self.result_backend, "abort_store", None)
        if not isinstance(store, AbortStore):
            raise AbortNotSupportedError(
                task_id=self.task_id,
                result_backend=type(self.result_backend).__name__,
            )
        keeps_results = not isinstance(self.result_backend, DummyResultBackend)
        if keeps_results and await self.is_ready():
            return False
        try:
            await store.mark(self.task_id)
        except Exception as exc:
            raise AbortError(task_id=self.task_id) from exc
        return True

    def _timed_out(
        self, timeout: float, failure: str | None
    ) -> TaskiqResultTimeoutError:
        return TaskiqResultTimeoutError(
            timeout=timeout,
            task_id=self.task_id,
            task_name=self.task_name,
            result_backend=type(self.result_backend).__name__,
            failure=failure,
        )

    def converted(self, result: TaskiqResult[_ReturnType]) -> TaskiqResult[_ReturnType]:
        """Turn the return value into the return type; keep it, with a warning, if not.

        :param result: the result of this task as it was stored; changed in place.
        :returns: this result.
        :raises Exception: if the return type is none that pydantic knows.
        """
        # A failed task returned nothing, and one that is said to return nothing may
        # still have been given a value by its context or a hook.
        if result.is_err or self.return_type in (None, _NOTHING):
            return result
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
        return result
