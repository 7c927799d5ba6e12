"""The table `servers`: messages drained from real servers by one worker process."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from tests.benchmarks import report
from tests.benchmarks.rounds import take_turns

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.benchmarks.options import Options

MESSAGES = 20_000
TITLES = {
    "redis-list": "Redis list",
    "redis-stream": "Redis stream",
    "rabbitmq": "RabbitMQ",
}
OURS = "ours: batches of 100"
BARE = "bare client, each acknowledged in turn"
TOGETHER = "bare client, acknowledged 16 at once"
RELEASED = "taskiq 0.13.0: one call a message"
CELERY = "celery-batches 0.11: batches of 100"
#: By title, on this checkout.
CASES = {
    OURS: "batch",
    BARE: "bare",
    TOGETHER: "bare-together",
    "the plugin's broker, no receiver": "plugin",
    "ours: one call a message": "plain",
}


def measure(options: Options) -> report.Page:
    """Drain each transport in every way."""
    messages = options.scaled(MESSAGES)
    parts = [
        f"{messages} messages, worker with default settings in one process "
        "(`run_receiver_task`), no result backend; from the first call to the last, "
        f"medians of {options.rounds} rounds; the ratio to ours is the median of the "
        "rounds' ratios of messages/s.",
    ]
    plots = []
    for transport, title in TITLES.items():
        samples = take_turns(
            options.rounds,
            _cases(options, transport, messages),
            lambda sample: f"{sample['messages'] / sample['wall']:.0f} messages/s",
        )
        rates = report.rates(samples)
        costs = report.per_message(samples, "cpu")
        rows = [
            (
                case,
                f"{report.median(rates[case]):.0f}",
                f"{report.median(costs[case]):.0f}",
                report.ratio(rates, OURS, case),
            )
            for case in samples
        ]
        heading = (title, "messages/s", "CPU µs/message", "ours to it (by round)")
        parts.append(report.table(heading, rows))
        plots.append(
            report.rates_plot(f"servers-{transport}", title, "messages/s", rates),
        )
    return report.Page("\n\n".join(parts), tuple(plots))


def _cases(
    options: Options,
    transport: str,
    messages: int,
) -> dict[str, Callable[[], report.Samples]]:
    ours = options.environments.candidate_with_plugins()
    theirs = options.environments.baseline_with_plugins()
    celery = options.environments.peer("celery-batches")
    cases: dict[str, Callable[[], report.Samples]] = {
        title: partial(ours.run, "drain", transport, case, messages)
        for title, case in CASES.items()
        # A list knows no acknowledgement, so there is nothing to be done together.
        if (transport, title) != ("redis-list", TOGETHER)
    }
    cases[RELEASED] = partial(theirs.run, "drain", transport, "plain", messages)
    # Celery has no streams: what it does on a Redis list is compared with both.
    cases[CELERY] = partial(celery.run, "drain_celery", transport, "solo", messages)
    return cases
