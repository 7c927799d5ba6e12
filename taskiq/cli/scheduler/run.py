"""Runs a scheduler: sends what is due when it falls due."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from functools import partial
from logging import basicConfig, getLogger
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from taskiq.cli.finding import (
    StartError,
    check_modules,
    find_or_make,
    registration_told,
)
from taskiq.cli.installation import check_installation
from taskiq.cli.scheduler.agenda import (
    Agenda,
    is_cron_task_now,
    is_interval_task_now,
    is_time_task_now,
    renamed,
    to_tz_aware,
)
from taskiq.cli.scheduler.cron import CATCH_UP, CronValueError
from taskiq.cli.scheduler.feed import Feed
from taskiq.cli.scheduler.lifecycle import SigtermGuard, shut_down, start_up
from taskiq.cli.utils import import_tasks
from taskiq.exceptions import ScheduledTaskCancelledError, SendTaskError
from taskiq.scheduler.scheduler import TaskiqScheduler

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from taskiq.abc.schedule_source import ScheduleSource
    from taskiq.cli.scheduler.args import SchedulerArgs
    from taskiq.scheduler.scheduled_task import ScheduledTask

__all__ = [
    "CronValueError",
    "ScheduleId",
    "SchedulerLoop",
    "get_all_schedules",
    "get_schedules",
    "is_cron_task_now",
    "is_interval_task_now",
    "is_time_task_now",
    "run_scheduler",
    "send",
    "send_with_timeout",
    "to_tz_aware",
]

logger = getLogger(__name__)

ScheduleId: TypeAlias = str

_LOG_FORMAT: Final = (
    "[%(asctime)s][%(levelname)-7s][%(module)s:%(funcName)s:%(lineno)d] %(message)s"
)
_SECOND: Final = timedelta(seconds=1)
_DEFAULT_UPDATE_INTERVAL: Final = timedelta(minutes=1)
#: Shortest time between two passes, so that an interval of zero does not spin.
_MIN_PAUSE: Final = timedelta(milliseconds=100)

#: Seconds the first pass waits for sources; slower ones join in when they answer.
FIRST_FETCH_PATIENCE = 0.25
#: Seconds a cancelled sending gets to end.
CANCEL_GRACE = 1.0
#: Seconds the sendings under way get to end when the loop does.
DRAIN_TIMEOUT = 5.0


def _utc_now() -> datetime:
    return datetime.now(tz=timezone.utc)


async def get_schedules(source: ScheduleSource) -> list[ScheduledTask]:
    """Return the schedules of a source, none if it fails; the failure is logged.

    :param source: the source to ask.
    """
    try:
        return await source.get_schedules()
    except Exception:
        logger.exception("Cannot get schedules from source %s.", source)
        return []


async def get_all_schedules(
    scheduler: TaskiqScheduler,
) -> list[tuple[ScheduleSource, list[ScheduledTask]]]:
    """Ask all sources at the same time and pair each with its schedules, in order.

    :param scheduler: whose sources are asked.
    """
    answers = await asyncio.gather(*map(get_schedules, scheduler.sources))
    return list(zip(scheduler.sources, answers, strict=True))


async def send(
    scheduler: TaskiqScheduler,
    source: ScheduleSource,
    task: ScheduledTask,
) -> None:
    """Hand a schedule that is due to the scheduler.

    :param scheduler: sends the task.
    :param source: where the schedule comes from.
    :param task: the schedule.
    """
    logger.info(
        "Sending task %s with schedule_id %s.",
        task.task_name,
        task.schedule_id,
    )
    await scheduler.on_ready(source, task)


async def send_with_timeout(
    scheduler: TaskiqScheduler,
    source: ScheduleSource,
    task: ScheduledTask,
    timeout: float,
) -> None:
    """Hand a schedule to the scheduler and cancel the sending if it takes too long.

    That is logged, not raised. Errors of the sending itself are raised.

    :param scheduler: sends the task.
    :param source: where the schedule comes from.
    :param task: the schedule.
    :param timeout: seconds the sending may take.
    """
    try:
        await _send_within(scheduler, source, task, timeout)
    except _SendTimedOutError as exc:
        logger.warning("%s", exc)


class _SendTimedOutError(Exception):
    """A sending was cancelled because it took too long."""

    def __init__(self, task: ScheduledTask, timeout: float) -> None:
        super().__init__(
            f"Sending task {task.task_name} with schedule_id {task.schedule_id} "
            f"timed out after {timeout}s and was cancelled. It will be tried again.",
        )


async def _send_within(
    scheduler: TaskiqScheduler,
    source: ScheduleSource,
    task: ScheduledTask,
    timeout: float,
) -> None:
    sending = asyncio.ensure_future(send(scheduler, source, task))
    timed_out = False
    try:
        await asyncio.wait({sending}, timeout=timeout)
        timed_out = not sending.done()
    finally:
        if not sending.done():
            sending.cancel()
            # A sending that does not heed the cancellation is left behind.
            await asyncio.wait({sending}, timeout=CANCEL_GRACE)
    if timed_out and not _has_succeeded(sending):
        raise _SendTimedOutError(task, timeout)
    sending.result()


def _has_succeeded(sending: asyncio.Future[None]) -> bool:
    return sending.done() and not sending.cancelled() and sending.exception() is None


@dataclass(slots=True)
class _Sending:
    """A sending under way."""

    #: Changes if the source names its schedules anew at each fetch.
    schedule_id: ScheduleId
    task: ScheduledTask
    job: asyncio.Task[None]


class SchedulerLoop:
    """Looks for schedules that are due, at regular intervals, and sends them.

    :param scheduler: the scheduler; its sources are asked for schedules.
    :param event_loop: where sendings and fetches run, by default the running loop.
    """

    def __init__(
        self,
        scheduler: TaskiqScheduler,
        *,
        event_loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self.scheduler = scheduler
        self.scheduled_tasks: list[tuple[ScheduleSource, list[ScheduledTask]]] = []
        self.scheduled_tasks_updated_at: datetime | None = None
        self._agenda = Agenda(complain=_log_unreadable)
        self.cron_tasks_last_run = self._agenda.cron_last_run
        self.interval_tasks_last_run = self._agenda.interval_last_run
        self.time_tasks_last_run = self._agenda.time_last_run
        self._event_loop = event_loop
        self._feeds: list[Feed] = []
        self._sendings: dict[ScheduleId, _Sending] = {}
        self._skips_first_minute = False
        self._is_ending = False

    async def run(
        self,
        *,
        update_interval: timedelta | None = None,
        loop_interval: timedelta | None = None,
        skip_first_run: bool = False,
        send_timeout: float | None = None,
    ) -> None:
        """Send what is due until cancelled; sendings under way may end then.

        :param update_interval: time between two questions to a source, 1 minute if
            not given.
        :param loop_interval: time between two passes, 1 second if not given.
        :param skip_first_run: leave out cron schedules of the minute of the start.
        :param send_timeout: seconds one sending may take; no limit if not given.
        :raises ValueError: the timeout is not positive.
        """
        check_send_timeout(send_timeout)
        if update_interval is None:
            update_interval = _DEFAULT_UPDATE_INTERVAL
        pause = _SECOND if loop_interval is None else max(loop_interval, _MIN_PAUSE)
        self._agenda.catch_up = max(CATCH_UP, pause)
        self._skips_first_minute = skip_first_run
        self._is_ending = False
        try:
            await self._ask_first()
            await asyncio.sleep(1 - _utc_now().microsecond / 1_000_000)
            while True:
                now = _utc_now()
                self._ask_again(now, update_interval)
                self._send_due(now, send_timeout)
                rest = next_pass(now, pause) - _utc_now()
                await asyncio.sleep(rest.total_seconds())
        finally:
            await self._wind_down()

    async def _ask_first(self) -> None:
        """Ask all sources; go on without those that are slow."""
        self._follow_sources()
        questions = [self._ask(feed) for feed in self._feeds]
        if questions:
            await asyncio.wait(questions, timeout=FIRST_FETCH_PATIENCE)
        self.scheduled_tasks_updated_at = _utc_now()

    def _ask_again(self, now: datetime, update_interval: timedelta) -> None:
        """Ask the sources whose turn it is, each without waiting for the others."""
        updated_at = self.scheduled_tasks_updated_at
        if updated_at is not None and now - updated_at < update_interval:
            for feed in self._feeds:
                if feed.is_overdue(now):
                    self._ask(feed)
            return
        self.scheduled_tasks_updated_at = now
        self._follow_sources()
        for feed in self._feeds:
            if feed.is_asked():
                logger.warning(
                    "Source %s has not answered since the last update yet. "
                    "Its schedules stay as they are.",
                    feed.source,
                )
            else:
                self._ask(feed)

    def _follow_sources(self) -> None:
        """Take in the sources of the scheduler as they are now."""
        feeds: list[Feed] = []
        for source in self.scheduler.sources:
            if not any(feed.source is source for feed in feeds):
                feeds.append(self._feed_of(source) or Feed(source))
        for feed in self._feeds:
            if feed not in feeds and feed.question is not None:
                feed.question.cancel()
        self._feeds = feeds
        self.scheduled_tasks = [
            (feed.source, self._schedules_of(feed.source)) for feed in feeds
        ]

    def _feed_of(self, source: ScheduleSource) -> Feed | None:
        return next((feed for feed in self._feeds if feed.source is source), None)

    def _schedules_of(self, source: ScheduleSource) -> list[ScheduledTask]:
        for known, tasks in self.scheduled_tasks:
            if known is source:
                return tasks
        return []

    def _ask(self, feed: Feed) -> asyncio.Task[None]:
        feed.question = self._create_task(self._take_answer(feed), "ask_source")
        return feed.question

    async def _take_answer(self, feed: Feed) -> None:
        try:
            self._accept(feed, list(await feed.source.get_schedules()))
        except Exception:
            feed.failed(_utc_now())
            logger.exception(
                "Cannot get schedules from source %s. They stay as they are.",
                feed.source,
            )

    def _accept(self, feed: Feed, schedules: list[ScheduledTask]) -> None:
        logger.debug("Got %d schedules from source %s.", len(schedules), feed.source)
        self._rename(renamed(self._schedules_of(feed.source), schedules))
        self.scheduled_tasks = [
            (source, schedules if source is feed.source else tasks)
            for source, tasks in self.scheduled_tasks
        ]
        self._agenda.keep_only(
            {task.schedule_id for _, tasks in self.scheduled_tasks for task in tasks},
        )
        if feed.answered() and self._skips_first_minute:
            self._agenda.skip_minute(schedules, _utc_now())

    def _rename(self, new_ids: dict[ScheduleId, ScheduleId]) -> None:
        self._agenda.rename(new_ids)
        for old_id, new_id in new_ids.items():
            if old_id in self._sendings:
                sending = self._sendings.pop(old_id)
                sending.schedule_id = new_id
                self._sendings[new_id] = sending

    def _send_due(self, now: datetime, send_timeout: float | None) -> None:
        for source, tasks in self.scheduled_tasks:
            for task in tasks:
                if not self._agenda.is_ready(task, now):
                    continue
                if task.schedule_id in self._sendings:
                    self._hold_back(task, now)
                else:
                    self._start_sending(source, task, send_timeout)

    def _hold_back(self, task: ScheduledTask, now: datetime) -> None:
        if self._agenda.hold_back(task.schedule_id, now):
            logger.warning(
                "Task %s with schedule_id %s is due, but its last sending is still "
                "going on. It will be sent after that.",
                task.task_name,
                task.schedule_id,
            )

    def _start_sending(
        self,
        source: ScheduleSource,
        task: ScheduledTask,
        send_timeout: float | None,
    ) -> None:
        schedule_id = task.schedule_id
        self._agenda.starts(schedule_id)
        if send_timeout is None:
            attempt = send(self.scheduler, source, task)
        else:
            attempt = _send_within(self.scheduler, source, task, send_timeout)
        job = self._create_task(attempt, f"schedule_{schedule_id}")
        sending = _Sending(schedule_id, task, job)
        self._sendings[schedule_id] = sending
        job.add_done_callback(partial(self._settle, sending))

    def _settle(self, sending: _Sending, job: asyncio.Task[None]) -> None:
        """Take note of how a sending has ended."""
        del self._sendings[sending.schedule_id]
        error = asyncio.CancelledError() if job.cancelled() else job.exception()
        if error is None or isinstance(error, ScheduledTaskCancelledError):
            self._agenda.succeeded(sending.schedule_id)
            return
        timed_out = isinstance(error, _SendTimedOutError)
        delay = self._agenda.failed(
            sending.schedule_id,
            _utc_now(),
            refused=timed_out or isinstance(error, SendTaskError),
        )
        if timed_out:
            logger.warning("%s", error)
            return
        logger.error(
            "Sending task %s with schedule_id %s failed. %s",
            sending.task.task_name,
            sending.task.schedule_id,
            "The scheduler is ending."
            if self._is_ending
            else f"It will be tried again in {delay:g}s.",
            exc_info=error,
        )

    async def _wind_down(self) -> None:
        """Give the sendings under way some time to end, then cancel what is left."""
        self._is_ending = True
        jobs = [sending.job for sending in self._sendings.values()]
        questions = [feed.question for feed in self._feeds if feed.question is not None]
        try:
            if jobs:
                logger.info("Waiting for %d sendings under way.", len(jobs))
                await asyncio.wait(jobs, timeout=DRAIN_TIMEOUT)
        finally:
            await _cancel([*questions, *jobs])

    def _create_task(
        self,
        coroutine: Coroutine[Any, Any, None],
        name: str,
    ) -> asyncio.Task[None]:
        event_loop = self._event_loop or asyncio.get_running_loop()
        return event_loop.create_task(coroutine, name=name)


def next_pass(now: datetime, pause: timedelta) -> datetime:
    """Give the time of the next pass; passes fall on whole seconds if they can.

    :param now: time of this pass.
    :param pause: time between two passes.
    """
    following = now + pause
    return following if pause < _SECOND else following.replace(microsecond=0)


def check_send_timeout(send_timeout: float | None) -> None:
    """Check that a time limit for sendings is positive, if there is one.

    :raises ValueError: it is not.
    """
    if send_timeout is not None and send_timeout <= 0:
        raise ValueError(
            f"send_timeout must be > 0 when provided, got {send_timeout}.",
        )


async def _cancel(jobs: list[asyncio.Task[None]]) -> None:
    running = [job for job in jobs if not job.done()]
    for job in running:
        job.cancel()
    if running:
        await asyncio.wait(running, timeout=2 * CANCEL_GRACE)


def _log_unreadable(task: ScheduledTask, reason: str) -> None:
    logger.warning(
        "Cannot read a schedule of task %s, schedule_id %s: %s. "
        "It is left out until it changes.",
        task.task_name,
        task.schedule_id,
        reason,
    )


async def run_scheduler(args: SchedulerArgs) -> None:
    """Run a scheduler until it is cancelled or the process gets SIGTERM.

    The sources and the scheduler are started first and shut down in the end.

    :param args: which scheduler to run, and how.
    :raises ValueError: the timeout for sendings is not positive.
    :raises SystemExit: what `args` names is not a scheduler, or has a task that cannot
        be registered.
    """
    check_send_timeout(args.send_timeout)
    if args.configure_logging:
        basicConfig(level=args.log_level, format=_LOG_FORMAT)
    getLogger("taskiq").setLevel(args.log_level)
    scheduler = _import_application(args)
    with SigtermGuard() as sigterm:
        try:
            await _serve(scheduler, args, sigterm)
        except asyncio.CancelledError:
            if not sigterm.received:
                raise


def _import_application(args: SchedulerArgs) -> TaskiqScheduler:
    try:
        check_installation()
        with registration_told():
            scheduler = find_or_make(
                args.scheduler, args.app_dir, TaskiqScheduler, "scheduler"
            )
            scheduler.broker.is_scheduler_process = True
            check_modules(args.modules, args.app_dir)
            import_tasks(args.modules, args.tasks_pattern, args.fs_discover)
    except StartError as exc:
        logger.error("%s", exc)  # noqa: TRY400 - the line says it all
        sys.exit(exc.status)
    return scheduler


async def _serve(
    scheduler: TaskiqScheduler,
    args: SchedulerArgs,
    sigterm: SigtermGuard,
) -> None:
    logger.info("Starting scheduler.")
    await start_up(scheduler)
    logger.info("Startup completed.")
    try:
        await SchedulerLoop(scheduler).run(
            update_interval=_seconds(args.update_interval),
            loop_interval=_seconds(args.loop_interval),
            skip_first_run=args.skip_first_run,
            send_timeout=args.send_timeout,
        )
    except asyncio.CancelledError:
        logger.info("Shutting down scheduler.")
    finally:
        sigterm.disarm()
        errors = await shut_down(scheduler)
    if errors:
        raise errors[0]
    logger.info("Scheduler is shut down.")


def _seconds(value: int | None) -> timedelta | None:
    return None if value is None else timedelta(seconds=value)
