"""One message that kills its process costs a few deaths, and nobody else a result."""

from __future__ import annotations

import asyncio
import importlib
import math
import os
import sys
import uuid
from typing import TYPE_CHECKING

import anyio
import pytest
from redis.asyncio import Redis

from taskiq import gather_results
from tests.interop.lines import REDIS
from tests.support.environments import CHECKOUT

if TYPE_CHECKING:
    from pathlib import Path


async def test_one_in_a_thousand_kills_its_process(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = f"taskiq-killer-{uuid.uuid4().hex}"
    monkeypatch.setenv("TASKIQ_KILLER", name)
    monkeypatch.delitem(sys.modules, "tests.faults.killer_app", raising=False)
    app = importlib.import_module("tests.faults.killer_app")
    log = tmp_path / "worker.log"
    await app.broker.startup()
    handles = await app.double.kiq_many(range(1000))
    with log.open("wb") as output:
        worker = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "taskiq", "worker"),
            *("tests.faults.killer_app:broker", "--workers", "1"),
            cwd=CHECKOUT,
            env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
            stdout=output,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        others = [each for each in range(1000) if each != app.KILLER]
        results = await gather_results([handles[each] for each in others], timeout=150)
        assert [each.return_value for each in results] == [2 * each for each in others]
        killer = handles[app.KILLER].task_id
        with anyio.fail_after(60):
            # It is a file that another process writes.
            while f"{name}:double with ID {killer}" not in alone(log):  # noqa: ASYNC110
                await asyncio.sleep(0.2)
        text = log.read_text()
        deaths = text.count("ended: exit code 9")
        alone_runs = alone(log).count(killer)
        assert deaths - alone_runs <= 2 * math.log2(100)
        assert alone_runs
    finally:
        worker.terminate()
        await worker.wait()
        await app.broker.shutdown()
        async with Redis.from_url(REDIS) as redis:
            await redis.delete(name)


def alone(log: Path) -> str:
    lines = log.read_text().splitlines()
    return "\n".join(line for line in lines if "Runs alone" in line)
