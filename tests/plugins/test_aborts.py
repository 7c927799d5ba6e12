"""Aborting over Redis and PostgreSQL: by marks in the result backend's adapter."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from taskiq.exceptions import TaskAbortedError
from taskiq.receiver import Receiver

if TYPE_CHECKING:
    from taskiq import AsyncBroker


async def test_what_is_queued_never_runs_and_what_runs_is_told(
    brokers: list[AsyncBroker],
) -> None:
    client, worker = brokers
    runs: list[int] = []
    started, cancelled = asyncio.Event(), asyncio.Event()

    async def note(number: int) -> None:
        runs.append(number)

    async def wait() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    for each in brokers:
        each.register_task(note, "note")
        each.register_task(wait, "wait")
    notes: Any = client.find_task("note")
    handles = await notes.kiq_many(range(1001))
    assert all(await asyncio.gather(*(each.abort() for each in handles[:-1])))
    finish = asyncio.Event()
    receiver = Receiver(worker, max_async_tasks=10, run_startup=False)
    listening = asyncio.create_task(receiver.listen(finish))
    results = [await each.wait_result(timeout=30) for each in handles]
    assert all(isinstance(each.error, TaskAbortedError) for each in results[:-1])
    assert results[-1].error is None
    assert runs == [1000]

    waits: Any = client.find_task("wait")
    handle = await waits.kiq()
    await started.wait()
    assert await handle.abort()
    # Nobody looks for marks of what runs: it has to be told.
    result = await handle.wait_result(timeout=30)
    assert isinstance(result.error, TaskAbortedError)
    assert cancelled.is_set()
    assert not await handle.abort()
    finish.set()
    await listening
