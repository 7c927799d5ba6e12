"""From outcomes to Markdown."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import mean, median

from .trial import Outcome

_HEAD = ("broker", "fault", "strikes", "sent", "results", "lost", "wrong")


def faults_table(outcomes: Iterable[Outcome]) -> str:
    """Tell of each trial what became of its messages."""
    rows = [
        (
            outcome.trial.line,
            outcome.trial.fault,
            outcome.strikes,
            outcome.trial.messages,
            outcome.results,
            outcome.lost,
            outcome.wrong,
            len(outcome.repeated),
            f"{outcome.seconds:.1f}" + (" (hung)" if outcome.is_hung else ""),
        )
        for outcome in outcomes
    ]
    return _table((*_HEAD, "run more than once", "seconds"), rows, left=2)


def throughput_table(outcomes: Iterable[Outcome]) -> str:
    """Tell of each trial how fast it was, and how its processes shared the work."""
    head = (
        "broker",
        "messages",
        "right results",
        "messages/s",
        "calls",
        "mean size",
        "median size",
        "largest",
        "messages by process",
    )
    return _table(head, [_throughput(outcome) for outcome in outcomes], left=1)


def _throughput(outcome: Outcome) -> tuple[object, ...]:
    sizes = [size for (_, size), count in outcome.calls.items() for _ in range(count)]
    by_process: dict[int, int] = {}
    for (pid, size), count in outcome.calls.items():
        by_process[pid] = by_process.get(pid, 0) + size * count
    return (
        outcome.trial.line,
        outcome.trial.messages,
        outcome.results,
        f"{outcome.trial.messages / outcome.seconds:.0f}",
        len(sizes),
        f"{mean(sizes):.1f}",
        f"{median(sizes):.0f}",
        max(sizes),
        " + ".join(map(str, sorted(by_process.values(), reverse=True))),
    )


def _table(
    head: tuple[str, ...],
    rows: Iterable[tuple[object, ...]],
    left: int,
) -> str:
    rules = ["---"] * left + ["---:"] * (len(head) - left)
    lines = [head, rules, *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
