"""One message that kills its process costs a few deaths, and nobody else a result."""

from __future__ import annotations

import asyncio
import importlib
import math
import os
import sys
import uuid
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from taskiq import gather_results
from taskiq.dead_letters import DeadLetter, store_of
from tests.interop.lines import REDIS
from tests.support.environments import CHECKOUT

from .lines import URLS, Line, Settings, remove, unavailable

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator
    from pathlib import Path

#: Seconds that a busy machine may need.
PATIENCE = 150


@pytest.fixture(params=["redis-adapted", "rabbitmq", "nats-pull"])
def line(request: pytest.FixtureRequest) -> Line:
    if reason := unavailable(request.param):
        pytest.skip(reason)
    line: Line = request.param
    return line


@pytest.fixture
def settings(line: Line) -> Iterator[Settings]:
    settings = settings_of(line)
    yield settings
    asyncio.run(remove(settings))


@pytest.fixture
def app(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv(*next(iter(settings.to_environment().items())))
    monkeypatch.delitem(sys.modules, "tests.faults.killer_app", raising=False)
    return importlib.import_module("tests.faults.killer_app")


async def test_one_in_a_thousand_kills_its_process(app: Any, tmp_path: Path) -> None:
    """It is dead at its limit; all others have results; the log names it."""
    log = tmp_path / "worker.log"
    await app.broker.startup()
    try:
        handles = await app.double.kiq_many(range(1000))
        async with working(log):
            results = await gather_results(handles, timeout=PATIENCE)
            letter = await only_letter(app.broker)
    finally:
        await app.broker.shutdown()
    killer = handles[app.KILLER].task_id
    own = results.pop(app.KILLER)
    assert own.is_err
    others = [each for each in range(1000) if each != app.KILLER]
    assert [each.return_value for each in results] == [2 * each for each in others]
    assert (letter.task_id, letter.reason) == (killer, "max_deliveries")
    lines = log.read_text().splitlines()
    deaths = sum("ended: exit code 9" in each for each in lines)
    assert deaths <= min(app.MOST_DELIVERIES, 2 * math.log2(100))
    assert any(
        "was running 1 message of task" in each and killer in each for each in lines
    )
    assert any("Dead letter" in each and killer in each for each in lines)


async def test_one_plain_message_kills_the_process_of_others_that_are_not_dead_for_it(
    app: Any, tmp_path: Path
) -> None:
    """All of them run beside it, again and again, until it is alone."""
    log = tmp_path / "worker.log"
    await app.broker.startup()
    try:
        handles = await app.triple.kiq_many(range(30))
        async with working(log, "2"):
            results = await gather_results(handles, timeout=PATIENCE)
            letter = await only_letter(app.broker)
    finally:
        await app.broker.shutdown()
    killer = handles[app.PLAIN_KILLER].task_id
    assert [number for number, each in enumerate(results) if each.is_err] == [
        app.PLAIN_KILLER
    ]
    assert (letter.task_id, letter.reason) == (killer, "max_deliveries")
    told = log.read_text()
    assert told.count("ended: exit code 9") == app.PLAIN_DELIVERIES
    assert "was running 1 message of task" in told


def settings_of(line: Line) -> Settings:
    return Settings(
        line=line,
        name=f"taskiq-killer-{uuid.uuid4().hex[:12]}",
        url=URLS[line],
        results_url=REDIS,
        counts_url=REDIS,
        # A busy machine must not let a lease end: that would be one delivery more.
        redelivery=6.0,
        batch_size=100,
        batch_timeout=0.5,
        max_buffered=1000,
        call_seconds=0.05,
    )


@asynccontextmanager
async def working(log: Path, workers: str = "1") -> AsyncGenerator[None]:
    with log.open("wb") as output:
        worker = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "taskiq", "worker"),
            *("tests.faults.killer_app:broker", "--workers", workers),
            cwd=CHECKOUT,
            env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
            stdout=output,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield
    finally:
        worker.terminate()
        await worker.wait()


async def only_letter(broker: Any) -> DeadLetter:
    store = store_of(broker)
    assert store is not None
    with anyio.fail_after(PATIENCE):
        # Nobody tells when there is one.
        while not (letters := [each async for each in store.read()]):  # noqa: ASYNC110
            await asyncio.sleep(0.2)
    [letter] = letters
    return letter
