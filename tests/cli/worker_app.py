"""The application that the tests of real worker processes run."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import signal
import time
from collections.abc import AsyncGenerator
from functools import partial
from typing import Any

from taskiq import (
    AckableMessage,
    AsyncBroker,
    AsyncResultBackend,
    BrokerMessage,
    TaskiqResult,
)
from taskiq.receiver import Receiver
from tests.support.reports import HUB, hello, open_line, report


class HubBackend(AsyncResultBackend[Any]):
    async def set_result(self, task_id: str, result: TaskiqResult[Any]) -> None:
        report(
            "result",
            id=task_id,
            value=result.return_value,
            error=None if result.error is None else repr(result.error),
        )

    async def is_result_ready(self, task_id: str) -> bool:
        raise NotImplementedError

    async def get_result(
        self,
        task_id: str,
        with_logs: bool = False,
    ) -> TaskiqResult[Any]:
        raise NotImplementedError


class HubBroker(AsyncBroker):
    """Waits for messages without a timer: nothing but them wakes its event loop."""

    async def startup(self) -> None:
        await super().startup()
        loop = type(asyncio.get_running_loop()).__module__
        report("startup", loop=loop, frozen=gc.get_freeze_count())

    async def shutdown(self) -> None:
        report("shutdown")
        await super().shutdown()

    async def kick(self, message: BrokerMessage) -> None:
        raise NotImplementedError

    async def listen(self) -> AsyncGenerator[AckableMessage, None]:
        reader, writer = await asyncio.open_connection(*HUB)
        writer.write(hello("listening"))
        try:
            while line := await reader.readline():
                message = json.loads(line)
                if message is None:
                    raise ConnectionError("the hub hung up")
                yield AckableMessage(
                    data=message["data"].encode(),
                    ack=partial(report, "ack", id=message["id"]),
                )
        finally:
            writer.close()


LIFELINE = open_line("alive")
broker = HubBroker().with_result_backend(HubBackend())


def make_broker() -> AsyncBroker:
    return broker


@broker.task("echo")
async def echo(value: int) -> dict[str, Any]:
    return {"value": value, "pid": os.getpid()}


@broker.task("hold")
async def hold() -> str:
    """Waits for the hub, or for ever."""
    reader, writer = await asyncio.open_connection(*HUB)
    writer.write(hello("held"))
    try:
        await reader.readline()
    except asyncio.CancelledError:
        report("cancelled")
        raise
    finally:
        writer.close()
    return "done"


@broker.task("hold_sync")
def hold_sync() -> int:
    """The same for a pool of threads or processes."""
    with open_line("held") as line:
        line.recv(16)
    return os.getpid()


@broker.task("block")
async def block() -> None:
    """Blocks the event loop for ever."""
    report("blocked")
    while True:
        time.sleep(60)  # noqa: ASYNC251 - that is the mistake


@broker.task("crash")
async def crash(code: int) -> None:
    os._exit(code)


@broker.task("crash_sync")
def crash_sync() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@broker.task("warn")
def warn() -> None:
    logging.getLogger("an.application").warning("said by the application")


@broker.task("count", batch=True, batch_size=50, batch_timeout=5)
async def count(numbers: list[int]) -> list[dict[str, int]]:
    return [{"number": number, "batch": len(numbers)} for number in numbers]


class EagerReceiver(Receiver):
    """Takes an argument of its own."""

    def __init__(self, greeting: str, **options: Any) -> None:
        super().__init__(**options)
        report("greeting", text=greeting, ack_type=self.ack_time.value)
