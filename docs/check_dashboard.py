"""Run every query of the dashboard against a Prometheus that scrapes a real worker.

    python docs/check_dashboard.py [REDIS_URL]

Needs `prometheus` on the path, a Redis, taskiq-redis and prometheus_client. It prints a
line for each query: the series that came back and the value of the first. The status is
1 if a query has an error, no series, or no number.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

DASHBOARD = Path(__file__).parent / "guide" / "batching" / "taskiq-batches.json"
APPLICATION = """
import asyncio
from pathlib import Path
from taskiq import PrometheusMiddleware
from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

broker = (
    RedisStreamBroker({redis!r}, queue_name={name!r}, consumer_id="0")
    .with_result_backend(
        RedisAsyncResultBackend({redis!r}, prefix_str={name!r}, result_ex_time=60)
    )
    .with_middlewares(PrometheusMiddleware(Path({metrics!r}), {port}, "127.0.0.1"))
)

@broker.task("store", batch=True, batch_size=20, batch_timeout=0.3,
             batch_isolate_errors=True)
async def store(rows: list[int]) -> None:
    await asyncio.sleep(0.01)
    if 13 in rows:
        raise ValueError("13")

@broker.task("add")
async def add(a: int) -> int:
    if a == 13:
        raise ValueError("13")
    return a
"""
#: Seconds of messages, and the range that rates are taken over.
SENDING, RANGE = 12, "8s"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running(command: list[str], directory: Path) -> Iterator[None]:
    """Run a program meanwhile, and stop it as a supervisor does."""
    with (directory / f"{Path(command[0]).name}.log").open("wb") as log:
        process = subprocess.Popen(  # noqa: S603 - our own
            command, cwd=directory, stdout=log, stderr=log
        )
        try:
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


async def send() -> None:
    """Send messages for a while, one in fifty of them bad."""
    app: Any = importlib.import_module("app")
    await app.broker.startup()
    end = time.monotonic() + SENDING
    number = 0
    while time.monotonic() < end:
        number += 1
        await app.store.kiq(number % 50)
        await app.add.kiq(number % 50)
        await asyncio.sleep(0.01)
    await app.broker.shutdown()


def ask(port: int, query: str) -> list[float]:
    """Give the value of each series.

    :raises urllib.error.HTTPError: Prometheus does not understand the query.
    """
    url = f"http://127.0.0.1:{port}/api/v1/query?" + urllib.parse.urlencode(
        {"query": query},
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=10) as response:
        found = json.load(response)["data"]["result"]
    return [float(each["value"][1]) for each in found]


def check(port: int) -> int:
    """Run every query, print what came back, and count what was no good."""
    bad = 0
    dashboard = json.loads(DASHBOARD.read_text("utf-8"))
    print(f"{'series':>6}  {'first':>8}  panel: query")
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            query = target["expr"].replace("$__rate_interval", RANGE)
            query = query.replace("$task", ".*")
            try:
                values = ask(port, query)
            except urllib.error.HTTPError as error:
                values = []
                print(error.read().decode())
            good = bool(values) and not any(map(math.isnan, values))
            bad += not good
            first = f"{values[0]:8.3g}" if values else f"{'-':>8}"
            mark = "" if good else "  <-- no data"
            print(f"{len(values):6}  {first}  {panel['title']}: {target['expr']}{mark}")
    print(f"{bad} without data" if bad else "every query has data")
    return int(bad > 0)


def main(redis: str) -> int:
    name = f"dashboard-{uuid.uuid4().hex}"
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        metrics, prometheus = free_port(), free_port()
        (directory / "metrics").mkdir()
        (directory / "app.py").write_text(
            APPLICATION.format(
                redis=redis,
                name=name,
                metrics=str(directory / "metrics"),
                port=metrics,
            ),
        )
        (directory / "prometheus.yml").write_text(
            "scrape_configs:\n- job_name: worker\n  scrape_interval: 1s\n"
            f"  static_configs:\n  - targets: ['127.0.0.1:{metrics}']\n",
        )
        worker = [sys.executable, "-m", "taskiq", "worker", "app:broker", "-w", "2"]
        server = [
            "prometheus",
            "--config.file=prometheus.yml",
            f"--storage.tsdb.path={directory / 'data'}",
            f"--web.listen-address=127.0.0.1:{prometheus}",
        ]
        sys.path.insert(0, scratch)
        try:
            with running(worker, directory), running(server, directory):
                asyncio.run(send())
                return check(prometheus)
        finally:
            clean_up(redis, name)


def clean_up(url: str, name: str) -> None:
    from redis import Redis  # noqa: PLC0415 - comes with taskiq-redis

    with Redis.from_url(url) as redis:
        redis.delete(name, *redis.scan_iter(f"*{name}*", count=1000))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:] or [os.environ.get("REDIS", "redis://127.0.0.1:6379")]))
