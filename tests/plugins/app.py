"""The application that runs on every line; only the environment says on which.

`TASKIQ_PLUGINS_LINE` is a key of `ALL`, `TASKIQ_PLUGINS_NAME` begins the names of all
that it makes on the server, `TASKIQ_TEST_HUB` is where it reports to.
"""

from __future__ import annotations

import asyncio
import os
import threading
from typing import Annotated, Any, TypeAlias

from taskiq_pipelines import PipelineMiddleware

from taskiq import (
    BatchContext,
    Context,
    SimpleRetryMiddleware,
    SmartRetryMiddleware,
    TaskiqDepends,
    TaskiqMessage,
    TaskiqMiddleware,
    TaskiqScheduler,
)
from taskiq.depends.progress_tracker import ProgressTracker, TaskState
from taskiq.schedule_sources import LabelScheduleSource
from tests.support.reports import HUB, hello, report

from .lines import ALL

Current: TypeAlias = Annotated[Context, TaskiqDepends()]
CurrentBatch: TypeAlias = Annotated[BatchContext, TaskiqDepends()]

#: Longer than a test: a batch with this timeout leaves because it is full.
NEVER = 600.0

LINE = ALL[os.environ["TASKIQ_PLUGINS_LINE"]]
NAME = os.environ["TASKIQ_PLUGINS_NAME"]


def retries() -> TaskiqMiddleware:
    """Delay retries where the broker can: a second is the least all of them take."""
    if LINE.delays:
        return SmartRetryMiddleware(default_delay=1)
    return SimpleRetryMiddleware()


class Arrivals(TaskiqMiddleware):
    """Tells the hub which messages have come that asked for it."""

    def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
        if "announced" in message.labels:
            report("arrival", id=message.task_id)
        return message


broker = LINE.make(NAME).with_middlewares(retries(), PipelineMiddleware(), Arrivals())


def label_scheduler() -> TaskiqScheduler:
    return TaskiqScheduler(broker, [LabelScheduleSource(broker)])


def own_scheduler() -> TaskiqScheduler:
    assert LINE.make_source is not None, LINE
    sender = LINE.sender(NAME)
    return TaskiqScheduler(sender, [LINE.make_source(sender, NAME)])


# -- Plain tasks ------------------------------------------------------------------


@broker.task("add")
async def add(number: int, other: int) -> int:
    return number + other


@broker.task("name_thread")
def name_thread(name: str) -> str:
    assert threading.current_thread() is not threading.main_thread()
    return f"{name} in a thread"


@broker.task("fail")
async def fail(*args: Any) -> None:
    raise ValueError(*args)


def failed_runs(message: TaskiqMessage) -> int:
    return int(message.labels.get("_retries", 0))


@broker.task("fail_times")
async def fail_times(failures: int, context: Current) -> str:
    if failed_runs(context.message) < failures:
        raise ValueError(f"run {failed_runs(context.message)}")
    return f"succeeded after {failures}"


@broker.task("requeue_once")
async def requeue_once(context: Current) -> list[Any]:
    """Give the labels it got in its second run."""
    labels = context.message.labels
    if "X-Taskiq-requeue" not in labels:
        await context.requeue()
    return [labels["X-Taskiq-requeue"], labels["number"]]


@broker.task("report_progress")
async def report_progress(
    tracker: Annotated[ProgressTracker[Any], TaskiqDepends()],
) -> None:
    await tracker.set_progress(TaskState.STARTED, {"done": [1, 2]})


async def wait_for_hub(**fields: object) -> None:
    """Be held until the hub lets go."""
    reader, writer = await asyncio.open_connection(*HUB)
    writer.write(hello("held", **fields))
    await reader.readline()
    writer.close()


@broker.task("hold")
async def hold(number: int) -> int:
    await wait_for_hub(task="hold")
    return number


@broker.task(
    "tick",
    schedule=[{"interval": 1, "args": ["of the label"], "schedule_id": "label-tick"}],
)
def tick(source: str) -> None:
    report("tick", source=source)


@broker.task("split")
async def split(text: str) -> list[str]:
    return text.split()


@broker.task("join")
async def join(words: list[str], between: str) -> str:
    return between.join(words)


# -- Batch tasks ------------------------------------------------------------------


@broker.task("measure", batch=True, batch_size=10, batch_timeout=0.2)
async def measure(words: list[str], unit: str) -> list[str | Exception]:
    """Fail by itself what is empty, and give the others their own value."""
    return [
        f"{len(word)} {unit}" if word else ValueError("an empty word", unit)
        for word in words
    ]


@broker.task("settle", batch=True, batch_size=10, batch_timeout=0.2)
def settle(amounts: list[int], context: CurrentBatch) -> list[str | Exception]:
    """Fail the first run of every debt."""
    return [
        ValueError("a debt", amount)
        if amount < 0 and not failed_runs(message)
        else f"{amount} after {failed_runs(message)}"
        for amount, message in zip(amounts, context.messages, strict=True)
    ]


@broker.task("refuse", batch=True, batch_size=10, batch_timeout=0.2)
async def refuse(numbers: list[int]) -> None:
    raise ValueError("all of them")


@broker.task("share", batch=True, batch_size=5, batch_timeout=NEVER)
async def share(numbers: list[int]) -> int:
    """Leave because it is full: the sum of five messages is the result of each."""
    return sum(numbers)


@broker.task("requeue_odd", batch=True, batch_size=10, batch_timeout=0.2)
async def requeue_odd(numbers: list[int], context: CurrentBatch) -> list[str]:
    """Let every odd number come a second time."""
    for index, number in enumerate(numbers):
        if number % 2 and "X-Taskiq-requeue" not in context.messages[index].labels:
            await context.requeue(index)
    return [f"{number} at last" for number in numbers]


@broker.task("hold_all", batch=True, batch_size=5, batch_timeout=NEVER)
async def hold_all(numbers: list[int]) -> list[int]:
    await wait_for_hub(task="hold_all", size=len(numbers))
    return numbers
