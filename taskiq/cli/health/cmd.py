"""The `health` subcommand: whether a worker is live, and whether it is ready.

A probe of an orchestrator runs it every few seconds. So it imports neither the
application nor anything that is not needed to read a few small files.
"""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Final

from taskiq.abc.cmd import TaskiqCMD
from taskiq.cli.health.files import VARIABLE, HealthDirectory
from taskiq.health import Fleet, why_not_live, why_not_ready

if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Sequence

#: Exit status of a worker that is not what it was asked to be.
UNHEALTHY: Final = 1
#: Exit status of a command that was called wrongly.
WRONG_USE: Final = 2

_EXAMPLES: Final = (
    ("--health-file /run/taskiq", "is every process ready for messages?"),
    ("--live --health-file /run/taskiq", "would a restart help? No while it is live"),
)


class HealthCMD(TaskiqCMD):
    """Say whether a worker of this machine is live, or ready."""

    short_help = "Say whether a worker is live, or ready"

    def exec(self, args: Sequence[str]) -> int | None:
        """Read the heartbeats of a worker.

        :param args: command line arguments after the name of the command.
        :returns: exit status: `None` if it is, 1 if it is not, 2 for a bad call.
        """
        options = self.make_parser().parse_args(args)
        if not options.health_file:
            sys.stderr.write(
                f"taskiq health: name the directory that the worker writes to, with "
                f"--health-file or {VARIABLE}.\n",
            )
            return WRONG_USE
        try:
            fleet = HealthDirectory(options.health_file).read()
        except (OSError, ValueError) as exc:
            sys.stderr.write(f"taskiq health: {exc}\n")
            return UNHEALTHY
        is_live_only = options.asked == "live"
        text, is_well = verdict(fleet, time.time(), is_live_only=is_live_only)
        sys.stdout.write(text)
        return None if is_well else UNHEALTHY

    def make_parser(self) -> ArgumentParser:
        """Give what reads the arguments."""
        return _parser()


def verdict(fleet: Fleet, now: float, *, is_live_only: bool) -> tuple[str, bool]:
    """Say in lines whether a worker is live, or ready, and if not why.

    :param is_live_only: whether it may be not ready.
    :returns: the lines, and whether it is.
    """
    asked, decide = ("live", why_not_live) if is_live_only else ("ready", why_not_ready)
    reasons = decide(fleet, now)
    if reasons:
        return "".join(f"not {asked}: {reason}\n" for reason in reasons), False
    return f"{asked}: {_count(fleet)}\n", True


def _count(fleet: Fleet) -> str:
    count = len(fleet.running())
    return f"{count} process" if count == 1 else f"{count} processes"


def _parser() -> ArgumentParser:
    from taskiq.cli.help import command_parser  # noqa: PLC0415 - nobody else needs it

    parser = command_parser(
        "health",
        "Say whether a worker is ready for messages; status 0 if it is, 1 if it is "
        "not.\nIt reads the heartbeats that `taskiq worker --health-file DIR` writes, "
        "and does\nnot import your application.",
        _EXAMPLES,
    )
    asked = parser.add_mutually_exclusive_group()
    asked.add_argument(
        "--live",
        action="store_const",
        const="live",
        dest="asked",
        help="ask only for what a restart would mend: an event loop that is blocked, a "
        "main process that hangs. A broker that is away is no such thing",
    )
    asked.add_argument(
        "--ready",
        action="store_const",
        const="ready",
        dest="asked",
        help="ask whether every process takes messages, which is the default",
    )
    parser.add_argument(
        "--health-file",
        metavar="DIR",
        default=os.environ.get(VARIABLE),
        help=f"the directory that the worker writes to; by default that of {VARIABLE}",
    )
    return parser
