"""What a worker process says of itself each second."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from taskiq.cli.health.files import HealthDirectory
from taskiq.cli.health.pulse import Pulse, Reading
from taskiq.health import Heartbeat, ListenerState

from ..support.virtual_time import run_virtual
from ..support.worker import BatchWorker, GatedWorker
from ..test_health import NOW, beat


def test_it_says_what_waits_in_batches_for_how_long_and_how_they_left() -> None:
    worker = BatchWorker(batch_size=10, batch_timeout=4)

    async def main() -> None:
        reading = Reading(worker.receiver, lambda: ListenerState.LISTENING)
        said = [reading.take(beat(), NOW)]
        listening = worker.listen()
        await worker.send(1, 2, 3)
        await asyncio.sleep(1)
        said.append(reading.take(beat(), NOW + 1))
        await asyncio.sleep(5)
        said.append(reading.take(beat(), NOW + 6))
        worker.finish.set()
        await listening

        before, waiting, after = said
        assert (before.fetched, before.last_fetch_age) == (0, None)
        assert before.oldest_age is None
        assert (waiting.fetched, waiting.last_fetch_age) == (3, 0)
        assert waiting.buffered == 3
        assert (waiting.batches_open, waiting.batches_due) == (1, 0)
        assert waiting.oldest_age == pytest.approx(1)
        assert not waiting.flushes
        assert (after.fetched, after.last_fetch_age) == (3, 5)
        assert (after.buffered, after.oldest_age) == (0, None)
        [flushes] = after.flushes
        assert (flushes.size, flushes.batches, flushes.mean_messages) == (10, 1, 3)
        assert flushes.mean_waited == pytest.approx(4)
        assert flushes.reasons == {"timeout": 1}
        assert [flush.messages for flush in flushes.last] == [3]

    run_virtual(main())


def test_messages_read_before_the_listener_failed_are_counted() -> None:
    worker = GatedWorker()

    async def main() -> None:
        reading = Reading(worker.receiver, lambda: ListenerState.LISTENING)
        fetched = []
        for names in (("a", "b"), ("c",)):
            worker.finish.clear()
            listening = worker.listen()
            worker.put(*names)
            worker.let_go(*names)
            await asyncio.sleep(1)
            fetched.append(reading.take(beat(), NOW).fetched)
            worker.finish.set()
            await listening
        assert fetched == [2, 3]

    run_virtual(main())


def test_what_runs_is_counted() -> None:
    worker = GatedWorker(max_async_tasks=4)

    async def main() -> None:
        reading = Reading(worker.receiver, lambda: ListenerState.LISTENING)
        listening = worker.listen()
        worker.put("a", "b")
        await asyncio.sleep(1)
        assert reading.take(beat(), NOW).running == 2
        worker.let_go("a", "b")
        await asyncio.sleep(1)
        assert reading.take(beat(), NOW).running == 0
        worker.finish.set()
        await listening

    run_virtual(main())


async def test_an_event_loop_that_fails_to_answer_is_still_one_that_answers(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    asked = asyncio.Event()

    def take(said: Heartbeat, now: float) -> Heartbeat:
        if pulse_began:
            asked.set()
            raise LookupError("a broken receiver")
        return said

    pulse_began = False
    directory = HealthDirectory(tmp_path)
    pulse = Pulse(directory, "app:broker", take)
    pulse.start()
    began = time.time()
    pulse_began = True
    try:
        await asyncio.wait_for(asked.wait(), 10)
        await asyncio.to_thread(_wait_for_beat, directory, began)
    finally:
        pulse.stop()
    assert "a broken receiver" in caplog.text
    assert not directory.read().heartbeats


def _wait_for_beat(directory: HealthDirectory, after: float) -> None:
    end = time.monotonic() + 10
    while not any(each.answered_at > after for each in directory.read().heartbeats):
        assert time.monotonic() < end, directory.read()
        time.sleep(0.05)
