"""Which schedules are due, and what has become of their sendings.

Nothing here waits or sends; the time comes in as a value.
"""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from taskiq.cli.scheduler.cron import (
    CATCH_UP,
    CronValueError,
    check_cron,
    cron_fires,
    cron_matches,
    slot_start,
    slots_since,
    to_wall_time,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from collections.abc import Set as AbstractSet

    from taskiq.scheduler.scheduled_task import ScheduledTask

_MINUTE_SECONDS: Final = 60

#: Longest wait, in seconds, before a sending is tried again that the broker refused.
MAX_DELAY_REFUSED: Final = 60.0
#: The same for one that failed in a way that leaves open whether the task was sent:
#: a step that always fails after the sending must not send the task every minute.
MAX_DELAY_UNKNOWN: Final = 3600.0
#: What comes of values that were assigned to a schedule after it was built.
_UNREADABLE: Final = (ArithmeticError, AttributeError, TypeError, ValueError)
#: Doublings after which both limits are reached.
_MAX_DOUBLINGS: Final = 12


def to_tz_aware(time: datetime) -> datetime:
    """Attach UTC to a naive datetime; return an aware one as it is."""
    return time if time.tzinfo is not None else time.replace(tzinfo=timezone.utc)


def is_cron_task_now(
    cron_value: str,
    now: datetime,
    offset: str | timedelta | None = None,
    last_run: datetime | None = None,
) -> bool:
    """Tell whether a cron text matches now and was not run in the last minute.

    :param cron_value: five fields separated by single blanks.
    :param now: aware datetime in UTC.
    :param offset: shift from UTC, or name of a time zone.
    :param last_run: when the schedule was last run.
    :raises CronValueError: the text is malformed or there is no such time zone.
    """
    if last_run is not None and elapsed_seconds(last_run, now) < _MINUTE_SECONDS:
        return False
    return cron_matches(cron_value, to_wall_time(now, offset))


def is_time_task_now(
    time_value: datetime,
    now: datetime,
    last_run: datetime | None = None,
) -> bool:
    """Tell whether a moment has come and was not acted on before.

    :param time_value: the moment; naive means UTC.
    :param now: the time; naive means UTC.
    :param last_run: when the schedule was run.
    """
    return last_run is None and to_tz_aware(time_value) <= to_tz_aware(now)


def is_interval_task_now(
    interval_value: int | timedelta,
    now: datetime,
    last_run: datetime | None = None,
) -> bool:
    """Tell whether an interval has passed since the last run, or nothing ran yet.

    :param interval_value: seconds, or a duration.
    :param now: the time.
    :param last_run: when the schedule was last run.
    """
    if last_run is None:
        return True
    if isinstance(interval_value, timedelta):
        interval_value = round(interval_value.total_seconds())
    return elapsed_seconds(last_run, now) >= interval_value


def elapsed_seconds(since: datetime, now: datetime) -> int:
    """Give the whole seconds nearest to the time that has passed.

    The loop wakes up a little before or after a full second; neither may count.
    """
    return round((now - since).total_seconds())


def retry_delay(failures: int, *, refused: bool) -> float:
    """Give the seconds to wait after a failed sending: 1, 2, 4, ... up to a limit.

    :param failures: how often the sending has failed, at least once.
    :param refused: whether the broker did not take the task, as far as is known.
    """
    limit = MAX_DELAY_REFUSED if refused else MAX_DELAY_UNKNOWN
    return min(2.0 ** min(failures - 1, _MAX_DOUBLINGS), limit)


def renamed(
    old_tasks: Iterable[ScheduledTask],
    new_tasks: Iterable[ScheduledTask],
) -> dict[str, str]:
    """Pair the schedules of two fetches that are the same but for a random id.

    A source that does not name its schedules has them named anew at each fetch.

    :param old_tasks: what the source returned before.
    :param new_tasks: what it returned now.
    :returns: new id by old id.
    """
    old = _unnamed(old_tasks)
    new = _unnamed(new_tasks)
    known = old.keys() & new.keys()
    vanished: defaultdict[str, list[str]] = defaultdict(list)
    for schedule_id, content in old.items():
        if schedule_id not in known:
            vanished[content].append(schedule_id)
    return {
        vanished[content].pop(0): schedule_id
        for schedule_id, content in new.items()
        if schedule_id not in known and vanished.get(content)
    }


def _unnamed(tasks: Iterable[ScheduledTask]) -> dict[str, str]:
    """Describe the schedules that were given no id, by the id made up for them."""
    return {
        task.schedule_id: repr({**vars(task), "schedule_id": None})
        for task in tasks
        if "schedule_id" not in task.model_fields_set
    }


class _CronLook(NamedTuple):
    """Up to when a cron schedule has been looked at."""

    cron: str
    offset: str | timedelta | None
    until: datetime


class _Owed(NamedTuple):
    """A sending that is to be made apart from the times of the schedule."""

    since: datetime
    delay: float


class Agenda:
    """What is due, by the times of the schedules and by what became of sendings.

    All is kept by schedule id. A schedule that is due is counted as run at once; a
    sending that fails afterwards, or cannot start because the one before it is still
    going on, is owed. What is owed is sent once, however much was missed.

    :param complain: told about a schedule that cannot be read and why; once each.
    """

    def __init__(self, complain: Callable[[ScheduledTask, str], None]) -> None:
        self.cron_last_run: dict[str, datetime] = {}
        self.interval_last_run: dict[str, datetime] = {}
        self.time_last_run: dict[str, datetime] = {}
        self.catch_up = CATCH_UP
        self._complain = complain
        self._cron_looks: dict[str, _CronLook] = {}
        #: The moment `time_last_run` is about; an id may be used for another one.
        self._times_run: dict[str, datetime] = {}
        self._owed: dict[str, _Owed] = {}
        self._failures: dict[str, int] = {}
        self._complaints: dict[str, object] = {}

    def is_ready(self, task: ScheduledTask, now: datetime) -> bool:
        """Tell whether a schedule is to be sent now, and count it as run if it is due.

        :param task: the schedule.
        :param now: aware datetime in UTC.
        """
        owed = self._owed.get(task.schedule_id)
        return self._is_due(task, now) or (
            owed is not None and elapsed_seconds(owed.since, now) >= owed.delay
        )

    def starts(self, schedule_id: str) -> None:
        """Note that a sending starts; it settles what was owed."""
        self._owed.pop(schedule_id, None)

    def succeeded(self, schedule_id: str) -> None:
        """Note that a sending has ended well."""
        self._failures.pop(schedule_id, None)

    def failed(self, schedule_id: str, now: datetime, *, refused: bool) -> float:
        """Note that a sending has failed; it is owed again after a while.

        :param schedule_id: the schedule that was to be sent.
        :param now: aware datetime in UTC.
        :param refused: whether the broker did not take the task.
        :returns: seconds until it is tried again, at the latest.
        """
        failures = self._failures.get(schedule_id, 0) + 1
        self._failures[schedule_id] = failures
        delay = retry_delay(failures, refused=refused)
        self._owed[schedule_id] = _Owed(now, delay)
        return delay

    def hold_back(self, schedule_id: str, now: datetime) -> bool:
        """Note that a schedule was due while its sending before is still going on.

        :param schedule_id: the schedule.
        :param now: aware datetime in UTC.
        :returns: whether this is the first one that waits for that sending.
        """
        if schedule_id in self._owed:
            return False
        self._owed[schedule_id] = _Owed(now, delay=0)
        return True

    def skip_minute(self, tasks: Iterable[ScheduledTask], now: datetime) -> None:
        """Count cron schedules as run in the current minute."""
        for task in tasks:
            if task.cron is not None:
                self.cron_last_run[task.schedule_id] = slot_start(now, None)

    def rename(self, new_ids: Mapping[str, str]) -> None:
        """Go on under new ids.

        :param new_ids: new id by old id.
        """
        for records in self._all_records():
            for old_id, new_id in new_ids.items():
                if old_id in records:
                    records[new_id] = records.pop(old_id)

    def keep_only(self, schedule_ids: AbstractSet[str]) -> None:
        """Forget all schedules but these."""
        for records in self._all_records():
            for schedule_id in records.keys() - schedule_ids:
                del records[schedule_id]

    def _all_records(self) -> tuple[dict[str, Any], ...]:
        return (
            self.cron_last_run,
            self.interval_last_run,
            self.time_last_run,
            self._cron_looks,
            self._times_run,
            self._owed,
            self._failures,
            self._complaints,
        )

    def _is_due(self, task: ScheduledTask, now: datetime) -> bool:
        try:
            return (
                self._cron_is_due(task, now)
                or self._interval_is_due(task, now)
                or self._time_is_due(task, now)
            )
        except _UNREADABLE as exc:
            self._complain_once(task, f"{type(exc).__name__}: {exc}")
            return False

    def _cron_is_due(self, task: ScheduledTask, now: datetime) -> bool:
        if task.cron is None:
            return False
        try:
            is_due = self._cron_has_new_slot(task, task.cron, now)
        except CronValueError as exc:
            self._complain_once(task, str(exc))
            return False
        if is_due:
            self.cron_last_run[task.schedule_id] = now
        return is_due

    def _cron_has_new_slot(self, task: ScheduledTask, cron: str, now: datetime) -> bool:
        offset = task.cron_offset
        seen_until = self._cron_seen_until(task)
        self._cron_looks[task.schedule_id] = _CronLook(cron, offset, now)
        if seen_until is None:
            check_cron(cron, offset)
        last_run = self.cron_last_run.get(task.schedule_id)
        return any(
            (last_run is None or slot > last_run) and cron_fires(cron, slot, offset)
            for slot in slots_since(seen_until, now, offset, self.catch_up)
        )

    def _cron_seen_until(self, task: ScheduledTask) -> datetime | None:
        look = self._cron_looks.get(task.schedule_id)
        if look is None or (look.cron, look.offset) != (task.cron, task.cron_offset):
            return None
        return look.until

    def _interval_is_due(self, task: ScheduledTask, now: datetime) -> bool:
        if task.interval is None:
            return False
        last_run = self.interval_last_run.get(task.schedule_id)
        is_due = is_interval_task_now(task.interval, now, last_run)
        if is_due:
            self.interval_last_run[task.schedule_id] = now
        return is_due

    def _time_is_due(self, task: ScheduledTask, now: datetime) -> bool:
        if task.time is None:
            return False
        moment = to_tz_aware(task.time)
        if self._times_run.get(task.schedule_id, moment) != moment:
            self.time_last_run.pop(task.schedule_id, None)
        last_run = self.time_last_run.get(task.schedule_id)
        is_due = is_time_task_now(moment, now, last_run)
        if is_due:
            self.time_last_run[task.schedule_id] = now
            self._times_run[task.schedule_id] = moment
        return is_due

    def _complain_once(self, task: ScheduledTask, reason: str) -> None:
        timing = (task.cron, task.cron_offset, task.interval, task.time)
        if self._complaints.get(task.schedule_id) != timing:
            self._complaints[task.schedule_id] = timing
            self._complain(task, reason)
