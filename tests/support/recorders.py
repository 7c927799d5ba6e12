"""Result backends, schedule sources and middlewares that write down what happened."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from taskiq import (
    AsyncResultBackend,
    ScheduledTask,
    ScheduleSource,
    TaskiqMessage,
    TaskiqMiddleware,
    TaskiqResult,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from taskiq.batch import BatchInfo


class RecordingBackend(AsyncResultBackend[Any]):
    """Keeps every result.

    :ivar results: the last result of each id.
    :ivar saved: ids in the order they were saved, one entry per saving.
    :ivar failing: ids whose saving raises, as a server that is away.
    :ivar refused: ids whose saving raises, as they are no keys.
    :ivar steps: where each saving is written, too, as ``("save", task id)``.
    """

    def __init__(self) -> None:
        self.results: dict[str, TaskiqResult[Any]] = {}
        self.saved: list[str] = []
        self.steps: list[tuple[str, str]] = []
        self.failing: set[str] = set()
        self.refused: set[str] = set()

    async def set_result(self, task_id: str, result: TaskiqResult[Any]) -> None:
        if task_id in self.failing:
            raise ConnectionError(f"cannot save {task_id}")
        if task_id in self.refused:
            raise ValueError(f"{task_id!a} is no key")
        self.results[task_id] = result
        self.saved.append(task_id)
        self.steps.append(("save", task_id))

    async def is_result_ready(self, task_id: str) -> bool:
        return task_id in self.results

    async def get_result(
        self,
        task_id: str,
        with_logs: bool = False,
    ) -> TaskiqResult[Any]:
        return self.results[task_id]


class StartStopBackend(RecordingBackend):
    """Writes down when it is started and stopped."""

    def __init__(self, journal: list[str]) -> None:
        super().__init__()
        self.journal = journal

    async def startup(self) -> None:
        self.journal.append("backend starts")

    async def shutdown(self) -> None:
        self.journal.append("backend stops")


class StartStopMiddleware(TaskiqMiddleware):
    """Writes down when it is started and stopped; one half of it is async."""

    def __init__(self, name: str, journal: list[str]) -> None:
        super().__init__()
        self.name = name
        self.journal = journal

    async def startup(self) -> None:
        self.journal.append(f"{self.name} starts")

    def shutdown(self) -> None:
        self.journal.append(f"{self.name} stops")


class RecordingSource(ScheduleSource):
    """Keeps every schedule it is given.

    :ivar schedules: what was added and not deleted, in order.
    """

    def __init__(self) -> None:
        self.schedules: list[ScheduledTask] = []

    async def get_schedules(self) -> list[ScheduledTask]:
        return list(self.schedules)

    async def add_schedule(self, schedule: ScheduledTask) -> None:
        self.schedules.append(schedule)

    async def delete_schedule(self, schedule_id: str) -> None:
        self.schedules = [s for s in self.schedules if s.schedule_id != schedule_id]


class RecordingBatches(TaskiqMiddleware):
    """Writes down the batches; no message waits for it before it joins one.

    :ivar batches: those that were begun.
    :ivar ended: those that have ended.
    :ivar results: of each of those.
    """

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[BatchInfo] = []
        self.ended: list[BatchInfo] = []
        self.results: list[list[TaskiqResult[Any]]] = []

    def on_batch_start(self, batch: BatchInfo) -> None:
        self.batches.append(batch)

    async def on_batch_end(
        self,
        batch: BatchInfo,
        results: Sequence[TaskiqResult[Any]],
    ) -> None:
        assert len(batch.messages) == len(results)
        self.ended.append(batch)
        self.results.append(list(results))


class RecordingMiddleware(RecordingBatches):
    """Writes down every hook of a message, too, as ``(hook, task id)``.

    :param name: put before the name of each hook, to tell middlewares apart.
    :param events: where to write; give the same list to several recorders.
    """

    def __init__(
        self,
        name: str = "",
        events: list[tuple[str, str]] | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        self.events: list[tuple[str, str]] = [] if events is None else events

    def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
        self.events.append((f"{self.name}pre_execute", message.task_id))
        return message

    async def on_error(
        self,
        message: TaskiqMessage,
        result: TaskiqResult[Any],
        exception: BaseException,
    ) -> None:
        self.events.append((f"{self.name}on_error", message.task_id))

    def post_execute(self, message: TaskiqMessage, result: TaskiqResult[Any]) -> None:
        self.events.append((f"{self.name}post_execute", message.task_id))

    async def post_save(
        self,
        message: TaskiqMessage,
        result: TaskiqResult[Any],
    ) -> None:
        self.events.append((f"{self.name}post_save", message.task_id))


def alike(errors: dict[str, Any], expected: dict[str, Any]) -> bool:
    """Whether these are the same errors, though each message has its own copy."""
    return {name: (type(e), e.args) for name, e in errors.items()} == {
        name: (type(e), e.args) for name, e in expected.items()
    }
