"""Run every query of the dashboard against a Prometheus that scrapes a real worker.

    python docs/check_dashboard.py [REDIS_URL]

Needs `prometheus` on the path, a Redis, taskiq-redis and prometheus_client. It prints a
line for each query: the series that came back and the last value of the first. If each
has numbers, it writes them to ANSWERS, which `docs/draw_dashboard.py` draws. Otherwise
the status is 1.
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
#: What Prometheus answered to each query, for the picture.
ANSWERS = DASHBOARD.with_name("taskiq-batches-answers.json")
APPLICATION = """
import asyncio
from pathlib import Path
from taskiq import Context, PrometheusMiddleware, SimpleRetryMiddleware, TaskiqDepends
from taskiq.adapters.redis import RedisAsyncResultBackend, RedisStreamBroker

broker = (
    RedisStreamBroker({redis!r}, queue_name={name!r}, consumer_id="0")
    .with_result_backend(
        RedisAsyncResultBackend({redis!r}, prefix_str={name!r}, result_ex_time=60)
    )
    .with_middlewares(
        PrometheusMiddleware(Path({metrics!r}), {port}, "127.0.0.1"),
        SimpleRetryMiddleware(),
    )
    .with_dead_letters(on_failure="ack")
)

@broker.task("store", batch=True, batch_size=20, batch_timeout=0.3,
             batch_isolate_errors=True)
async def store(rows: list[int]) -> None:
    await asyncio.sleep(0.01)
    if 13 in rows:
        raise ValueError("13")

@broker.task("charge", retry_on_error=True, max_retries=2, on_failure="dead_letter")
async def charge(a: int) -> int:
    if a == 13:
        raise ValueError("13")
    return a

@broker.task("fetch", on_failure="requeue", max_deliveries=2)
async def fetch(a: int) -> int:
    if a == 13:
        raise ValueError("13")
    return a
"""
#: Messages a second of each task, and for how many seconds.
RATES = ((50, 20), (150, 20), (10, 20))
#: The range that rates are taken over, and seconds between two values of an answer.
RANGE, STEP = "8s", 2


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
    number = 0
    for rate, seconds in RATES:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            number += 1
            await asyncio.gather(
                *(task.kiq(number % 50) for task in (app.store, app.charge, app.fetch)),
            )
            await asyncio.sleep(1 / rate)
    await app.broker.shutdown()


def ask(port: int, query: str, begin: float) -> list[dict[str, Any]]:
    """Give the series of the answer.

    :param begin: when the answer begins, in seconds since the epoch; it ends now.
    :raises urllib.error.HTTPError: Prometheus does not understand the query.
    """
    arguments = {"query": query, "start": begin, "end": time.time(), "step": STEP}
    query = urllib.parse.urlencode(arguments)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    url = f"http://127.0.0.1:{port}/api/v1/query_range?{query}"
    with opener.open(url, timeout=10) as response:
        found: list[dict[str, Any]] = json.load(response)["data"]["result"]
    return [
        {
            "labels": each["metric"],
            # Seconds since the beginning, and numbers that are some.
            "values": [
                [round(at - begin), float(f"{float(value):.4g}")]
                for at, value in each["values"]
                if math.isfinite(float(value))
            ],
        }
        for each in found
    ]


def check(port: int, begin: float) -> int:
    """Run every query, print what came back, and write it if all of it is good."""
    bad = 0
    answers: list[dict[str, Any]] = []
    dashboard = json.loads(DASHBOARD.read_text("utf-8"))
    print("series     first  panel")
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            query = target["expr"].replace("$__rate_interval", RANGE)
            try:
                series = ask(port, query.replace("$task", ".*"), begin)
            except urllib.error.HTTPError as error:
                series = []
                print(error.read().decode())
            good = bool(series) and all(each["values"] for each in series)
            bad += not good
            first = f"{series[0]['values'][-1][1]:8.3g}" if good else f"{'-':>8}"
            mark = "" if good else f"  <-- no data: {target['expr']}"
            print(f"{len(series):6}  {first}  {panel['title']}{mark}")
            answers.append({"query": target["expr"], "series": series})
    print(f"{bad} without data" if bad else "every query has data")
    if not bad:
        lines = ",\n".join(map(json.dumps, answers))
        ANSWERS.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
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
                begin = time.time()
                asyncio.run(send())
                return check(prometheus, begin)
        finally:
            clean_up(redis, name)


def clean_up(url: str, name: str) -> None:
    from redis import Redis  # noqa: PLC0415 - comes with taskiq-redis

    with Redis.from_url(url) as redis:
        redis.delete(name, *redis.scan_iter(f"*{name}*", count=1000))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:] or [os.environ.get("REDIS", "redis://127.0.0.1:6379")]))
