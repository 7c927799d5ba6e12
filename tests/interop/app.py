"""The tasks, and a broker for them; runs unchanged on both packages.

Environment variables choose the broker: `TASKIQ_INTEROP_LINE` carries the messages
(of `tests.interop.lines`), `TASKIQ_INTEROP_SERIALIZER` is a key of
`SERIALIZERS`, `TASKIQ_INTEROP_NAME` begins the names of all queues, streams and keys,
and `TASKIQ_INTEROP_REDIS` and `TASKIQ_INTEROP_RABBITMQ` are the URLs of the servers.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import uuid
from importlib import import_module
from importlib.metadata import version
from typing import Annotated, Any, TypeAlias

import taskiq_aio_pika
import taskiq_redis

from taskiq import (
    AsyncBroker,
    Context,
    SimpleRetryMiddleware,
    SmartRetryMiddleware,
    TaskiqDepends,
    TaskiqMessage,
)
from taskiq.abc.serializer import TaskiqSerializer
from taskiq.depends.progress_tracker import ProgressTracker, TaskState
from taskiq.serializers import (
    CBORSerializer,
    JSONSerializer,
    MSGPackSerializer,
    ORJSONSerializer,
    PickleSerializer,
)

from .values import Box, CodedError, Point, RefusedError, describe

Current: TypeAlias = Annotated[Context, TaskiqDepends()]

VERSION = version("taskiq")
SIDE = "released" if VERSION == "0.13.0" else "ours"
SERIALIZERS: dict[str, type[TaskiqSerializer]] = {
    "cbor": CBORSerializer,
    "json": JSONSerializer,
    "msgpack": MSGPackSerializer,
    "orjson": ORJSONSerializer,
    "pickle": PickleSerializer,
}
#: Seconds after which keys that a killed test run left in Redis are gone.
EXPIRY = 600
#: Longer than a test: a batch with this timeout leaves because it is full.
NEVER = 600.0
NOBODY: dict[str, str] = {}


def make_broker() -> AsyncBroker:
    name = os.environ["TASKIQ_INTEROP_NAME"]
    redis = os.environ["TASKIQ_INTEROP_REDIS"]
    serializer = SERIALIZERS[os.environ["TASKIQ_INTEROP_SERIALIZER"]]()
    line = os.environ["TASKIQ_INTEROP_LINE"]
    plugin = own_or(taskiq_redis, "adapted-redis", "taskiq.adapters.redis")
    results = plugin.RedisAsyncResultBackend(
        redis, prefix_str=name, result_ex_time=EXPIRY, serializer=serializer
    )
    made: AsyncBroker = plugin.RedisStreamBroker(
        redis, queue_name=f"{name}-stream", consumer_group_name=f"{name}-group"
    ).with_middlewares(SimpleRetryMiddleware())
    if line.endswith("rabbitmq"):
        made = rabbitmq_broker(os.environ["TASKIQ_INTEROP_RABBITMQ"], name)
    return made.with_result_backend(results).with_serializer(serializer)


def own_or(plugin: Any, line: str, adapter: str) -> Any:
    """Give a plugin, or its adapter if that is asked for and there is one."""
    if SIDE == "ours" and os.environ["TASKIQ_INTEROP_LINE"] == line:
        return import_module(adapter)
    return plugin


def rabbitmq_broker(url: str, name: str) -> AsyncBroker:
    """The broker that can delay a message, so its retries are the smart ones."""
    plugin = own_or(taskiq_aio_pika, "adapted-rabbitmq", "taskiq.adapters.rabbitmq")
    made: AsyncBroker = plugin.AioPikaBroker(
        url,
        exchange=plugin.Exchange(name=f"{name}-exchange"),
        task_queues=[plugin.Queue(name=f"{name}-queue")],
        dead_letter_queue=plugin.Queue(name=f"{name}-dead"),
        delay_queue=plugin.Queue(name=f"{name}-delay"),
    ).with_middlewares(SmartRetryMiddleware())
    return made


broker = make_broker()


@broker.task("worker_version")
def worker_version() -> str:
    """A task for the thread pool."""
    return VERSION


@broker.task("echo")
async def echo(*args: Any, **kwargs: Any) -> list[Any]:
    return [args, kwargs]


@broker.task("describe_typed")
async def describe_typed(
    when: dt.datetime, key: uuid.UUID, point: Point, box: Box, numbers: set[int]
) -> list[str]:
    return [describe(each) for each in (when, key, point, box, numbers)]


@broker.task("midnight")
async def midnight() -> dt.datetime:
    return dt.datetime(2024, 2, 29, tzinfo=dt.timezone.utc)


@broker.task("origin")
async def origin() -> Point:
    return Point(x=0)


def described_labels(message: TaskiqMessage) -> dict[str, str]:
    return {name: describe(value) for name, value in message.labels.items()}


@broker.task("describe_labels")
async def describe_labels(context: Current) -> dict[str, str]:
    return described_labels(context.message)


@broker.task("take_labels_out")
async def take_labels_out(context: Current) -> dict[str, str]:
    """Keep labels out of the result, which as JSON cannot hold binary ones."""
    described = described_labels(context.message)
    context.message.labels.clear()
    return described


@broker.task("fail_with_value_error")
async def fail_with_value_error() -> None:
    raise ValueError("bad", 3, None)


@broker.task("fail_with_own_error")
def fail_with_own_error() -> None:
    raise RefusedError("no", {"reasons": [1, "ü"]})


@broker.task("fail_with_fragile_error")
async def fail_with_fragile_error() -> None:
    raise CodedError(7, hint="ask later")


@broker.task("fail_with_local_error")
async def fail_with_local_error() -> None:
    class LocalError(Exception):
        pass

    raise LocalError("nobody else knows this class")


@broker.task("fail_with_object")
async def fail_with_object() -> None:
    """The error has an argument that no serializer of messages takes."""
    raise RefusedError(Point)


@broker.task("fail_because")
async def fail_because() -> None:
    try:
        NOBODY["k"]
    except KeyError as error:
        raise RefusedError("no") from error


@broker.task("fail_while_handling")
async def fail_while_handling() -> None:
    try:
        NOBODY["k"]
    except KeyError:
        raise RefusedError("no")  # noqa: B904 - the context is what is tested


@broker.task("exit_process")
async def exit_process() -> None:
    raise SystemExit(3)


@broker.task("reject")
async def reject(context: Current) -> None:
    context.reject()


@broker.task("wait_for_ever")
async def wait_for_ever() -> None:
    await asyncio.Event().wait()


@broker.task("report_progress")
async def report_progress(
    tracker: Annotated[ProgressTracker[Any], TaskiqDepends()],
) -> None:
    await tracker.set_progress(TaskState.STARTED, {"done": [1, 2]})


def failed_runs(message: TaskiqMessage) -> int:
    return int(message.labels.get("_retries", 0))


@broker.task("fail_times")
async def fail_times(failures: int, context: Current) -> str:
    if failed_runs(context.message) < failures:
        raise RefusedError(f"run {failed_runs(context.message)}")
    return f"succeeded after {failures}"


@broker.task("requeue_once")
async def requeue_once(context: Current) -> dict[str, str]:
    if "X-Taskiq-requeue" not in context.message.labels:
        await context.requeue()
    return described_labels(context.message)


@broker.task("hand_over")
async def hand_over(giver: str, requeue: bool, context: Current) -> str:
    """End on the other package, with a message that `giver` has sent again."""
    labels = context.message.labels
    if giver == SIDE:
        labels["sent_again_by"] = SIDE
    elif "sent_again_by" in labels:
        sent_again_by = labels["sent_again_by"]
        labels.clear()  # the runs it took are different each time
        return f"from {sent_again_by} to {SIDE}"
    if requeue:
        await context.requeue()
    raise RefusedError(SIDE)


def measure(word: str, unit: str, together: int) -> dict[str, Any]:
    if not word:
        raise ValueError("an empty word", unit)
    return {"length": len(word), "unit": unit, "together": together}


def settle(amount: int, message: TaskiqMessage) -> str:
    if amount < 0 and not failed_runs(message):
        raise RefusedError(amount)
    return f"{amount} after {failed_runs(message)}"


if SIDE == "ours":

    @broker.task("measure", batch=True, batch_size=4, batch_timeout=NEVER)
    async def measure_all(
        words: list[str], unit: str
    ) -> list[dict[str, Any] | Exception]:
        return [_measured(word, unit, len(words)) for word in words]

    def _measured(word: str, unit: str, together: int) -> dict[str, Any] | Exception:
        try:
            return measure(word, unit, together)
        except ValueError as error:
            return error

    @broker.task("add_up", batch=True, batch_size=3, batch_timeout=NEVER)
    def add_all_up(numbers: list[int]) -> int:
        return sum(numbers)

    @broker.task("settle", batch=True, batch_size=3, batch_timeout=0.05)
    async def settle_all(amounts: list[int], context: Current) -> list[str | Exception]:
        return [
            _settled(amount, message)
            for amount, message in zip(amounts, context.messages, strict=True)
        ]

    def _settled(amount: int, message: TaskiqMessage) -> str | Exception:
        try:
            return settle(amount, message)
        except RefusedError as error:
            return error

else:

    @broker.task("measure")
    async def measure_one(word: str, unit: str) -> dict[str, Any]:
        return measure(word, unit, together=1)

    @broker.task("add_up")
    def add_one_up(number: int) -> int:
        return number

    @broker.task("settle")
    async def settle_one(amount: int, context: Current) -> str:
        return settle(amount, context.message)
