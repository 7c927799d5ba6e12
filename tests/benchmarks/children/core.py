"""Child script: one workload on the taskiq of the interpreter that runs it.

`core CASE MESSAGES` reports the CPU and wall seconds of the measured section. Only
public API that both packages have is used, except by the batch cases. Every case checks
afterwards, outside the measured section, that each message was executed once and has
its own right result.
"""

from __future__ import annotations

import asyncio
import json
import platform
import sys
from collections import Counter
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from taskiq import (
    AckableMessage,
    AsyncBroker,
    AsyncResultBackend,
    BrokerMessage,
    InMemoryBroker,
    TaskiqResult,
)
from taskiq.receiver import Receiver
from tests.benchmarks.children.clocks import Stopwatch, report

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

BATCH_SIZE = 100
MAX_ASYNC_TASKS = 100

#: taskiq 0.13.0 keeps the newest 100 results only; here a held handle keeps its own.
RELEASED = version("taskiq") == "0.13.0"


class ReturnValues(AsyncResultBackend[Any]):
    """The cheapest backend whose results can still be checked: one dict entry each."""

    def __init__(self) -> None:
        self.values: dict[str, object] = {}
        self.saves = 0
        self.errors = 0

    async def set_result(self, task_id: str, result: TaskiqResult[Any]) -> None:
        self.saves += 1
        self.errors += result.is_err
        self.values[task_id] = result.return_value

    async def is_result_ready(self, task_id: str) -> bool:
        return task_id in self.values

    async def get_result(
        self,
        task_id: str,
        with_logs: bool = False,
    ) -> TaskiqResult[Any]:
        raise NotImplementedError


class DroppingBroker(AsyncBroker):
    """Takes messages and forgets them, so that only the client's work is left."""

    def __init__(self) -> None:
        super().__init__()
        self.dropped = 0
        self.newest: BrokerMessage | None = None

    async def kick(self, message: BrokerMessage) -> None:
        self.dropped += 1
        self.newest = message

    async def listen(self) -> AsyncGenerator[bytes | AckableMessage, None]:
        raise NotImplementedError
        yield b""


class FullBroker(AsyncBroker):
    """Hands out everything it was sent without ever making the receiver wait."""

    def __init__(self) -> None:
        super().__init__()
        self.backend = ReturnValues()
        self.with_result_backend(self.backend)
        self.queue: list[bytes] = []

    async def kick(self, message: BrokerMessage) -> None:
        self.queue.append(message.message)

    async def listen(self) -> AsyncGenerator[bytes | AckableMessage, None]:
        for data in self.queue:
            yield data

    def check_results(self, expected: dict[str, object]) -> None:
        """Each message has its own result, saved once."""
        assert self.backend.errors == 0, f"{self.backend.errors} messages failed"
        assert self.backend.saves == len(expected), f"{self.backend.saves} saves"
        assert self.backend.values == expected, "results were mixed up"


class AckedBroker(FullBroker):
    """The same with messages to acknowledge, made one by one as brokers do."""

    def __init__(self) -> None:
        super().__init__()
        self.acks = 0

    async def ack(self) -> None:
        self.acks += 1

    async def listen(self) -> AsyncGenerator[bytes | AckableMessage, None]:
        for data in self.queue:
            yield AckableMessage(data=data, ack=self.ack)


async def kiq(messages: int) -> Stopwatch:
    """Client side alone: build, dump and send."""
    broker = DroppingBroker()

    @broker.task(task_name="index")
    async def index(item: int) -> None:
        raise NotImplementedError

    with Stopwatch() as watch:
        for item in range(messages):
            await index.kiq(item)

    assert broker.dropped == messages, f"{broker.dropped} messages sent"
    assert broker.newest is not None
    assert json.loads(broker.newest.message)["args"] == [messages - 1]
    return watch


async def kiq_inmemory(messages: int) -> Stopwatch:
    """Client and worker in one process: send everything, collect every result."""
    broker = InMemoryBroker(max_stored_results=-1) if RELEASED else InMemoryBroker()

    @broker.task(task_name="negate")
    async def negate(item: int) -> int:
        return -item

    await broker.startup()
    with Stopwatch() as watch:
        handles = await asyncio.gather(*(negate.kiq(item) for item in range(messages)))
        results = [await handle.wait_result(check_interval=0.01) for handle in handles]
    await broker.shutdown()

    assert not any(result.is_err for result in results), "a message failed"
    assert [-result.return_value for result in results] == list(range(messages))
    return watch


async def callback(messages: int) -> Stopwatch:
    """Worker side of one message after the other, without the queue loop."""
    broker = FullBroker()

    @broker.task(task_name="negate")
    async def negate(item: int) -> int:
        return -item

    expected: dict[str, object] = {}
    for item in range(messages):
        handle = await negate.kiq(item)
        expected[handle.task_id] = -item
    receiver = Receiver(broker, max_async_tasks=MAX_ASYNC_TASKS)

    with Stopwatch() as watch:
        for data in broker.queue:
            await receiver.callback(message=data)

    broker.check_results(expected)
    return watch


async def listen_to_plain_task(broker: FullBroker, messages: int) -> Stopwatch:
    """The whole worker loop over a plain task of `broker`."""
    seen: list[int] = []

    @broker.task(task_name="index")
    async def index(item: int) -> None:
        seen.append(item)

    handles = [await index.kiq(item) for item in range(messages)]
    watch = await listen_until_empty(broker)

    assert sorted(seen) == list(range(messages)), "not every item was executed once"
    broker.check_results({handle.task_id: None for handle in handles})
    return watch


async def listen(messages: int) -> Stopwatch:
    """The worker loop with messages that cannot be acknowledged."""
    return await listen_to_plain_task(FullBroker(), messages)


async def listen_acks(messages: int) -> Stopwatch:
    """The worker loop with an acknowledgement for each message."""
    broker = AckedBroker()
    watch = await listen_to_plain_task(broker, messages)
    assert broker.acks == messages, f"{broker.acks} acknowledgements"
    return watch


async def batch(messages: int) -> Stopwatch:
    """The worker loop with a batch task whose return value belongs to the batch."""
    broker = FullBroker()
    seen: list[int] = []
    sizes: list[int] = []

    @broker.task(task_name="index", batch=True, batch_size=BATCH_SIZE)
    async def index(items: list[int]) -> None:
        sizes.append(len(items))
        seen.extend(items)

    handles = [await index.kiq(item) for item in range(messages)]
    watch = await listen_until_empty(broker)

    assert sorted(seen) == list(range(messages)), "not every item was executed once"
    check_batch_sizes(sizes, messages)
    broker.check_results({handle.task_id: None for handle in handles})
    return watch


async def batch_each(messages: int) -> Stopwatch:
    """The worker loop with a batch task that returns a value for each item."""
    broker = FullBroker()
    sizes: list[int] = []

    @broker.task(task_name="negate", batch=True, batch_size=BATCH_SIZE)
    async def negate(items: list[int]) -> list[int]:
        sizes.append(len(items))
        return [-item for item in items]

    handles = [await negate.kiq(item) for item in range(messages)]
    watch = await listen_until_empty(broker)

    check_batch_sizes(sizes, messages)
    broker.check_results({each.task_id: -item for item, each in enumerate(handles)})
    return watch


async def listen_until_empty(broker: FullBroker) -> Stopwatch:
    """Measure a receiver from its start until everything in `broker` is settled."""
    receiver = Receiver(broker, max_async_tasks=MAX_ASYNC_TASKS)
    with Stopwatch() as watch:
        await receiver.listen(asyncio.Event())
    return watch


def check_batch_sizes(sizes: list[int], messages: int) -> None:
    """All calls were full, except one for what is left over."""
    full, rest = divmod(messages, BATCH_SIZE)
    expected = [BATCH_SIZE] * full + [rest] * bool(rest)
    assert sorted(sizes, reverse=True) == expected, f"calls by size: {Counter(sizes)}"


CASES: dict[str, Callable[[int], Awaitable[Stopwatch]]] = {
    "kiq": kiq,
    "kiq-inmemory": kiq_inmemory,
    "callback": callback,
    "listen": listen,
    "listen-acks": listen_acks,
    "batch": batch,
    "batch-each": batch_each,
}


def versions() -> dict[str, str]:
    """What the figures depend on: the interpreter and the packages of the hot path."""
    packages = ("taskiq", "pydantic", "pydantic-core", "anyio", "taskiq-dependencies")
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return {"python": python, **{name: version(name) for name in packages}}


def main() -> None:
    """Run the case the command line names and print what it cost."""
    if sys.argv[1] == "versions":
        report(versions())
        return
    case, messages = CASES[sys.argv[1]], int(sys.argv[2])

    async def run() -> Stopwatch:
        return await case(messages)

    report(asyncio.run(run()).measured)


if __name__ == "__main__":
    main()
