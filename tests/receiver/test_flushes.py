"""What is remembered of batches that have left."""

from __future__ import annotations

import time

import pytest

from taskiq.batch import BatchConfig, BatchInfo, FlushReason
from taskiq.receiver.flushes import FlushHistory
from tests.support.worker import message_of

CONFIG = BatchConfig(size=10, timeout=0.5)


def info(reason: FlushReason, count: int, waited: float, task: str = "a") -> BatchInfo:
    messages = [message_of(task) for _ in range(count)]
    return BatchInfo("id", task, messages, reason, waited)


def test_the_last_hundred_batches_of_a_task_are_summed_up() -> None:
    begin = time.time()
    history = FlushHistory()
    for _ in range(50):
        history.note(info(FlushReason.SHUTDOWN, 1, 100.0), CONFIG)
    for _ in range(75):
        history.note(info(FlushReason.SIZE, 10, 0.2), CONFIG)
    for _ in range(25):
        history.note(info(FlushReason.TIMEOUT, 2, 0.6), CONFIG)

    [told] = history.tasks()
    assert (told.size, told.timeout, told.batches) == (10, 0.5, 100)
    assert told.reasons == {"size": 75, "timeout": 25}
    assert told.mean_messages == 8
    assert told.mean_waited == pytest.approx(0.3)
    assert [flush.reason for flush in told.last] == ["timeout"] * 5
    moments = [flush.at for flush in told.last]
    assert begin <= moments[0] <= moments[-1] <= time.time()


def test_tasks_are_told_apart_and_nothing_is_said_of_one_without_batches() -> None:
    history = FlushHistory()
    assert history.tasks() == []
    for task in "ba":
        history.note(info(FlushReason.IDLE, 1, 0.0, task), CONFIG)
    assert [told.task for told in history.tasks()] == ["a", "b"]
