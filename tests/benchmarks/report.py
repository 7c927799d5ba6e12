"""From measured samples to a Markdown table."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Samples = dict[str, float]


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
    ours: Sequence[Samples],
    theirs: Sequence[Samples],
) -> list[Comparison]:
    """Wall milliseconds and, where the platform tells, peak MiB of `import taskiq`."""
    scales = {"wall": ("wall time, ms", 1e3), "rss": ("peak RSS, MiB", 2**-20)}
    return [
        Comparison(
            title,
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
    """The table of `import taskiq`."""
    return _table(
        "| `import taskiq` | 0.13.0 | ours | ratio ours/theirs | ratio by round |",
        [_cells(row) for row in rows],
    )


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
