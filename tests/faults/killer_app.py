"""A batch task of which one item kills the process, on the broker that is asked for."""

from __future__ import annotations

import asyncio
import os

from .lines import Settings, make_broker

settings = Settings.from_environment()
KILLER = 437
MOST_DELIVERIES = 5
PLAIN_KILLER = 7
PLAIN_DELIVERIES = 3

broker = make_broker(settings)
if settings.line == "nats-pull":
    # As users are told to: with less, messages come again without any death.
    vars(broker)["pull_consume_timeout"] = 5


@broker.task(
    f"{settings.name}:triple",
    max_deliveries=PLAIN_DELIVERIES,
    on_failure="dead_letter",
)
async def triple(number: int) -> int:
    """Calls that end take longer than the one that kills its process."""
    if number == PLAIN_KILLER:
        await asyncio.sleep(settings.call_seconds)
        os._exit(9)
    await asyncio.sleep(20 * settings.call_seconds)
    return 3 * number


@broker.task(
    f"{settings.name}:double",
    batch=True,
    batch_size=settings.batch_size,
    batch_timeout=settings.batch_timeout,
    max_deliveries=MOST_DELIVERIES,
    on_failure="dead_letter",
)
async def double(numbers: list[int]) -> list[int]:
    await asyncio.sleep(settings.call_seconds)
    if KILLER in numbers:
        os._exit(9)
    return [2 * number for number in numbers]
