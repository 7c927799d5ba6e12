"""Arguments of the scheduler command."""

from __future__ import annotations

from argparse import ZERO_OR_MORE
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from taskiq.cli.common_args import (
    DEFAULT_TASKS_PATTERN,
    LogLevel,
    add_import_options,
    add_logging_options,
)
from taskiq.cli.help import command_parser

if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Sequence

    from taskiq.scheduler.scheduler import TaskiqScheduler

_EXAMPLES: Final = (
    ("app.scheduling:scheduler", "send what is due; run one scheduler, not two"),
    (
        "app.scheduling:scheduler --fs-discover --skip-first-run",
        "find the tasks, and leave out cron schedules of this minute",
    ),
)


@dataclass
class SchedulerArgs:
    """What the scheduler is run with.

    Intervals and the timeout are in seconds; `None` stands for 60 s between updates,
    1 s between passes and no limit for a sending.
    """

    scheduler: str | TaskiqScheduler
    modules: list[str]
    app_dir: str | None = None
    log_level: LogLevel = LogLevel.INFO
    configure_logging: bool = True
    fs_discover: bool = False
    tasks_pattern: Sequence[str] = DEFAULT_TASKS_PATTERN
    skip_first_run: bool = False
    update_interval: int | None = None
    loop_interval: int | None = None
    send_timeout: float | None = None

    @classmethod
    def from_cli(cls, args: Sequence[str] | None = None) -> SchedulerArgs:
        """Read command line arguments; a bad one ends the process with status 2.

        :param args: the arguments, by default those of the process.
        """
        values = vars(make_parser().parse_args(args))
        values["log_level"] = LogLevel[values["log_level"]]
        values["tasks_pattern"] = values["tasks_pattern"] or DEFAULT_TASKS_PATTERN
        return SchedulerArgs(**values)


def make_parser() -> ArgumentParser:
    """Make what reads the command line of the scheduler."""
    parser = command_parser(
        "scheduler",
        "Send tasks at the moments their schedules name.",
        _EXAMPLES,
    )
    parser.add_argument(
        "scheduler",
        help="where the scheduler, or a function returning it, is found: "
        "`module.path:variable`",
    )
    parser.add_argument(
        "modules",
        nargs=ZERO_OR_MORE,
        help="task modules to import",
    )
    add_import_options(parser)
    add_logging_options(parser)
    _add_timing_options(parser)
    return parser


def _add_timing_options(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("timing")
    group.add_argument(
        "--skip-first-run",
        action="store_true",
        help="do not send cron schedules that match the minute the scheduler is "
        "started in. Intervals and past times are sent at once all the same",
    )
    group.add_argument(
        "--update-interval",
        type=int,
        metavar="SECONDS",
        default=None,
        help="seconds between two readings of the sources. Without it: 60",
    )
    group.add_argument(
        "--loop-interval",
        type=int,
        metavar="SECONDS",
        default=None,
        help="seconds between two looks for schedules to send. Without it: 1",
    )
    group.add_argument(
        "--send-timeout",
        type=float,
        metavar="SECONDS",
        default=None,
        help="seconds one sending may take; it is cancelled then, logged and "
        "repeated later. Without it a sending that hangs holds back its schedule "
        "for ever",
    )
