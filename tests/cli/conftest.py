"""Real worker processes, for the tests of commands."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.hub import Hub

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
