"""What the result backends of all adapters have in common."""

from __future__ import annotations

from abc import abstractmethod
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, TypeVar

from taskiq.abc.result_backend import AsyncResultBackend
from taskiq.adapters._bulk import dump_all, failures, load_all
from taskiq.adapters._feed import ResultFeed
from taskiq.bulk import GroupCommit
from taskiq.result import TaskiqResult

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from taskiq.abc.serializer import TaskiqSerializer
    from taskiq.adapters._feed import Waiters

_ReturnType = TypeVar("_ReturnType")


class SerializedResults(AsyncResultBackend[_ReturnType]):
    """What reads results as the plugins have written them."""

    # What the plugin keeps of its arguments.
    serializer: TaskiqSerializer

    def _load(self, data: bytes, with_logs: bool) -> TaskiqResult[_ReturnType]:
        result = TaskiqResult[_ReturnType].model_validate(self.serializer.loadb(data))
        if not with_logs:
            result.log = None
        return result

    @abstractmethod
    async def _look(self, task_id: str) -> bytes | None:
        """Read a serialised result, `None` if there is none."""


class ToldResults(SerializedResults[_ReturnType]):
    """What waits for results without looking for them again and again.

    One subscription tells all who wait in an event loop. Among the bases of a class it
    stands before what reads results: it would be taken for outdated behind that.
    """

    @cached_property
    def _feed(self) -> ResultFeed[bytes]:
        return ResultFeed(self._follow, self._look)

    async def wait_for_result(
        self,
        task_id: str,
        timeout: float,
        with_logs: bool = False,
    ) -> TaskiqResult[_ReturnType]:
        """Wait until a result is there, and read it.

        Those who wait are told; beside that they look each 2 s, for results of workers
        that do not tell.
        """
        return self._load(await self._feed.wait(task_id, timeout), with_logs)

    async def shutdown(self) -> None:
        """End the subscription and close what the plugin has opened."""
        await self._feed.close()
        await super().shutdown()

    @abstractmethod
    async def _follow(self, waiters: Waiters) -> None:
        """Subscribe, and tell those who wait, until the subscription is lost."""


class GroupedResults(SerializedResults[_ReturnType]):
    """What stores and reads many results in one round trip.

    Those that are stored, or looked for, at the same time go together.
    """

    @cached_property
    def _saves(self) -> GroupCommit[tuple[str, bytes], None]:
        return GroupCommit(self._save)

    @cached_property
    def _reads(self) -> GroupCommit[str, bytes | None]:
        return GroupCommit(self._read, awaits_turn=True)

    async def set_result(
        self,
        task_id: str,
        result: TaskiqResult[_ReturnType],
    ) -> None:
        """Store a result, together with others that are stored at the same time."""
        await self._saves.submit((task_id, self._dump(result)))

    async def set_results(
        self,
        results: Mapping[str, TaskiqResult[Any]],
    ) -> Mapping[str, Exception]:
        """Store many results, a thousand in one round trip; each fails for itself."""
        entries, errors = dump_all(results, self._dump)
        return {**errors, **failures(entries, await self._save(entries))}

    async def get_results(
        self,
        task_ids: Sequence[str],
        with_logs: bool = False,
    ) -> Mapping[str, TaskiqResult[_ReturnType]]:
        """Read those of many results that are there, a thousand in one round trip."""
        unique = list(dict.fromkeys(task_ids))
        load = partial(self._load, with_logs=with_logs)
        return load_all(unique, await self._read(unique), load)

    def _dump(self, result: TaskiqResult[Any]) -> bytes:
        # `model_dump` in half of its time: it passes all the options nobody wants here.
        dump = result.__pydantic_serializer__.to_python
        return self.serializer.dumpb(dump(result, mode="json"))

    async def _look(self, task_id: str) -> bytes | None:
        return await self._reads.submit(task_id)

    @abstractmethod
    async def _save(
        self,
        entries: Sequence[tuple[str, bytes]],
    ) -> list[Exception | None]:
        """Store serialised results by id; says what each failed with."""

    @abstractmethod
    async def _read(
        self,
        task_ids: Sequence[str],
    ) -> list[bytes | Exception | None]:
        """Read serialised results, `None` for one that is not there."""
