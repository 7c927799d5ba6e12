"""The table `peers`: messages drained from Redis, with their results stored there."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from tests.benchmarks import report
from tests.benchmarks.own_redis import own_redis
from tests.benchmarks.rounds import take_turns

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.benchmarks.options import Options

MESSAGES = 10_000
#: By how much fewer messages those get that make a round trip or more for each.
FEWER = 5
BATCHES = "ours with the adapter: batches of 100"
PLAIN = "ours with the adapter: one call a message"
BARE = "bare client, the same in bulk"
#: By title, on this checkout: where the broker and the results are from, and how.
CASES = {
    BATCHES: ("adapter", "batch"),
    BARE: ("plugin", "bare"),
    PLAIN: ("adapter", "plain"),
    "ours with the plugin: batches of 100": ("plugin", "batch"),
    "ours with the plugin: one call a message": ("plugin", "plain"),
}
RELEASED = "taskiq 0.13.0: one call a message"
PEERS = {"SAQ 0.26.4": "saq", "arq 0.28.0": "arq", "streaq 7.2.0": "streaq"}


def measure(options: Options) -> report.Page:
    """Drain a queue with each of them."""
    messages = options.scaled(MESSAGES)
    with own_redis() as url:
        samples = take_turns(
            options.rounds,
            _cases(options, url, messages),
            lambda sample: (
                f"{sample['messages'] / sample['wall']:.0f} messages/s, "
                f"CPU {sample['cpu'] / sample['messages'] * 1e6:.0f} us"
            ),
        )
    rates, costs = report.rates(samples), report.per_message(samples, "cpu")
    rows = [
        (
            case,
            f"{report.median(rates[case]):.0f}",
            f"{report.median(costs[case]):.0f}",
            f"{_commands(found):.2f}",
            report.ratio(rates, BATCHES, case),
            report.ratio(rates, PLAIN, case),
        )
        for case, found in samples.items()
    ]
    heading = (
        "Redis",
        "messages/s",
        "CPU µs/message",
        "Redis commands/message",
        "batches with the adapter to it (by round)",
        "one call a message with the adapter to it (by round)",
    )
    text = (
        f"{messages} messages ({options.scaled(MESSAGES / FEWER)} where there is no "
        "adapter), one worker process with 100 of them at once, uvloop, "
        "hiredis (streaq: its own client), a Redis of its own; every result is "
        "stored, every message acknowledged. From the first call to the last, medians "
        f"of {options.rounds} rounds; ratios are those of messages/s. Commands are "
        "those of `INFO commandstats`, scripts and what they run included.\n\n"
    )
    return report.Page(
        text + report.table(heading, rows),
        (report.rates_plot("peers", "Drained with results", "messages/s", rates),),
    )


def _commands(found: list[report.Samples]) -> float:
    return report.median([each["commands"] / each["sent"] for each in found])


def _cases(
    options: Options,
    url: str,
    messages: int,
) -> dict[str, Callable[[], report.Samples]]:
    ours = options.environments.candidate_with_plugins()
    theirs = options.environments.baseline_with_plugins()
    fewer = options.scaled(MESSAGES / FEWER)
    cases: dict[str, Callable[[], report.Samples]] = {
        title: partial(
            ours.run,
            "drain_stored",
            url,
            *case,
            fewer if title.startswith("ours with the plugin") else messages,
        )
        for title, case in CASES.items()
    }
    cases[RELEASED] = partial(theirs.run, "drain_stored", url, "plugin", "plain", fewer)
    for title, name in PEERS.items():
        peer = options.environments.peer(name)
        cases[title] = partial(peer.run, f"drain_{name}", url, fewer)
    return cases
