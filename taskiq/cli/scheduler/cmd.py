"""The `scheduler` subcommand."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

from taskiq.abc.cmd import TaskiqCMD
from taskiq.cli.scheduler.args import SchedulerArgs
from taskiq.cli.scheduler.run import run_scheduler

if TYPE_CHECKING:
    from collections.abc import Sequence


class SchedulerCMD(TaskiqCMD):
    """Run a scheduler until it is interrupted."""

    short_help = "Run task scheduler"

    def exec(self, args: Sequence[str]) -> None:
        """Run the scheduler the arguments name.

        :param args: command line arguments after the name of the command.
        """
        try:
            asyncio.run(run_scheduler(SchedulerArgs.from_cli(args)))
        except KeyboardInterrupt:
            # Older loops raise it after the scheduler was shut down in good order.
            if sys.version_info >= (3, 11):
                raise
