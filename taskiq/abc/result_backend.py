"""Where results are kept."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar

from taskiq.bulk import restore_fallbacks, run_bounded
from taskiq.result import TaskiqResult
from taskiq.waiting import growing_delays, poll_for_result

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from taskiq.aborts import AbortStore
    from taskiq.progress import TaskProgress
    from taskiq.rates import RateStore
    from taskiq.unique import UniqueStore

__all__ = ["AsyncResultBackend", "TaskiqResult"]

_ReturnType = TypeVar("_ReturnType")

#: How many results the fallbacks store or read at once.
_AT_ONCE: Final = 16

#: A subclass that replaces one of the latter gets the fallback of the former.
_STANDS_FOR: Final = {
    "set_results": ("set_result",),
    "get_results": ("get_result", "is_result_ready"),
    "wait_for_result": ("set_result", "get_result", "is_result_ready"),
}


class ResultHandle(Protocol):
    """What a backend may know of a handle: whose result it asks for."""

    @property
    def task_id(self) -> str:
        """Id of the task's message."""
        ...


class AsyncResultBackend(ABC, Generic[_ReturnType]):
    """Stores results and gives them back; it may keep progress as well.

    A subclass that replaces a method which stores, finds or reads one result, but not
    the one for many, gets the latter as it is here, made of the former.
    """

    #: Where marks of aborted messages are kept, if this backend brings it along.
    abort_store: AbortStore | None = None
    #: Where keys of unique tasks are held, if this backend brings it along.
    unique_store: UniqueStore | None = None
    #: Counts the calls of tasks with a rate, if this backend brings it along.
    rate_store: RateStore | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        restore_fallbacks(cls, AsyncResultBackend, _STANDS_FOR)

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

    async def set_results(
        self,
        results: Mapping[str, TaskiqResult[Any]],
    ) -> Mapping[str, Exception]:
        """Store many results; each fails for itself.

        :param results: results by the ids of their messages.
        :returns: why a result was not stored, by id; empty if all were. A result whose
            fate is unknown is among them.
        """

        async def store(task_id: str) -> None:
            await self.set_result(task_id, results[task_id])

        outcomes = await run_bounded(store, list(results), _AT_ONCE)
        return {
            task_id: outcome
            for task_id, outcome in zip(results, outcomes, strict=True)
            if outcome is not None
        }

    async def get_results(
        self,
        task_ids: Sequence[str],
        with_logs: bool = False,
    ) -> Mapping[str, TaskiqResult[_ReturnType]]:
        """Read those of many results that are there.

        :param task_ids: ids of the tasks' messages; one given twice counts once.
        :param with_logs: whether to read the stored logs as well.
        :returns: results by id, without those that are not stored or cannot be read.
        :raises Exception: the first error, if there was one and nothing could be read.
        """

        async def read(task_id: str) -> TaskiqResult[_ReturnType] | None:
            if not await self.is_result_ready(task_id):
                return None
            return await self.get_result(task_id, with_logs=with_logs)

        unique = list(dict.fromkeys(task_ids))
        outcomes = await run_bounded(read, unique, _AT_ONCE)
        errors = [each for each in outcomes if isinstance(each, Exception)]
        found = {
            task_id: outcome
            for task_id, outcome in zip(unique, outcomes, strict=True)
            if outcome is not None and not isinstance(outcome, Exception)
        }
        # What is found may have been forgotten by being read: it is never thrown away.
        if errors and not found:
            raise errors[0]
        return found

    async def wait_for_result(
        self,
        task_id: str,
        timeout: float,
        with_logs: bool = False,
    ) -> TaskiqResult[_ReturnType]:
        """Wait until a result is there, and read it.

        This one looks again and again, after 5 ms at first and 200 ms at last. A
        backend that is told when a result is stored does better.

        :param task_id: id of the task's message.
        :param timeout: seconds after which a result that is still not there is given
            up; zero or less waits forever.
        :param with_logs: whether to read the stored log as well.
        :returns: the result.
        :raises TaskiqResultTimeoutError: if the result is not there in time.
        :raises ResultIsReadyError: if looking for it failed three times in a row; the
            cause is the last error.
        :raises Exception: what reading the result raises.
        """
        delays = growing_delays(timeout)
        return await poll_for_result(self, task_id, delays, timeout, with_logs)

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

    def watch_handle(self, handle: ResultHandle) -> None:
        """Learn of a handle that may ask for its result, before its message is sent.

        A backend that forgets results may keep this one while the handle lives; the
        others ignore it.

        :param handle: what the sender is given; do not keep it alive.
        """
