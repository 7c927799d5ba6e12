"""Measuring several things in alternation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.support.environments import say

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tests.benchmarks.report import Samples


def take_turns(
    rounds: int,
    cases: Mapping[str, Callable[[], Samples]],
    describe: Callable[[Samples], str],
) -> dict[str, list[Samples]]:
    """Measure each case once a round, so that a slow minute of the machine hits all.

    :param cases: what measures, by the label it has in the progress line.
    :param describe: sums a measurement up for the progress line.
    :returns: the samples of each case, one a round.
    """
    samples: dict[str, list[Samples]] = {label: [] for label in cases}
    for number in range(1, rounds + 1):
        for label, measure in cases.items():
            sample = measure()
            samples[label].append(sample)
            say(f"[{number}/{rounds}] {label}: {describe(sample)}")
    return samples
