"""The table `pacing`: batches that would choose their size from a latency target.

Nothing is measured but the last row: it is a simulation, with the rules of
:mod:`tests.support.batch_rules` and the judgement of
:mod:`tests.support.batch_simulation`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from tests.benchmarks import report
from tests.support.batch_rules import ByMeanWait, Paced, Sketch
from tests.support.batch_simulation import (
    Cell,
    Pair,
    Rule,
    best,
    compare,
    grid,
    lone_messages,
    optimum,
    simulate,
    trace_ratio,
    traces,
)
from tests.support.environments import say

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.benchmarks.options import Options

#: Seconds from a message's arrival to the end of its call.
TARGETS = (0.02, 0.1, 0.5)
#: The rule that is to be judged; the others are what it is compared with.
OURS = "waits for the target"
RULES: dict[str, Callable[[float], Rule]] = {
    OURS: Paced,
    "as proposed": Sketch,
    "mean wait": ByMeanWait,
}
#: Calls at once.
SLOTS = (1, 4)

_CELL_HEADING = (
    "trace, target",
    "best pair: size, ms",
    "calls",
    "p99, ms",
    "fewest",
    *(f"{rule}: ratio, p99" for rule in RULES),
)
_ONE_PAIR_HEADING = ("target, calls at once", "pair: size, ms", f"{OURS}: ratio")


@dataclass(frozen=True, slots=True)
class Judged:
    """What came of one seed and number of calls at once.

    :ivar cells: of each rule, by trace; one for each target.
    :ivar pairs: all fixed pairs, by trace and target.
    """

    cells: dict[str, dict[str, list[Cell]]]
    pairs: dict[tuple[str, float], list[Pair]]


def measure(options: Options) -> report.Page:
    """Judge the rules, on other traces in each round."""
    judged = {
        (slots, number): judge(options.scale, slots, str(number or ""))
        for slots in SLOTS
        for number in range(options.rounds)
    }
    first = judged[SLOTS[0], 0]
    milliseconds = [f"{target * 1e3:.0f} ms" for target in TARGETS]
    parts = [
        "Simulated: calls of 5 ms and 0.05 ms for each item, ± 10 %, at most 1000 "
        "items. One call at a time, the traces of the first of "
        f"{options.rounds} seeds; ratios are calls to those of the best fixed pair, "
        "with * 99th percentiles where no pair holds the target.",
        report.table(_CELL_HEADING, list(_cell_rows(first, options.scale))),
        "All targets of a trace: geometric means of the ratios, of each seed.",
        report.table(
            ("trace, calls at once", *RULES),
            [row for slots in SLOTS for row in _trace_rows(judged, slots)],
        ),
        "One pair for all traces on which any pair holds the target.",
        report.table(_ONE_PAIR_HEADING, list(_one_pair_rows(judged))),
        report.table((OURS, *milliseconds), list(_claims(first.cells[OURS]))),
        _cost_of_a_message(),
    ]
    return report.Page("\n\n".join(parts))


def judge(scale: float, slots: int, seed: str) -> Judged:
    """Run every rule on every trace with every target."""
    judged = Judged({rule: {} for rule in RULES}, {})
    for trace in traces(scale, seed):
        say(f"{trace.name}, calls at once: {slots}, seed: {seed or 0}")
        for target in TARGETS:
            pairs = judged.pairs[trace.name, target] = grid(trace, target, slots)
            for name, rule in RULES.items():
                run = simulate(trace, rule(target), slots)
                cells = judged.cells[name].setdefault(trace.name, [])
                cells.append(compare(run, pairs, target))
    return judged


def _cell_rows(judged: Judged, scale: float) -> Iterator[tuple[str, ...]]:
    for trace in traces(scale):
        for number, target in enumerate(TARGETS):
            cells = [of_rule[trace.name][number] for of_rule in judged.cells.values()]
            pair = best(judged.pairs[trace.name, target], target)
            yield (
                f"{trace.name}, {target * 1e3:.0f} ms",
                f"{pair.size}, {pair.timeout * 1e3:.1f}",
                str(pair.calls),
                f"{pair.p99 * 1e3:.1f}",
                str(optimum(trace, target)),
                *(_cell(cell) for cell in cells),
            )


def _verdict(judged: Judged, rule: str) -> str:
    """Count the traces that a rule wins, and the cells it loses."""
    traces_of = judged.cells[rule].values()
    won = sum(trace_ratio(cells) < 0.99 for cells in traces_of)
    lost = sum(cell.is_loss for cells in traces_of for cell in cells)
    return f"{won}/{lost}"


def _cell(cell: Cell) -> str:
    mark = "" if cell.reachable else "*"
    return f"{cell.ratio:.2f}{mark}, {cell.run.p99 * 1e3:.1f}"


def _trace_rows(
    judged: dict[tuple[int, int], Judged],
    slots: int,
) -> Iterator[tuple[str, ...]]:
    rounds = [each for (at_once, _), each in judged.items() if at_once == slots]
    for trace in rounds[0].cells["as proposed"]:
        ratios = (
            [trace_ratio(each.cells[rule][trace]) for each in rounds] for rule in RULES
        )
        yield (
            f"{trace}, {slots}",
            *(" ".join(f"{ratio:.3f}" for ratio in each) for each in ratios),
        )
    yield (
        f"traces won/targets lost, {slots}",
        *(" ".join(_verdict(each, rule) for each in rounds) for rule in RULES),
    )


def _claims(cells: dict[str, list[Cell]]) -> Iterator[tuple[str, ...]]:
    """Say what was found of each thing that was asked of the rule."""
    by_target = list(zip(*cells.values(), strict=True))
    lone = [simulate(lone_messages(), Paced(target)) for target in TARGETS]
    alone = [
        max(call.started - run.trace.arrivals[call.first] for call in run.calls)
        for run in lone
    ]
    yield (
        "p99 to the target, where a pair holds it (at most 1.1)",
        *(
            f"{max(c.run.p99 / c.target for c in each if c.reachable):.3f}"
            for each in by_target
        ),
    )
    yield (
        "calls to the fewest possible (at most 1.3)",
        *(f"{max(map(_to_fewest, each)):.2f}" for each in by_target),
    )
    yield (
        "wait of a message every ten seconds, ms (at most 10)",
        *(f"{wait * 1e3:.1f}" for wait in alone),
    )
    yield (
        "calls until settled after a tenfold step (at most 50)",
        *(str(settled(target)) for target in TARGETS),
    )


def _to_fewest(cell: Cell) -> float:
    return len(cell.run.calls) / optimum(cell.run.trace, cell.target)


def settled(target: float, window: int = 10) -> int:
    """Count the calls after a tenfold step until their sizes are those of later calls.

    They are when the mean of the next few is within 10 % of that of all calls up to the
    next step.
    """
    [steps] = [trace for trace in traces() if trace.name == "steps"]
    run = simulate(steps, Paced(target))
    sizes = [
        call.stop - call.first
        for call in run.calls
        if 10 <= steps.arrivals[call.first] < 15 - target
    ]
    later = fmean(sizes)
    means = [fmean(sizes[each : each + window]) for each in range(len(sizes))]
    return next(each for each, mean in enumerate(means) if abs(mean / later - 1) < 0.1)


def _one_pair_rows(judged: dict[tuple[int, int], Judged]) -> Iterator[tuple[str, ...]]:
    for slots in SLOTS:
        for target in TARGETS:
            pair, ratio = one_pair(judged[slots, 0], target)
            yield (f"{target * 1e3:.0f} ms, {slots}", pair, ratio)


def one_pair(judged: Judged, target: float) -> tuple[str, str]:
    """Find the pair that holds a target on each trace where one can, with fewest calls.

    :returns: the pair, and the calls of the rule to its calls; means over the traces.
    """
    cells = {
        trace: each[TARGETS.index(target)] for trace, each in judged.cells[OURS].items()
    }
    by_pair: dict[tuple[int, float], list[float]] = {}
    for trace, cell in cells.items():
        if cell.reachable:
            for pair in judged.pairs[trace, target]:
                ratio = len(cell.run.calls) / pair.calls
                ratios = by_pair.setdefault((pair.size, pair.timeout), [])
                ratios.append(ratio if pair.p99 <= target else 0.0)
    holding = {
        pair: math.exp(fmean(map(math.log, ratios)))
        for pair, ratios in by_pair.items()
        if all(ratios)
    }
    if not holding:
        return "none", ""
    size, timeout = max(holding, key=holding.__getitem__)
    return f"{size}, {timeout * 1e3:.1f}", f"{holding[size, timeout]:.3f}"


def _cost_of_a_message(messages: int = 200_000) -> str:
    rule = Paced(0.1)
    for number in range(50):
        rule.arrived(number * 1e-3)
        rule.ended(10 + number % 7, 0.05, 0.0555 + number % 7 * 5e-5, 0.0)
    costs = [_cost_of_arrivals(rule, messages) for _ in range(5)]
    return (
        f"A message costs {report.median(costs):.1f} µs of Python, as the rule is "
        "written for the simulation (at most 0.5)."
    )


def _cost_of_arrivals(rule: Rule, messages: int) -> float:
    began = time.process_time()
    moments = [1 + number * 1e-3 for number in range(messages)]
    for now in moments:
        rule.arrived(now)
        rule.most()
        rule.leaves_at(now - 0.01, 9, now)
    return (time.process_time() - began) / messages * 1e6
