"""What `taskiq worker` prints while it works: one line an event."""

from __future__ import annotations

import json
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias
from uuid import uuid4

import pytest

from tests.support.commands import RunningCommand
from tests.support.proxy import Proxy

Run: TypeAlias = Callable[..., RunningCommand]

#: Sends messages to itself when it starts, as `SEND` says.
APP = """
import asyncio, os, time
from taskiq import AckableMessage, AsyncBroker, SimpleRetryMiddleware, TaskiqEvents

class OwnBroker(AsyncBroker):
    def __init__(self):
        super().__init__()
        self.sent = asyncio.Queue()
    async def kick(self, message):
        self.sent.put_nowait(message.message)
    async def listen(self):
        while True:
            data = await self.sent.get()
            async def ack(): pass
            yield AckableMessage(data=data, ack=ack)

broker = OwnBroker().with_middlewares(SimpleRetryMiddleware(default_retry_count=2))

@broker.task(batch=True, batch_size=8, batch_isolate_errors=True)
async def insert(rows: list[int]) -> None:
    if 3 in rows:
        raise ValueError("bad row")

@broker.task(batch=True, batch_timeout=0, retry_on_error=True)
async def flaky(rows: list[int]) -> None:
    raise OSError("away")

@broker.task
async def hold(number: int) -> None:
    print("holding", flush=True)
    await asyncio.sleep(number)

@broker.task(batch=True, batch_size=1)
async def block(numbers: list[int]) -> None:
    print("blocked", flush=True)
    time.sleep(1)

@broker.on_event(TaskiqEvents.WORKER_STARTUP)
async def send(state):
    name, count = os.environ["SEND"].split()
    for number in range(int(count)):
        await globals()[name].kiq(number)
"""

REDIS_APP = """
import asyncio, os
from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

URL, QUEUE = os.environ["APP_REDIS"], os.environ["APP_QUEUE"]
broker = RedisStreamBroker(URL, queue_name=QUEUE).with_result_backend(
    RedisAsyncResultBackend(URL, result_ex_time=60)
)

@broker.task
async def slow(number: int) -> None:
    await asyncio.sleep(2)

@broker.task(batch=True, batch_size=20)
async def slow_batch(numbers: list[int]) -> None:
    await asyncio.sleep(2)
"""

SENDER = """
import asyncio
from redis_app_of_log import broker, slow, slow_batch

async def main():
    await broker.startup()
    for number in range(40):
        await slow.kiq(number)
        await slow_batch.kiq(number)
    await broker.shutdown()

asyncio.run(main())
"""

pytestmark = pytest.mark.skipif(
    sys.platform == "win32",
    reason="Windows has no signals to send to other processes",
)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    (tmp_path / "app_of_log.py").write_text(APP)
    (tmp_path / "redis_app_of_log.py").write_text(REDIS_APP)
    (tmp_path / "sender.py").write_text(SENDER)
    started: list[RunningCommand] = []

    def start(*arguments: str, **environment: str) -> RunningCommand:
        command = RunningCommand(arguments, tmp_path, environment)
        started.append(command)
        return command

    yield start
    for command in started:
        command.clean_up()


def worker_that_gets(run: Run, send: str, *options: str) -> RunningCommand:
    worker = ("-m", "taskiq", "worker", "app_of_log:broker", "--workers=1")
    return run(*worker, *options, SEND=send)


def told(command: RunningCommand) -> list[str]:
    """What it says at WARNING and above, without when and who."""
    lines = [line for line in command.lines if re.search(r"\[(WARN|ERR)", line)]
    return [re.sub(r"^(\[[^]]*\])+ ", "", line) for line in lines]


def test_a_bad_row_is_one_line_and_its_traceback(run: Run) -> None:
    worker = worker_that_gets(run, "insert 8")
    worker.wait_for_line("8 messages .1 failed")
    assert worker.stop() == 0
    [line] = told(worker)
    assert re.fullmatch(
        "Exception found while executing batch [0-9a-f]+ of task app_of_log:insert: "
        "1 of 8 messages failed alone, found with [0-9] more calls: "
        "ID [0-9a-f]+: ValueError: bad row",
        line,
    )
    assert worker.output.count("Traceback") == 1


def test_a_failure_that_is_retried_has_no_traceback(run: Run) -> None:
    worker = worker_that_gets(run, "flaky 1")
    worker.wait_for_line("1 message .1 failed", 2)
    assert worker.stop() == 0
    name = "Exception found while executing batch .* of task app_of_log:flaky"
    first, last = told(worker)
    assert re.fullmatch(name + r": OSError: away \(run 1 of 2, sent again\)", first)
    assert re.fullmatch(name + r": OSError: away \(run 2 of 2, not sent again\)", last)
    assert worker.output.count("Traceback") == 1


def test_as_json_a_failure_has_the_same_fields_for_messages_and_batches(
    run: Run,
) -> None:
    worker = worker_that_gets(run, "insert 8", "--log-format=json")
    worker.wait_for_line("8 messages .1 failed")
    assert worker.stop() == 0
    records: list[dict[str, Any]] = [json.loads(line) for line in worker.lines]
    [error] = [record for record in records if record["level"] == "ERROR"]
    [done] = [record for record in records if "flush_reason" in record]
    assert error["batch_id"] == done["batch_id"]
    assert error["task_name"] == done["task_name"] == "app_of_log:insert"
    assert (error["messages"], error["failed"], error["sent_again"]) == (8, 1, 0)
    assert error["error"] == "ValueError: bad row"
    assert error["exception"].startswith("Traceback")
    assert len(error["failed_ids"]) == 1


def test_a_stop_is_at_most_five_lines(run: Run) -> None:
    worker = worker_that_gets(run, "hold 2")
    worker.wait_for_line("holding", 2)
    before = len(worker.lines)
    assert worker.stop() == 0
    lines = [re.sub(r"^(\[[^]]*\])+ ", "", line) for line in worker.lines[before:]]
    assert lines == [
        "Workers are scheduled for shutdown: they finish their running tasks. "
        "3 more signals stop them at once.",
        "Waiting for 1 running task to complete.",
        "All workers have ended.",
    ]


def test_a_stop_that_waits_for_nothing_is_no_success(run: Run) -> None:
    worker = worker_that_gets(run, "hold 1000", "--hardkill-count=1")
    worker.wait_for_line("holding", 2)
    worker.signal(signal.SIGTERM)
    worker.wait_for_line("1 more signal stops them at once")
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 1


def test_a_stop_begins_no_call_once_its_time_is_over(run: Run) -> None:
    worker = worker_that_gets(run, "block 8", "--wait-tasks-timeout=1.5")
    worker.wait_for_line("blocked")
    began, before = time.monotonic(), len(worker.lines)
    assert worker.stop() == 0
    # The calls that wait have their turn before the event loop hears of the signal.
    assert worker.output.count("blocked") == 2
    [not_begun] = re.findall(
        r"The time to stop was over before (\d+) calls began, not acknowledged\.",
        worker.output,
    )
    assert int(not_begun) > 1
    told_of_stop = [
        line
        for line in worker.lines[before:]
        if "[INFO   ][worker-0] Batch" not in line and line != "blocked"
    ]
    assert len(told_of_stop) <= 5, told_of_stop
    assert time.monotonic() - began < 5


# -- A broker that is away ----------------------------------------------------------


def test_an_outage_is_a_warning_at_its_begin_and_one_at_its_end(
    run: Run,
    proxy: Proxy,
) -> None:
    server = {
        "APP_REDIS": f"redis://127.0.0.1:{proxy.port}",
        "APP_QUEUE": f"log-{uuid4().hex}",
    }
    worker = run(
        "-m", "taskiq", "worker", "redis_app_of_log:broker", "--workers=1", **server
    )
    worker.wait_for_line("Listening started")
    assert run("sender.py", **server).wait() == 0
    worker.wait_for_line("Executing task", 40)
    proxy.close()
    time.sleep(4)  # eighty results cannot be stored in that time
    proxy.open()
    worker.wait_for_line("The broker is back after")
    assert worker.stop() == 0

    begin, end = told(worker)
    assert "ConnectionError" in begin
    assert re.fullmatch(
        r"The broker is back after [0-9.]+ s. [0-9]+ messages could not be settled, "
        "and stayed unacknowledged.",
        end,
    )
    assert "Traceback" not in worker.output
