"""The table `memory`: what a message takes that waits in a batch."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from tests.benchmarks import report
from tests.benchmarks.rounds import take_turns

if TYPE_CHECKING:
    from tests.benchmarks.options import Options

MESSAGES = 100_000
METERS = {"allocated by Python (tracemalloc)": "tracemalloc", "growth of RSS": "rss"}


def measure(options: Options) -> report.Page:
    """Measure a message with 200 bytes in it."""
    messages = options.scaled(MESSAGES)
    ours = options.environments.candidate()
    samples = take_turns(
        options.rounds,
        {
            title: partial(ours.run, "memory", meter, messages)
            for title, meter in METERS.items()
        },
        lambda sample: f"{sample['bytes']:.0f} bytes/message",
    )
    rows = [
        (title, f"{report.median([sample['bytes'] for sample in found]):.0f}")
        for title, found in samples.items()
    ]
    wire = samples[next(iter(METERS))][0]["wire"]
    text = (
        f"{messages} messages in a receiver, each with a string of 200 bytes "
        f"({wire:.0f} bytes on the wire) and an acknowledgement; medians of "
        f"{options.rounds} rounds.\n\n"
    )
    return report.Page(text + report.table(("", "bytes/message"), rows))
