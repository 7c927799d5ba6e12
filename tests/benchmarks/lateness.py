"""The table `lateness`: how late a `timeout` flush is on an idle loop."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from tests.benchmarks import report
from tests.benchmarks.rounds import take_turns

if TYPE_CHECKING:
    from tests.benchmarks.environments import Interpreter
    from tests.benchmarks.options import Options

SAMPLES = 400
CASES = {
    "a batch of one message, `batch_timeout=0.02`": "batch",
    "bare `loop.call_later(0.02)`": "bare",
}


def measure(options: Options) -> report.Page:
    """Measure flushes, and what the machine is late by itself."""
    samples = options.scaled(SAMPLES)
    ours = options.environments.candidate()
    measured = take_turns(
        options.rounds,
        {title: partial(_late, ours, case, samples) for title, case in CASES.items()},
        lambda sample: f"p99 {sample['p99']:.2f} ms",
    )
    names = ("p50", "p99", "max")
    rows = [
        (
            title,
            *(f"{report.median([each[name] for each in found]):.2f}" for name in names),
        )
        for title, found in measured.items()
    ]
    text = (
        f"{samples} flushes a round, each with the loop idle before it; medians of "
        f"{options.rounds} rounds, milliseconds.\n\n"
    )
    return report.Page(text + report.table(("", *names), rows))


def _late(ours: Interpreter, case: str, samples: int) -> report.Samples:
    measured = ours.run("lateness", case, samples)
    late = sorted(seconds * 1e3 for seconds in measured["late"])
    return {
        "p50": late[len(late) // 2],
        "p99": late[len(late) * 99 // 100],
        "max": late[-1],
    }
