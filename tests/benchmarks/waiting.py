"""The table `waiting`: results that arrive, over the Redis adapter."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from tests.benchmarks import report
from tests.benchmarks.own_redis import own_redis
from tests.benchmarks.rounds import take_turns

if TYPE_CHECKING:
    from tests.benchmarks.options import Options

WAITERS = 1000


def measure(options: Options) -> report.Page:
    """Let many wait."""
    waiters = options.scaled(WAITERS)
    ours = options.environments.candidate_with_plugins()
    with own_redis() as url:
        case = {"waiting": partial(ours.run, "waiting", url, waiters)}
        [samples] = take_turns(
            options.rounds, case, lambda sample: f"p99 {sample['p99'] * 1e3:.2f} ms"
        ).values()

    def middle(name: str) -> float:
        return report.median([sample[name] for sample in samples])

    latencies = [
        (f"from `set_result` to who waits: {name}, ms", f"{middle(name) * 1e3:.2f}")
        for name in ("p50", "p99", "max")
    ]
    rows = [
        *latencies,
        ("connections beside those of the pool", f"{middle('connections'):.0f}"),
        ("bytes for each who waits (tracemalloc)", f"{middle('bytes'):.0f}"),
        ("those of a bare asyncio task and its future", f"{middle('bare'):.0f}"),
        ("round trips to gather 1000 that are there", f"{middle('trips_there'):.0f}"),
        ("round trips to gather 1000 that come later", f"{middle('trips_late'):.0f}"),
    ]
    text = (
        f"{waiters} waiters in one process, which stores their results one by one; a "
        f"Redis of its own, uvloop, hiredis, medians of {options.rounds} rounds.\n\n"
    )
    return report.Page(text + report.table(("Redis adapter", ""), rows))
