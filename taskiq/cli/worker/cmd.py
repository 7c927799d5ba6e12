"""The `worker` subcommand."""

from __future__ import annotations

from typing import TYPE_CHECKING

from taskiq.abc.cmd import TaskiqCMD
from taskiq.cli.worker.args import WorkerArgs, make_parser
from taskiq.cli.worker.run import run_worker

if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Sequence


class WorkerCMD(TaskiqCMD):
    """Run worker processes until they are told to stop."""

    short_help = "Run workers"

    def exec(self, args: Sequence[str]) -> int | None:
        """Run the workers the arguments describe.

        :param args: command line arguments after the name of the command.
        :returns: exit status of the process, `None` for success.
        """
        return run_worker(WorkerArgs.from_cli(args))

    def make_parser(self) -> ArgumentParser:
        """Give what reads the arguments."""
        return make_parser()
