"""Starting and shutting down what a scheduler works with."""

from __future__ import annotations

import asyncio
import signal
import threading
from logging import getLogger
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

    from typing_extensions import Self

    from taskiq.abc.schedule_source import ScheduleSource
    from taskiq.scheduler.scheduler import TaskiqScheduler

logger = getLogger(__name__)


async def start_up(scheduler: TaskiqScheduler, *, with_broker: bool = True) -> None:
    """Start the sources in order, then the scheduler with its broker.

    If one of them fails, the sources started before it are shut down, last one first.

    :param scheduler: the scheduler.
    :param with_broker: whether to start the scheduler too, not the sources only.
    :raises Exception: what the failing start raised.
    """
    started: list[ScheduleSource] = []
    try:
        for source in scheduler.sources:
            await source.startup()
            started.append(source)
        if with_broker:
            await scheduler.startup()
    except (Exception, asyncio.CancelledError):
        await _shut_down_each(reversed(started))
        raise


async def shut_down(
    scheduler: TaskiqScheduler,
    *,
    with_broker: bool = True,
) -> list[BaseException]:
    """Shut down the scheduler with its broker, then the sources in order.

    A failure is logged and keeps nothing else from being shut down.

    :param scheduler: the scheduler.
    :param with_broker: whether to shut down the scheduler too, not the sources only.
    :returns: what went wrong.
    """
    broker_side = [scheduler] if with_broker else []
    return await _shut_down_each([*broker_side, *scheduler.sources])


async def _shut_down_each(
    parts: Iterable[TaskiqScheduler | ScheduleSource],
) -> list[BaseException]:
    errors = [await _shut_down_one(part) for part in parts]
    return [error for error in errors if error is not None]


async def _shut_down_one(
    part: TaskiqScheduler | ScheduleSource,
) -> BaseException | None:
    try:
        await part.shutdown()
    except (Exception, asyncio.CancelledError) as exc:
        logger.exception("Cannot shut down %s.", type(part).__name__)
        return exc
    return None


class SigtermGuard:
    """Has SIGTERM cancel the current task instead of killing the process.

    An application that handles the signal itself is left alone, and so is a loop that
    does not run in the main thread or on a system without signals.
    """

    def __init__(self) -> None:
        #: Whether the signal has come and cancelled the task.
        self.received = False
        self._task: asyncio.Task[object] | None = None
        self._is_installed = False

    def disarm(self) -> None:
        """Leave the task alone from now on, for it is ending; keep the process."""
        self._task = None

    def __enter__(self) -> Self:
        if _sigterm_is_unhandled():
            self._task = asyncio.current_task()
            loop = asyncio.get_running_loop()
            try:
                loop.add_signal_handler(signal.SIGTERM, self._terminate)
            except NotImplementedError:
                logger.debug("This event loop does not handle signals.")
            else:
                self._is_installed = True
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._is_installed:
            asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)

    def _terminate(self) -> None:
        logger.info("Got SIGTERM.")
        if self._task is not None:
            self.received = True
            self._task.cancel()
            self.disarm()


def _sigterm_is_unhandled() -> bool:
    return (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    )
