"""Tasks that run in other processes, which find them here by name."""

from __future__ import annotations

import os

from tests.support.brokers import QueueBroker

broker = QueueBroker()


@broker.task
def add_in_process(a: int, b: int = 0) -> tuple[int, int]:
    return a + b, os.getpid()


@broker.task
def fail_in_process() -> None:
    raise LookupError("nothing here")
