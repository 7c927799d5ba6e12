"""Real worker processes, for the tests of commands."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import RedisError

from tests.support.hub import Hub
from tests.support.proxy import Proxy

from .worker_process import Run, WorkerProcess


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as running:
        yield running


@pytest.fixture
def run(hub: Hub, tmp_path: Path) -> Iterator[Run]:
    started: list[WorkerProcess] = []

    def start(*options: str, **settings: object) -> WorkerProcess:
        worker = WorkerProcess(hub, tmp_path, *options, **settings)  # type: ignore[arg-type]  # passed on
        started.append(worker)
        return worker

    yield start
    for worker in started:
        worker.clean_up()


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    url = os.environ.get("TASKIQ_TEST_REDIS_URL") or "redis://127.0.0.1:6379"
    redis = Redis.from_url(url, socket_timeout=5)
    try:
        redis.ping()
    except RedisError as error:
        pytest.skip(f"Redis does not answer at {url}: {error}")
    given = redis.connection_pool.connection_kwargs
    proxy = Proxy(given.get("host", "127.0.0.1"), given.get("port", 6379))
    redis.close()
    proxy.open()
    yield proxy
    proxy.close()
