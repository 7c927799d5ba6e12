"""Sources, brokers and schedulers that record what happens to them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

from taskiq.abc.broker import AsyncBroker
from taskiq.abc.schedule_source import ScheduleSource
from taskiq.message import BrokerMessage
from taskiq.scheduler.scheduled_task import ScheduledTask
from taskiq.scheduler.scheduler import TaskiqScheduler


def schedule(schedule_id: str = "id", **fields: Any) -> ScheduledTask:
    """Build a schedule of a task named like its id."""
    content = {"task_name": schedule_id, "labels": {}, "args": [], "kwargs": {}}
    return ScheduledTask(**{**content, "schedule_id": schedule_id, **fields})


class ListSource(ScheduleSource):
    """Returns what is in its list; behaves as told by its answers first."""

    def __init__(self, *schedules: ScheduledTask, log: list[str] | None = None) -> None:
        self.schedules = list(schedules)
        self.answers: list[Callable[[], Awaitable[list[ScheduledTask]]]] = []
        self.questions = 0
        self.log = [] if log is None else log
        self.name = "source"
        self.startup_error: BaseException | None = None
        self.shutdown_error: BaseException | None = None

    async def startup(self) -> None:
        self.log.append(f"{self.name} starts")
        if self.startup_error is not None:
            raise self.startup_error

    async def shutdown(self) -> None:
        self.log.append(f"{self.name} ends")
        if self.shutdown_error is not None:
            raise self.shutdown_error

    async def get_schedules(self) -> list[ScheduledTask]:
        self.questions += 1
        if self.answers:
            return await self.answers.pop(0)()
        return list(self.schedules)


async def fail() -> Any:
    """Behave like a source or a broker that is down."""
    raise ConnectionError("it is down")


async def hang() -> Any:
    """Never come to an end."""
    await asyncio.Event().wait()


class RecordingBroker(AsyncBroker):
    """Keeps the messages it is given; behaves as told by its reactions first."""

    def __init__(self, log: list[str] | None = None) -> None:
        super().__init__()
        self.messages: list[BrokerMessage] = []
        self.reactions: list[Callable[[], Awaitable[object]]] = []
        self.log = [] if log is None else log
        self.shutdown_error: BaseException | None = None
        self.startup_error: BaseException | None = None

    async def startup(self) -> None:
        self.log.append("broker starts")
        if self.startup_error is not None:
            raise self.startup_error

    async def shutdown(self) -> None:
        self.log.append("broker ends")
        if self.shutdown_error is not None:
            raise self.shutdown_error

    async def kick(self, message: BrokerMessage) -> None:
        if self.reactions:
            await self.reactions.pop(0)()
        self.messages.append(message)

    async def listen(self) -> AsyncGenerator[bytes, None]:
        raise NotImplementedError
        yield b""


class RecordingScheduler(TaskiqScheduler):
    """Notes when each schedule is sent, and under which id."""

    def __init__(
        self,
        *sources: ScheduleSource,
        seconds: Callable[[], float] = lambda: 0,
    ) -> None:
        super().__init__(RecordingBroker(), list(sources))
        self.seconds = seconds
        self.sent: list[tuple[float, str]] = []
        self.reactions: list[Callable[[], Awaitable[object]]] = []

    async def on_ready(self, source: ScheduleSource, task: ScheduledTask) -> None:
        self.sent.append((self.seconds(), task.schedule_id))
        if self.reactions:
            await self.reactions.pop(0)()

    def times_of(self, schedule_id: str) -> list[float]:
        """List when a schedule was sent, in seconds since the start."""
        return [when for when, sent_id in self.sent if sent_id == schedule_id]
