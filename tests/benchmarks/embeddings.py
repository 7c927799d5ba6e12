"""The table `embeddings`: a real model, one text in a pass against many."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from tests.benchmarks import report
from tests.benchmarks.rounds import take_turns

if TYPE_CHECKING:
    from tests.benchmarks.options import Options

TEXTS = 600
SINGLE = "one by one"
#: Those of docs/examples/batching/sentence_embeddings.py.
WAYS = (
    SINGLE,
    "one by one, 4 at once",
    "batches of 4",
    "batches of 16",
    "batches of 64",
)


def measure(options: Options) -> report.Page:
    """Compare plain tasks with batches of several sizes."""
    texts = options.scaled(TEXTS)
    ours = options.environments.candidate_with_model()
    samples = take_turns(
        options.rounds,
        {way: partial(ours.run, "embeddings", way, texts) for way in WAYS},
        lambda sample: f"{texts / sample['wall']:.1f} texts/s",
    )
    rates = report.rates(samples, texts)
    costs = report.per_message(samples, "cpu", texts)
    lines = [
        (
            way,
            f"{report.median(rates[way]):.1f}",
            report.ratio(rates, way, SINGLE),
            f"{report.median(costs[way]) / 1e3:.1f}",
            report.ratio(costs, way, SINGLE),
        )
        for way in WAYS
    ]
    heading = ("", "texts/s", "ratio (by round)", "CPU, ms/text", "ratio (by round)")
    text = (
        f"{texts} texts of 3 to 30 words, all-MiniLM-L6-v2 on the CPU, a message for "
        f"each text and its vector as the result; medians of {options.rounds} rounds."
        "\n\n"
    )
    shown = [float(line[3]) for line in lines]
    plot = report.Plot(
        "embeddings",
        "bars",
        "CPU time of one text",
        "CPU, ms/text",
        "",
        WAYS,
        {"CPU, ms/text": shown},
    )
    return report.Page(text + report.table(heading, lines), (plot,))
