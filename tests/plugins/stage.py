"""A line in use: a worker process, a scheduler process, and a client in the test."""

from __future__ import annotations

import asyncio
import sys
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

from taskiq import AsyncBroker, AsyncTaskiqTask, TaskiqResult, TaskiqResultTimeoutError
from taskiq.kicker import AsyncKicker
from tests.support.commands import RunningCommand
from tests.support.environments import CHECKOUT
from tests.support.hub import HANG, Hub

from .lines import Line

#: Seconds between two looks for a result.
INTERVAL = 0.05
#: Seconds in which a worker that listens answers.
_ANSWER = 1.0


class WrongEndError(Exception):
    """A process that was asked to end had not done well."""


@dataclass
class Client:
    """The sender of tasks: it knows their names only."""

    broker: AsyncBroker

    def kicker(self, task_name: str, **labels: Any) -> AsyncKicker[..., Any]:
        return AsyncKicker(task_name, self.broker, labels)

    async def send(
        self, task_name: str, *args: Any, **labels: Any
    ) -> AsyncTaskiqTask[Any]:
        return await self.kicker(task_name, **labels).kiq(*args)

    async def send_all(
        self, task_name: str, items: Sequence[Any], *args: Any, **labels: Any
    ) -> list[AsyncTaskiqTask[Any]]:
        """Send a message for each item, one after the other."""
        return [await self.send(task_name, item, *args, **labels) for item in items]

    async def ask(self, task_name: str, *args: Any, **labels: Any) -> TaskiqResult[Any]:
        return await result_of(await self.send(task_name, *args, **labels))


async def result_of(handle: AsyncTaskiqTask[Any]) -> TaskiqResult[Any]:
    return await handle.wait_result(check_interval=INTERVAL, timeout=HANG)


async def results_of(
    handles: Sequence[AsyncTaskiqTask[Any]],
) -> list[TaskiqResult[Any]]:
    return list(await asyncio.gather(*map(result_of, handles)))


def values_of(results: Sequence[TaskiqResult[Any]]) -> list[Any]:
    """Give the value of each, or its error as text."""
    return [
        result.return_value if result.error is None else repr(result.error)
        for result in results
    ]


@dataclass
class Stage:
    """A line under a name of its own.

    :ivar hub: what the processes report to.
    :ivar name: begins the names of all that is made on the server.
    """

    line: Line
    hub: Hub
    name: str = field(default_factory=lambda: f"taskiq-plugins-{uuid.uuid4().hex}")

    @contextmanager
    def opened(self) -> Iterator[Stage]:
        """Leave nothing on the server."""
        try:
            asyncio.run(_start_and_stop(self.line.make(self.name)))
            yield self
        finally:
            self.line.server.remove(self.name)

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        broker = self.line.sender(self.name)
        await broker.startup()
        try:
            yield Client(broker)
        finally:
            await broker.shutdown()

    @contextmanager
    def worker(self, *options: str, app: str = "app") -> Iterator[RunningCommand]:
        """Run a worker that listens, and see that it ends well."""
        broker = f"{app}:broker"
        with self.command("worker", broker, "--workers=1", *options) as worker:
            asyncio.run(self._wait_for_answer(worker))
            yield worker

    @contextmanager
    def scheduler(self, which: str) -> Iterator[RunningCommand]:
        """Run a scheduler that looks for new schedules every second."""
        options = [f"app:{which}", "--update-interval=1"]
        with self.command("scheduler", *options) as scheduler:
            scheduler.wait_for_line("Startup completed")
            yield scheduler

    @contextmanager
    def command(
        self, command: str, app: str, *options: str
    ) -> Iterator[RunningCommand]:
        """Run a command of taskiq and stop it, unless it has been stopped."""
        running = RunningCommand(
            ["-m", "taskiq", command, f"tests.plugins.{app}", *options],
            CHECKOUT,
            {
                "TASKIQ_PLUGINS_LINE": self.line.name,
                "TASKIQ_PLUGINS_NAME": self.name,
                "TASKIQ_TEST_HUB": str(self.hub.port),
            },
        )
        with ExitStack() as stack:
            stack.callback(running.clean_up)
            stack.callback(lambda: show(running))
            yield running
            if running.process.returncode is None:
                check_end(running)

    async def _wait_for_answer(self, worker: RunningCommand) -> None:
        """Ask until somebody answers: not every line keeps what it is told before."""
        async with self.client() as client:
            for _ in range(int(HANG / _ANSWER)):
                handle = await client.send("add", 1, 1)
                try:
                    await handle.wait_result(check_interval=INTERVAL, timeout=_ANSWER)
                except TaskiqResultTimeoutError:
                    continue
                return
        raise WrongEndError(f"the worker does not answer:\n{worker.output}")


def show(running: RunningCommand) -> None:
    """Print what a command has printed, for a test that fails."""
    sys.stderr.write(running.output + "\n")


async def _start_and_stop(broker: AsyncBroker) -> None:
    """Make the queues, so that what is sent before a worker starts is kept."""
    await broker.startup()
    await broker.shutdown()


def check_end(running: RunningCommand) -> None:
    """Stop a command; it has to end by itself, without an error in its end."""
    before = len(running.lines)
    status = running.stop()
    if status != 0 or "Traceback" in "\n".join(running.lines[before:]):
        raise WrongEndError(f"exit status {status}:\n{running.output}")
