"""Why batches are small, or late: what their last flushes say."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from taskiq.cli.inspect.table import prose, seconds, table

if TYPE_CHECKING:
    from collections.abc import Iterable

    from taskiq.health import TaskFlushes

#: Flushes that are shown one by one.
_SHOWN: Final = 5

#: Part of the batches that leaves for a reason, from which on it is worth a word.
_MOSTLY: Final = 0.5
_OFTEN: Final = 0.1

#: A fill below which a batch counts as small.
_SMALL: Final = 0.5

#: How much longer than `batch_timeout` a first message waits before it counts as late.
_LATE_FACTOR: Final = 1.25
_LATE_SECONDS: Final = 0.1


def merged(flushes: Iterable[TaskFlushes]) -> list[TaskFlushes]:
    """Sum up what several processes say, for each task."""
    by_task: dict[str, list[TaskFlushes]] = {}
    for each in flushes:
        by_task.setdefault(each.task, []).append(each)
    return [_sum(by_task[name]) for name in sorted(by_task)]


def _sum(parts: list[TaskFlushes]) -> TaskFlushes:
    batches = sum(each.batches for each in parts)
    reasons: Counter[str] = Counter()
    for each in parts:
        reasons.update(each.reasons)
    last = sorted(
        (flush for each in parts for flush in each.last), key=lambda flush: flush.at
    )
    return parts[0]._replace(
        batches=batches,
        mean_messages=sum(each.mean_messages * each.batches for each in parts)
        / batches,
        mean_waited=sum(each.mean_waited * each.batches for each in parts) / batches,
        reasons=dict(reasons.most_common()),
        last=tuple(last[-_SHOWN:]),
    )


def flush_lines(flushes: list[TaskFlushes], width: int | None) -> list[str]:
    """Show how the last batches of each task left, and what that tells."""
    if not flushes:
        return ["No batch has left yet."]
    titles = ("TASK", "BATCHES", "MEAN FILL", "FIRST WAITED", "LEFT BY", "LATEST")
    rows = [
        (
            each.task,
            str(each.batches),
            f"{each.mean_messages:.1f} of {each.size} ({each.mean_fill:.0%})",
            seconds(each.mean_waited),
            ", ".join(f"{reason} {count}" for reason, count in each.reasons.items()),
            ", ".join(f"{flush.messages} {flush.reason}" for flush in each.last),
        )
        for each in flushes
    ]
    told = [
        line
        for each in flushes
        for text in explain(each)
        for line in prose(f"{each.task}: {text}", width)
    ]
    return [
        *table(titles, rows, width, spare=("LATEST",)),
        *([""] if told else []),
        *told,
    ]


def explain(flushes: TaskFlushes) -> list[str]:
    """Say why batches are small, or late, and what would change that."""
    told: list[str] = []
    if flushes.mean_fill < _SMALL:
        told += _why_small(flushes)
    if _part(flushes, "pressure") >= _OFTEN:
        told.append(
            "pressure: the process held batch_max_buffered messages, so batches left "
            "before they were full. Calls take too long for what comes in, or keys are "
            "too many: add processes, or raise batch_max_buffered.",
        )
    if flushes.mean_waited > flushes.timeout * _LATE_FACTOR + _LATE_SECONDS:
        told.append(
            f"late: the first message waits {seconds(flushes.mean_waited)} for its "
            f"call, where batch_timeout is {flushes.timeout:g} s. Batches are due and "
            "find no free slot, or the event loop is blocked: raise --max-async-tasks "
            "or batch_concurrency, or add processes.",
        )
    return told


def _why_small(flushes: TaskFlushes) -> list[str]:
    counts = {flush.messages for flush in flushes.last}
    is_always = len(flushes.last) == _SHOWN and len(counts) == 1
    if _part(flushes, "timeout") >= _MOSTLY:
        if is_always and 1 < flushes.last[0].messages < flushes.size:
            return [
                f"small: it is always {counts.pop()} messages. Does the broker hand "
                "out no more at a time (RabbitMQ: qos, JetStream: max_ack_pending)?",
            ]
        return [
            f"small: most leave by timeout: fewer than {flushes.size} messages that "
            f"may share a call come to a process within batch_timeout="
            f"{flushes.timeout:g} s. Fewer processes or keys fill batches sooner, a "
            "longer batch_timeout waits for more.",
        ]
    if _part(flushes, "idle") >= _MOSTLY:
        return [
            "small: most leave as no message came for batch_idle_timeout. A longer one "
            "waits for more.",
        ]
    if _part(flushes, "weight") >= _MOSTLY:
        return ["small: most leave as batch_max_weight is reached, as they are to."]
    return []


def _part(flushes: TaskFlushes, reason: str) -> float:
    return flushes.reasons.get(reason, 0) / flushes.batches
