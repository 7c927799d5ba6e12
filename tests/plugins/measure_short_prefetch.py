"""Measure what `batch_idle_timeout` is worth where the broker fills no batch.

RabbitMQ hands out `qos=10` messages, the batch size is 100. Run from the checkout:
`python -m tests.plugins.measure_short_prefetch`. Needs RabbitMQ and Redis.
"""

from __future__ import annotations

import asyncio
import sys
import time
from dataclasses import dataclass

from tests.support.hub import Hub

from .lines import SHORT_RABBITMQ
from .stage import Stage

#: Task, how it is described, how many messages are sent to it.
CASES = (
    ("wait_out", "batch_timeout=1", 100),
    ("idle_50", "batch_idle_timeout=0.05", 1000),
    ("idle_20", "batch_idle_timeout=0.02", 2000),
    ("idle_10", "batch_idle_timeout=0.01", 3000),
)


@dataclass(frozen=True)
class Rate:
    """How fast the messages of a task were run."""

    settings: str
    messages: int
    seconds: float
    together: float

    @property
    def per_second(self) -> float:
        return self.messages / self.seconds


async def measure(stage: Stage, task_name: str, settings: str, count: int) -> Rate:
    """Send all, and wait for the last result; the others are there by then."""
    async with stage.client() as client:
        begun = time.perf_counter()
        handles = await client.send_all(task_name, range(count))
        results = [
            await handle.wait_result(check_interval=0.01, timeout=600)
            for handle in handles
        ]
        seconds = time.perf_counter() - begun
    together = sum(result.return_value for result in results) / count
    return Rate(settings, count, seconds, together)


def main() -> None:
    """Print a table in Markdown."""
    if reason := SHORT_RABBITMQ.unavailable():
        sys.exit(reason)
    rates = []
    with Hub() as hub, Stage(SHORT_RABBITMQ, hub).opened() as stage:
        options = ("--log-level=WARNING",)
        with stage.worker(*options, app="capacity_app"):
            rates = [asyncio.run(measure(stage, *case)) for case in CASES]
    lines = [
        "| settings | messages | mean batch | seconds | messages/s | times |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        *(
            f"| `{rate.settings}` | {rate.messages} | {rate.together:.1f} "
            f"| {rate.seconds:.1f} | {rate.per_second:.0f} "
            f"| {rate.per_second / rates[0].per_second:.1f} |"
            for rate in rates
        ),
    ]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
