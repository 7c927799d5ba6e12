"""The table `growth`: what a message costs as one thing grows."""

from __future__ import annotations

import uuid
from functools import partial
from typing import TYPE_CHECKING

from tests.benchmarks import report
from tests.benchmarks.rounds import take_turns

if TYPE_CHECKING:
    from tests.benchmarks.environments import Interpreter
    from tests.benchmarks.options import Options

#: What grows, and for each of its values the arguments of the child: messages, size
#: of a batch, keys (0: none).
GROWING = {
    "messages": [(n, 100, 0) for n in (10**3, 10**4, 10**5, 10**6)],
    "batch size": [(10**5, n, 0) for n in (1, 10, 10**2, 10**3, 10**4)],
    "keys": [(10**5, 100, n) for n in (1, 10, 10**2, 10**3, 10**4, 10**5)]
    + [(10**6, 100, 10**6)],
}
_COLUMN = {"messages": 0, "batch size": 1, "keys": 2}
SHARED_MESSAGES = 40_000
TRANSPORT = "redis-list"


def measure(options: Options) -> report.Page:
    """Let one thing after the other grow."""
    parts = [
        "A broker in memory that always has a message, a batch task that does nothing, "
        f"every message acknowledged; process CPU time, medians of {options.rounds} "
        "rounds. Where nothing else is said: 100000 messages, batches of 100, no keys. "
        "With keys every message may be buffered; RSS is what the process grew by "
        "while the messages came in.",
    ]
    plots = []
    for title in GROWING:
        text, plot = _measure_growing(title, options)
        parts.append(text)
        plots.append(plot)
    parts.append(_measure_processes(options))
    return report.Page("\n\n".join(parts), tuple(plots))


def _measure_growing(title: str, options: Options) -> tuple[str, report.Plot]:
    ours = options.environments.candidate()
    # A small scale makes some of them the same.
    cases = list(
        dict.fromkeys(
            (n if n <= 1000 else options.scaled(n), size, min(keys, options.scaled(n)))
            for n, size, keys in GROWING[title]
        ),
    )
    labels = [case[_COLUMN[title]] for case in cases]
    samples = take_turns(
        options.rounds,
        {
            f"{title} {label}": partial(_with_count, ours, case)
            for label, case in zip(labels, cases, strict=True)
        },
        lambda sample: f"{sample['cpu'] / sample['messages'] * 1e6:.1f} us/message",
    )
    costs = [
        report.median(each) for each in report.per_message(samples, "cpu").values()
    ]
    rows = [
        (
            str(label),
            f"{cost:.1f}",
            f"{found[0]['calls']:.0f}",
            f"{report.median([each['grown'] for each in found]) / 2**20:.0f}",
        )
        for label, cost, found in zip(labels, costs, samples.values(), strict=True)
    ]
    heading = (title, "µs/message", "calls", "RSS, MiB")
    plot = report.Plot(
        name=f"growth-{title.replace(' ', '-')}",
        kind="lines",
        title=f"CPU time of one message by {title}",
        x_label=title,
        y_label="µs",
        x=labels,
        series={"ours": costs},
    )
    return report.table(heading, rows), plot


def _with_count(ours: Interpreter, case: tuple[int, int, int]) -> report.Samples:
    measured: report.Samples = ours.run("growth", *case)
    return {**measured, "messages": case[0]}


def _measure_processes(options: Options) -> str:
    ours = options.environments.candidate_with_plugins()
    messages = options.scaled(SHARED_MESSAGES)
    samples = take_turns(
        options.rounds,
        {str(number): partial(_share, ours, number, messages) for number in (1, 2)},
        lambda sample: f"{sample['messages'] / sample['wall']:.0f} messages/s",
    )
    rates, costs = report.rates(samples), report.per_message(samples, "cpu")
    rows = [
        (
            number,
            f"{report.median(rates[number]):.0f}",
            f"{report.median(costs[number]):.0f}",
            report.ratio(rates, number, "1"),
        )
        for number in samples
    ]
    heading = ("processes", "messages/s", "CPU µs/message", "to one process (by round)")
    return f"{messages} messages of a Redis list:\n\n{report.table(heading, rows)}"


def _share(ours: Interpreter, processes: int, messages: int) -> report.Samples:
    """Drain a queue by several processes, from the first call of any to the last."""
    queue = f"benchmark-{uuid.uuid4().hex}"
    try:
        ours.run("drain", TRANSPORT, "fill", messages, queue)
        workers = [
            ours.start("drain", TRANSPORT, "share", messages, queue)
            for _ in range(processes)
        ]
        found = [report.loads(worker.result()) for worker in workers]
    finally:
        ours.run("drain", TRANSPORT, "clean", 0, queue)
    began = min(each["began"] for each in found)
    ended = max(each["ended"] for each in found)
    return {
        "wall": ended - began,
        "cpu": sum(each["cpu"] for each in found),
        "messages": sum(each["messages"] for each in found),
    }
