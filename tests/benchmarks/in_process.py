"""The table `in-process`: batches in one process, against async-batcher."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from tests.benchmarks import report
from tests.benchmarks.rounds import take_turns

if TYPE_CHECKING:
    from tests.benchmarks.options import Options

MESSAGES = 100_000
PEER = "async-batcher 0.2.2: `gather` of `process`"
OURS = {
    "ours: `gather` of `kiq`, every result fetched": "results",
    "ours: `kiq` in a loop, then `wait_all`": "send",
}


def measure(options: Options) -> report.Page:
    """Compare batches of 100 no-ops."""
    messages = options.scaled(MESSAGES)
    ours = options.environments.candidate()
    peer = options.environments.peer("async-batcher")
    samples = take_turns(
        options.rounds,
        {
            PEER: partial(peer.run, "in_process_peer", messages),
            **{
                title: partial(ours.run, "in_process", case, messages)
                for title, case in OURS.items()
            },
        },
        lambda sample: f"{sample['cpu'] / messages * 1e6:.1f} us/item",
    )
    costs = report.per_message(samples, "cpu", messages)
    rows = [
        (title, f"{report.median(costs[title]):.1f}", report.ratio(costs, title, PEER))
        for title in samples
    ]
    text = (
        f"{messages} items, batches of 100 that do nothing, process CPU time, medians "
        f"of {options.rounds} rounds.\n\n"
    )
    heading = ("", "µs/item", "ratio to async-batcher (by round)")
    return report.Page(text + report.table(heading, rows))
