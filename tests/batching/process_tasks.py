"""A batch task that runs in another process, which finds it here by name."""

from __future__ import annotations

import os

from tests.support.brokers import QueueBroker

broker = QueueBroker()


@broker.task(batch=True)
def double_in_process(numbers: list[int], factor: int = 2) -> list[tuple[int, int]]:
    return [(factor * number, os.getpid()) for number in numbers]


@broker.task(batch=True)
def fail_in_process(numbers: list[int]) -> None:
    raise LookupError(sum(numbers))
