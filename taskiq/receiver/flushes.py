"""How the last batches of each task left: why, how full, how late."""

from __future__ import annotations

import time
from collections import Counter, deque
from typing import TYPE_CHECKING, Final

from taskiq.health import Flush, TaskFlushes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from taskiq.batch import BatchConfig, BatchInfo

#: Batches of a task that are remembered, and those that are told one by one.
_REMEMBERED: Final = 100
_TOLD: Final = 5


class FlushHistory:
    """Remembers the last batches of each task, and nothing of their messages."""

    def __init__(self) -> None:
        self._tasks: dict[str, tuple[BatchConfig, deque[Flush]]] = {}

    def note(self, info: BatchInfo, config: BatchConfig) -> None:
        """Note a batch whose call starts."""
        known = self._tasks.get(info.task_name)
        if known is None:
            known = self._tasks[info.task_name] = config, deque(maxlen=_REMEMBERED)
        reason, count = info.flush_reason.value, len(info.messages)
        known[1].append(Flush(reason, count, info.waited, time.time()))

    def tasks(self) -> list[TaskFlushes]:
        """Sum up the batches of each task that has had one."""
        return [
            _summary(name, config, tuple(flushes))
            for name, (config, flushes) in sorted(self._tasks.items())
        ]


def _summary(
    name: str,
    config: BatchConfig,
    flushes: tuple[Flush, ...],
) -> TaskFlushes:
    return TaskFlushes(
        task=name,
        size=config.size,
        timeout=config.timeout,
        batches=len(flushes),
        mean_messages=_mean(flush.messages for flush in flushes),
        mean_waited=_mean(flush.waited for flush in flushes),
        reasons=dict(Counter(flush.reason for flush in flushes).most_common()),
        last=flushes[-_TOLD:],
    )


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)
