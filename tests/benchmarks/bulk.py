"""The table `bulk`: sending many, and a PostgreSQL queue in batches."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

from tests.benchmarks import report
from tests.benchmarks.rounds import take_turns

if TYPE_CHECKING:
    from tests.benchmarks.options import Options

POSTGRES = os.environ.get(
    "TASKIQ_BENCHMARK_POSTGRES",
    "postgresql://postgres@127.0.0.1:5432/test",
)
ADAPTER, PLUGIN = "ours with the adapter", "ours with the plugin"
RELEASED = "taskiq 0.13.0"
#: The transports, and their titles.
TRANSPORTS = {
    "redis": "Redis stream",
    "rabbitmq": "RabbitMQ",
    "nats": "JetStream",
    "postgres": "PostgreSQL",
}
TIMES = {"many": 10, "gather": 3, "hundred": 20, "lone": 500}
SINGLES = {"hundred": "100 concurrent `kiq`", "lone": "a lone `kiq`"}
#: Messages with the adapter; with the plugin, which takes longer, a tenth.
DRAINED = 5_000


def measure(options: Options) -> report.Page:
    """Send with each transport, send one by one on Redis, drain PostgreSQL."""
    text = (
        f"Medians of {options.rounds} rounds, uvloop, hiredis; a round is the median "
        "of several repetitions in one process, in brackets the fastest of all."
    )
    parts = [text, _many(options), _singles(options), _postgres(options)]
    return report.Page("\n\n".join(parts))


def _many(options: Options) -> str:
    rows = []
    for transport, title in TRANSPORTS.items():
        samples = take_turns(
            options.rounds,
            {
                "many": partial(_send, options, True, transport, "adapter", "many"),
                "gather": partial(_send, options, False, transport, "plugin", "gather"),
            },
            lambda sample: f"{transport}: {sample['median'] * 1e3:.0f} ms",  # noqa: B023 - called at once
        )
        ratios = {case: _column(found, "median") for case, found in samples.items()}
        rows.append(
            (
                title,
                _milliseconds(samples["many"]),
                _milliseconds(samples["gather"]),
                report.ratio(ratios, "gather", "many"),
            ),
        )
    heading = (
        "1000 messages",
        "`kiq_many` with the adapter, ms",
        "0.13.0: `gather` of `kiq`, ms",
        "times as fast (by round)",
    )
    return report.table(heading, rows)


def _singles(options: Options) -> str:
    rows = []
    for case, title in SINGLES.items():
        samples = take_turns(
            options.rounds,
            {
                ADAPTER: partial(_send, options, True, "redis", "adapter", case),
                PLUGIN: partial(_send, options, True, "redis", "plugin", case),
                RELEASED: partial(_send, options, False, "redis", "plugin", case),
            },
            lambda sample: f"{sample['median'] * 1e3:.2f} ms",
        )
        ratios = {each: _column(found, "median") for each, found in samples.items()}
        rows.append(
            (
                title,
                *(_milliseconds(samples[each]) for each in samples),
                report.ratio(ratios, PLUGIN, ADAPTER),
            ),
        )
    heading = (
        "Redis stream",
        f"{ADAPTER}, ms",
        f"{PLUGIN}, ms",
        f"{RELEASED}, ms",
        "adapter to plugin: times as fast (by round)",
    )
    return report.table(heading, rows)


def _postgres(options: Options) -> str:
    ours = options.environments.candidate_with_plugins()
    sizes = {ADAPTER: options.scaled(DRAINED), PLUGIN: options.scaled(DRAINED / 10)}
    kinds = {ADAPTER: "pg-adapter", PLUGIN: "pg-plugin"}
    samples = take_turns(
        options.rounds,
        {
            title: partial(
                ours.run, "drain_stored", POSTGRES, kinds[title], "batch", messages
            )
            for title, messages in sizes.items()
        },
        lambda sample: f"{sample['messages'] / sample['wall']:.0f} messages/s",
    )
    rates, costs = report.rates(samples), report.per_message(samples, "cpu")
    rows = [
        (
            title,
            f"{report.median(rates[title]):.0f}",
            f"{report.median(costs[title]):.0f}",
            report.ratio(rates, ADAPTER, title),
        )
        for title in samples
    ]
    heading = (
        "PostgreSQL broker and results, batches of 100",
        "messages/s",
        "CPU µs/message",
        "adapter to it (by round)",
    )
    return report.table(heading, rows)


def _send(
    options: Options,
    is_ours: bool,
    transport: str,
    kind: str,
    case: str,
) -> report.Samples:
    environments = options.environments
    interpreter = (
        environments.candidate_with_plugins()
        if is_ours
        else environments.baseline_with_plugins()
    )
    times = max(int(TIMES[case] * options.scale), 2)
    measured: report.Samples = interpreter.run("send", transport, kind, case, times)
    return measured


def _column(samples: list[report.Samples], name: str) -> list[float]:
    return [sample[name] for sample in samples]


def _milliseconds(samples: list[report.Samples]) -> str:
    median = report.median(_column(samples, "median")) * 1e3
    return f"{median:.2f} ({min(_column(samples, 'least')) * 1e3:.2f})"
