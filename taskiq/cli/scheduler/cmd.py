"""The `scheduler` subcommand."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

from taskiq.abc.cmd import TaskiqCMD
from taskiq.cli.scheduler.args import SchedulerArgs, make_parser
from taskiq.cli.scheduler.run import run_scheduler

if sys.version_info < (3, 11):
    import signal
    import threading

if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Coroutine, Sequence
    from types import FrameType


class SchedulerCMD(TaskiqCMD):
    """Run a scheduler until it is interrupted."""

    short_help = "Run task scheduler"

    def exec(self, args: Sequence[str]) -> None:
        """Run the scheduler the arguments name.

        :param args: command line arguments after the name of the command.
        :raises KeyboardInterrupt: SIGINT came before the scheduler was started.
        """
        job = run_scheduler(SchedulerArgs.from_cli(args))
        if sys.version_info < (3, 11):
            job = _cancelled_by_sigint(job)
        asyncio.run(job)

    def make_parser(self) -> ArgumentParser:
        """Give what reads the arguments."""
        return make_parser()


if sys.version_info < (3, 11):

    async def _cancelled_by_sigint(job: Coroutine[None, None, None]) -> None:
        """Have SIGINT cancel what runs in the loop, as `asyncio.run` does later on.

        Here it would raise KeyboardInterrupt in whatever line is at work, and what was
        started may not be shut down.

        :raises KeyboardInterrupt: SIGINT has come, and `job` did not end on its own, or
            it has come twice.
        """
        task = asyncio.current_task()
        loop = asyncio.get_running_loop()
        is_interrupted = False

        def interrupt(_signum: int, _frame: FrameType | None) -> None:
            nonlocal is_interrupted
            if is_interrupted or task is None:
                raise KeyboardInterrupt
            is_interrupted = True
            task.cancel()
            loop.call_soon_threadsafe(bool)  # does nothing but wake it

        is_handled = (
            threading.current_thread() is not threading.main_thread()
            or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
        )
        if is_handled:
            return await job
        signal.signal(signal.SIGINT, interrupt)
        try:
            await job
        except asyncio.CancelledError as exc:
            if is_interrupted:
                raise KeyboardInterrupt from exc
            raise
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler)
