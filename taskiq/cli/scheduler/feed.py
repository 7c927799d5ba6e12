"""How asking one source for its schedules stands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from taskiq.cli.scheduler.agenda import elapsed_seconds, retry_delay

if TYPE_CHECKING:
    import asyncio
    from datetime import datetime

    from taskiq.abc.schedule_source import ScheduleSource


@dataclass(slots=True, eq=False)
class Feed:
    """A source with the question put to it and its answers so far."""

    source: ScheduleSource
    question: asyncio.Task[None] | None = None
    has_answered: bool = False
    failures: int = 0
    failed_at: datetime | None = None

    def is_asked(self) -> bool:
        """Tell whether an answer is being waited for."""
        return self.question is not None and not self.question.done()

    def failed(self, now: datetime) -> None:
        """Note that the source did not answer but failed."""
        self.failures += 1
        self.failed_at = now

    def answered(self) -> bool:
        """Note an answer; tell whether it is the first one."""
        is_first = not self.has_answered
        self.has_answered = True
        return is_first

    def is_overdue(self, now: datetime) -> bool:
        """Tell whether a source that never answered should be asked again.

        Until it answers nothing of it is sent, so this is not left to the updates.
        """
        return (
            not self.has_answered
            and not self.is_asked()
            and self.failed_at is not None
            and elapsed_seconds(self.failed_at, now)
            >= retry_delay(self.failures, refused=True)
        )
