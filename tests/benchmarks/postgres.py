"""The table `postgres`: bulk inserts of rows that were sent one by one."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from tests.benchmarks import report
from tests.benchmarks.rounds import take_turns

if TYPE_CHECKING:
    from tests.benchmarks.options import Options

ROWS = 50_000
SINGLE = "one insert per task, 10 connections"
RELEASED = f"taskiq 0.13.0: {SINGLE}"
#: By title: whether it runs on this checkout, and the case of the child.
CASES = {
    "bare loop, COPY": (True, "bare-copy"),
    "ours: batches of 1000, COPY": (True, "batch-copy"),
    "bare loop, executemany": (True, "bare-executemany"),
    "ours: batches of 1000, executemany": (True, "batch-executemany"),
    f"ours: {SINGLE}": (True, "single"),
    RELEASED: (False, "single"),
}


def measure(options: Options) -> report.Page:
    """Compare batches with single inserts, and with loops that have no taskiq."""
    rows = options.scaled(ROWS)
    ours = options.environments.candidate_with_plugins()
    theirs = options.environments.baseline_with_plugins()
    samples = take_turns(
        options.rounds,
        {
            title: partial((ours if is_ours else theirs).run, "postgres", case, rows)
            for title, (is_ours, case) in CASES.items()
        },
        lambda sample: f"{rows / sample['wall']:.0f} rows/s",
    )
    rates = report.rates(samples, rows)
    lines = [
        (
            title,
            f"{report.median(found):.0f}",
            report.ratio(rates, title, _bare(title)),
            report.ratio(rates, title, RELEASED),
        )
        for title, found in rates.items()
    ]
    heading = ("", "rows/s", "to the bare loop (by round)", "to 0.13.0 (by round)")
    text = (
        f"{rows} rows of two columns, sent with one `kiq` each to a queue in memory "
        f"before the clock starts; wall time until all are committed and acknowledged, "
        f"medians of {options.rounds} rounds.\n\n"
    )
    return report.Page(
        text + report.table(heading, lines),
        (report.rates_plot("postgres", "Rows inserted", "rows/s", rates),),
    )


def _bare(title: str) -> str:
    way = "executemany" if "executemany" in title else "COPY"
    return f"bare loop, {way}"
