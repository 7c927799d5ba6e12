"""From measured samples to Markdown tables and plots."""

from __future__ import annotations

import json
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["median"]

Samples = dict[str, float]


@dataclass(frozen=True, slots=True)
class Plot:
    """What to draw.

    :ivar name: of the file, without its extension.
    :ivar x: the places of the values: names of bars, or numbers of a line.
    :ivar series: a value for each place, by the name of the series.
    """

    name: str
    kind: Literal["bars", "lines"]
    title: str
    x_label: str
    y_label: str
    x: Sequence[str | int]
    series: Mapping[str, Sequence[float]]


@dataclass(frozen=True, slots=True)
class Page:
    """What a table comes down to: Markdown, and the plots that are shown below it."""

    text: str
    plots: Sequence[Plot] = ()


@dataclass(frozen=True, slots=True)
class Comparison:
    """All rounds of one metric of one workload, in the unit of the table."""

    name: str
    ours: Sequence[float]
    theirs: Sequence[float]

    @property
    def ratios(self) -> list[float]:
        """Ours by theirs in each round; how far they lie apart shows the noise."""
        pairs = zip(self.ours, self.theirs, strict=True)
        return [ours / theirs for ours, theirs in pairs]

    @property
    def ratio(self) -> float:
        """Median of the ratios; below 1 this package is cheaper.

        The two runs of a round share the machine's momentary speed. The ratio of the
        medians would compare a slow minute of the one with a fast one of the other.
        """
        return median(self.ratios)


def message_rows(
    name: str,
    messages: int,
    ours: Sequence[Samples],
    theirs: Sequence[Samples],
) -> tuple[Comparison, Comparison]:
    """CPU and wall microseconds for each message."""

    def per_message(samples: Sequence[Samples], clock: str) -> list[float]:
        return [sample[clock] / messages * 1e6 for sample in samples]

    cpu = Comparison(name, per_message(ours, "cpu"), per_message(theirs, "cpu"))
    wall = Comparison(name, per_message(ours, "wall"), per_message(theirs, "wall"))
    return cpu, wall


def import_rows(
    statement: str,
    ours: Sequence[Samples],
    theirs: Sequence[Samples],
) -> list[Comparison]:
    """Wall milliseconds and, where the platform tells, peak MiB of an import."""
    scales = {"wall": ("wall time, ms", 1e3), "rss": ("peak RSS, MiB", 2**-20)}
    return [
        Comparison(
            f"{statement}: {title}",
            [sample[metric] * scale for sample in ours],
            [sample[metric] * scale for sample in theirs],
        )
        for metric, (title, scale) in scales.items()
        if metric in ours[0]
    ]


def messages_table(rows: Iterable[tuple[Comparison, Comparison]]) -> str:
    """The table of the workloads; the ratio is the one of CPU time."""
    return _table(
        "| workload | 0.13.0 µs/message | ours µs/message | ratio ours/theirs "
        "| ratio by round | wall ratio |",
        [f"{_cells(cpu)} {wall.ratio:.2f} |" for cpu, wall in rows],
    )


def import_table(rows: Iterable[Comparison]) -> str:
    """The table of the imports."""
    return _table(
        "| import | 0.13.0 | ours | ratio ours/theirs | ratio by round |",
        [_cells(row) for row in rows],
    )


def loads(text: str) -> Samples:
    """What a child has printed."""
    measured: Samples = json.loads(text)
    return measured


def per_message(
    samples: Mapping[str, Sequence[Samples]],
    clock: str,
    messages: int | None = None,
) -> dict[str, list[float]]:
    """Microseconds for each message, by case and round.

    :param messages: how many there were, where the samples do not say.
    """
    return {
        case: [each[clock] / (messages or each["messages"]) * 1e6 for each in found]
        for case, found in samples.items()
    }


def rates(
    samples: Mapping[str, Sequence[Samples]],
    messages: int | None = None,
) -> dict[str, list[float]]:
    """Messages for each second of wall time, by case and round."""
    costs = per_message(samples, "wall", messages)
    return {case: [1e6 / cost for cost in found] for case, found in costs.items()}


def ratio(values: Mapping[str, Sequence[float]], one: str, other: str) -> str:
    """How `one` compares with `other`: the median of the rounds' ratios, the range."""
    if one == other:
        return "1"
    compared = Comparison("", values[one], values[other])
    low, high = min(compared.ratios), max(compared.ratios)
    return f"{compared.ratio:.2f} ({low:.2f}-{high:.2f})"


def rates_plot(
    name: str,
    title: str,
    unit: str,
    values: Mapping[str, Sequence[float]],
) -> Plot:
    """A bar for the median of each case."""
    medians = [median(found) for found in values.values()]
    return Plot(name, "bars", title, unit, "", list(values), {unit: medians})


def table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; all columns but the first are numbers."""
    return _table(f"| {' | '.join(heading)} |", [f"| {' | '.join(r)} |" for r in rows])


def _table(heading: str, lines: list[str]) -> str:
    columns = heading.count("|") - 1
    ruler = "| --- |" + " ---: |" * (columns - 1)
    return "\n".join((heading, ruler, *lines))


def _cells(row: Comparison) -> str:
    low, high = min(row.ratios), max(row.ratios)
    return (
        f"| {row.name} | {median(row.theirs):.1f} | {median(row.ours):.1f} "
        f"| {row.ratio:.2f} | {low:.2f}-{high:.2f} |"
    )
