"""The screens of the guide are those of the commands: only numbers differ."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis
from taskiq_redis import RedisStreamBroker

from taskiq.cli.health.files import HealthDirectory
from taskiq.health import Flush, TaskFlushes
from tests.support.commands import RunningCommand
from tests.support.environments import CHECKOUT
from tests.support.hub import HANG
from tests.support.proxy import Proxy
from tests.test_health import NOW, beat, fleet

pty = pytest.importorskip("pty", reason="there are no terminals to pretend to be")

GUIDE = Path(__file__).parents[2] / "docs" / "guide"
OPERATIONS = (GUIDE / "operations.md").read_text("utf-8")
COMMAND_LINE = (GUIDE / "cli.md").read_text("utf-8")

#: A command for which it is one moment, however long it takes to start.
AT_ONE_MOMENT = """
import runpy, sys, time
now = float(sys.argv.pop(1))
time.time = lambda: now
runpy.run_module("taskiq", run_name="__main__", alter_sys=True)
"""

#: What a worker says of its application when it starts, of which the guide says so.
OF_THE_START = ("The broker, with its", "Task orders.store", "This process holds")


def screens(page: str, command: str) -> list[tuple[list[str], str]]:
    """Find where a page shows a command.

    :returns: the arguments each time, and what is printed.
    """
    blocks = re.findall(r"^( *```console\n.*?)^ *```$", page, re.DOTALL | re.MULTILINE)
    texts = [textwrap.dedent(block).partition("\n")[2] for block in blocks]
    shown = [part for text in texts for part in re.split(r"(?m)^\$ ", text)]
    lines = [part.partition("\n") for part in shown if f"{part} ".startswith(command)]
    return [(shlex.split(line)[1:], printed) for line, _, printed in lines]


def shape(text: str) -> list[str]:
    """Leave out of each paragraph what differs from run to run, and line breaks."""
    text = re.sub(r"\d+(\.\d+)?", "#", text)
    return [" ".join(part.split()) for part in re.split(r"\n\s*\n", text.strip())]


@pytest.fixture
def queue(proxy: Proxy) -> Iterator[str]:
    """The name of a queue that this test has for itself."""
    name = f"screens-{uuid.uuid4().hex}"
    yield name
    with Redis(*proxy.server) as redis:
        redis.delete(name)


@pytest.fixture
def directory(proxy: Proxy, queue: str, tmp_path: Path) -> Path:
    """A directory with the application of the guide."""
    [text] = re.findall(r'```python title="app.py"\n(.+?)```', OPERATIONS, re.DOTALL)
    for shown, real in (
        ("redis://localhost:6379", f"redis://127.0.0.1:{proxy.port}"),
        ('queue_name="orders"', f'queue_name="{queue}"'),
    ):
        assert shown in text
        text = text.replace(shown, real)
    (tmp_path / "app.py").write_text(text)
    return tmp_path


def printed(arguments: list[str], directory: Path) -> str:
    """Run a command in a terminal of a hundred columns, and give what it prints.

    Its heartbeats are in the directory `health`, and for it they are just written.
    """
    here = [each.replace("/run/taskiq", "health") for each in arguments]
    now = NOW if "health" in here else time.time()
    ours, its = pty.openpty()
    command = subprocess.Popen(  # noqa: S603 - our own command
        [sys.executable, "-c", AT_ONE_MOMENT, str(now), *here],
        cwd=directory,
        env={
            **os.environ,
            "PYTHONPATH": str(CHECKOUT),
            "TASKIQ_HEALTH_FILE": "health" if "health" in here else "",
            "COLUMNS": "100",
        },
        stdout=its,
        stderr=its,
    )
    os.close(its)
    command.wait(HANG)
    text = b""
    while chunk := _read(ours):
        text += chunk
    os.close(ours)
    return text.decode().replace("\r\n", "\n")


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # Linux says so that nobody writes any more
        return b""


def write_heartbeats(
    directory: Path,
    left: TaskFlushes | None = None,
    *,
    is_blocked: bool = False,
) -> None:
    """Write those of two processes, of which the first may be blocked."""
    files = HealthDirectory(directory / "health")
    files.clear()
    both = fleet(beat(11, silent=11.0 * is_blocked), beat(12))
    assert both.roster is not None
    files.write_roster(both.roster._replace(host="vm"))
    for each in both.heartbeats:
        files.write(
            each._replace(
                host="vm",
                started_at=NOW - 20,
                loop_lag=NOW - each.answered_at,
                last_fetch_age=1.0,
                flushes=() if left is None or each.pid == 12 else (left,),
            )
        )


#: The column of the latest does not fit into the terminal.
LATEST = tuple(Flush("timeout", count, 0.5, 1.0) for count in range(5))
FULL = TaskFlushes(
    "orders.store", 100, 0.5, 4, 62.0, 0.34, {"size": 2, "timeout": 2}, LATEST
)
SMALL = FULL._replace(mean_messages=21.5, reasons={"timeout": 11, "size": 2})


def test_tasks(directory: Path) -> None:
    write_heartbeats(directory, SMALL)
    plain, with_batches = screens(OPERATIONS, "taskiq inspect tasks app:broker")
    for arguments, shown in (plain, with_batches):
        assert shape(printed(arguments, directory)) == shape(shown)


def test_workers(directory: Path) -> None:
    blocked, small = screens(OPERATIONS, "taskiq inspect workers /run/taskiq")
    write_heartbeats(directory, FULL, is_blocked=True)
    assert shape(printed(blocked[0], directory)) == shape(blocked[1])
    write_heartbeats(directory, SMALL)
    assert shape(printed(small[0], directory)) == shape(small[1])


def test_health(directory: Path) -> None:
    ready, not_live = screens(OPERATIONS, "taskiq health")
    write_heartbeats(directory)
    assert shape(printed(ready[0], directory)) == shape(ready[1])
    write_heartbeats(directory, is_blocked=True)
    assert shape(printed(not_live[0], directory)) == shape(not_live[1])


def test_queues(directory: Path, queue: str, proxy: Proxy) -> None:
    async def send_one() -> None:
        broker = RedisStreamBroker(f"redis://127.0.0.1:{proxy.port}", queue_name=queue)
        task = broker.register_task(lambda: None, "any")
        await broker.startup()
        await task.kiq()
        await broker.shutdown()

    asyncio.run(send_one())
    with Redis(*proxy.server) as redis:
        redis.xreadgroup("taskiq", "somebody", {queue: ">"})
    [(arguments, shown)] = screens(OPERATIONS, "taskiq inspect queues app:broker\n")
    seen = printed(arguments, directory).replace(queue, "orders")
    assert shape(seen) == shape(shown)


# -- The log of a worker --------------------------------------------------------------


@pytest.fixture
def worker(request: pytest.FixtureRequest, directory: Path) -> Iterator[RunningCommand]:
    """Starts what the guide shows; the server is only there where a test opens it."""
    request.getfixturevalue("proxy").close()
    [(arguments, _)] = screens(COMMAND_LINE, f"taskiq worker {request.param}")
    command = RunningCommand(["-m", "taskiq", *arguments], directory, {})
    yield command
    command.clean_up()


def events(text: str) -> list[str]:
    """Give the lines in their order, of those that repeat each other only one."""
    told = [line for line in shape(text.replace("\n", "\n\n")) if line]
    told = [re.sub("Error: .*", "Error", line) for line in told]
    return [
        line
        for before, line in zip(["", *told], told, strict=False)
        if line != before and not any(each in line for each in OF_THE_START)
    ]


@pytest.mark.parametrize("worker", ["app:broker"], indirect=True)
def test_a_server_that_comes_goes_and_comes_back_and_a_stop(
    worker: RunningCommand,
    proxy: Proxy,
) -> None:
    worker.wait_for_line("Cannot start the broker", 2)
    proxy.open()
    worker.wait_for_line("The broker is back after", 1)
    proxy.close()
    worker.wait_for_line("The listener failed")
    proxy.open()
    worker.wait_for_line("The broker is back after", 2)
    assert worker.stop() == 0
    [(_, shown)] = screens(COMMAND_LINE, "taskiq worker app:broker")
    assert events(worker.output) == events(shown)


@pytest.mark.parametrize("worker", ["app:brokre"], indirect=True)
def test_a_broker_that_is_not_there(worker: RunningCommand, directory: Path) -> None:
    assert worker.wait() == 2
    [(_, shown)] = screens(COMMAND_LINE, "taskiq worker app:brokre")
    assert events(worker.output.replace(str(directory), "/srv")) == events(shown)
