"""Programs that measure themselves; `test_prometheus` runs them and reads the output.

Run as ``python -m tests.middlewares.metered_worker PROGRAM DIRECTORY PORT``.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.request import ProxyHandler, build_opener

from taskiq import InMemoryBroker, NoResultError, SimpleRetryMiddleware
from taskiq.middlewares import PrometheusMiddleware

if TYPE_CHECKING:
    from collections.abc import Callable


async def run_tasks(*middlewares: PrometheusMiddleware) -> None:
    """Run a few tasks in what calls itself a worker process."""
    retry = SimpleRetryMiddleware()
    broker = InMemoryBroker().with_middlewares(retry, *middlewares)
    broker.is_worker_process = True

    @broker.task("given", max_deliveries=2, on_failure="requeue")
    async def given() -> None:
        raise ValueError

    @broker.task("again", retry_on_error=True, max_retries=2)
    async def again() -> None:
        raise ValueError

    @broker.task("plain")
    async def plain(value: int) -> int:
        if value < 0:
            raise ValueError(value)
        if value == 0:
            raise NoResultError
        return value

    @broker.task("batch", batch=True, batch_size=3, batch_timeout=3600)
    async def batch(items: list[int]) -> None:
        if sum(items) == 0:
            raise ValueError(items)

    await broker.startup()
    for value in (1, 2, -1, 0):
        await plain.kiq(value)
    for item in (1, 2, 3, 0):
        await batch.kiq(item)
    await given.kiq()
    await again.kiq()
    await broker.wait_all()
    await broker.shutdown()


async def hold_and_isolate(port: int, middleware: PrometheusMiddleware) -> None:
    """Tell what the endpoint says while messages wait, and once they have run."""
    broker = InMemoryBroker().with_middlewares(middleware)
    broker.is_worker_process = True

    @broker.task(
        "keyed",
        batch=True,
        batch_timeout=3600,
        batch_key=lambda item: item % 2,
        batch_isolate_errors=True,
    )
    async def keyed(items: list[int]) -> None:
        if 4 in items:
            raise ValueError(items)

    await broker.startup()
    for item in (1, 2, 3, 4, 6):
        await keyed.kiq(item)
    while broker.receiver.batch_statistics().buffered < 5:  # noqa: ASYNC110
        await asyncio.sleep(0)
    # What was asked for when the last one joined has its turn.
    await asyncio.sleep(0)
    print(scrape(port), "# END", sep="\n")  # noqa: T201
    await broker.wait_all()
    await broker.shutdown()
    print(scrape(port), "# END", sep="\n", flush=True)  # noqa: T201


def holding(directory: Path, port: int) -> None:
    asyncio.run(
        hold_and_isolate(port, PrometheusMiddleware(directory, port, "127.0.0.1")),
    )


def scrape(port: int) -> str:
    direct = build_opener(ProxyHandler({}))
    with direct.open(f"http://127.0.0.1:{port}/metrics") as response:
        text: str = response.read().decode()
        return text


def worker(directory: Path, port: int) -> None:
    """Run tasks, tell what the endpoint says, and live until the input ends."""
    asyncio.run(run_tasks(PrometheusMiddleware(directory, port, "127.0.0.1")))
    print(scrape(port), "# END", sep="\n", flush=True)  # noqa: T201
    sys.stdin.read()


def client(directory: Path, port: int) -> None:
    """Do what a client does, and tell whether the port was left alone."""
    broker = InMemoryBroker()
    broker.add_middlewares(PrometheusMiddleware(directory, port, "127.0.0.1"))
    asyncio.run(broker.startup())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", port))
    print("the port is free", "# END", sep="\n")  # noqa: T201


def bad_address(directory: Path, port: int) -> None:
    """Serve at an address that no machine has (RFC 5737)."""
    asyncio.run(run_tasks(PrometheusMiddleware(directory, port, "192.0.2.1")))
    print("ran", "# END", sep="\n")  # noqa: T201


def two_instances(directory: Path, port: int) -> None:
    PrometheusMiddleware(directory, port, "127.0.0.1")
    worker(directory, port)


def imported_before(directory: Path, port: int) -> None:
    import prometheus_client  # noqa: F401, PLC0415 - the mistake

    worker(directory, port)


def name_taken(directory: Path, port: int) -> None:
    """Have a metric of somebody else's under one of the names."""
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(directory)
    from prometheus_client import Counter  # noqa: PLC0415

    Counter("found_errors", "of the application")
    try:
        PrometheusMiddleware(directory, port)
    except ValueError as exc:
        print(exc, "# END", sep="\n")  # noqa: T201


PROGRAMS: dict[str, Callable[[Path, int], None]] = {
    "worker": worker,
    "holding": holding,
    "client": client,
    "bad_address": bad_address,
    "two_instances": two_instances,
    "imported_before": imported_before,
    "name_taken": name_taken,
}

if __name__ == "__main__":
    logging.basicConfig(level=logging.DEBUG, stream=sys.stderr)
    _, program, directory, port = sys.argv
    PROGRAMS[program](Path(directory), int(port))
