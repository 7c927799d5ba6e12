"""Arguments shared by the subcommands."""

from __future__ import annotations

import logging
from enum import IntEnum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from argparse import Action, ArgumentParser
    from collections.abc import Callable

#: The files discovery looks for unless told otherwise.
DEFAULT_TASKS_PATTERN: Final = ("**/tasks.py",)


class LogLevel(IntEnum):
    """Log levels offered on the command line, with the values of `logging`."""

    INFO = logging.INFO
    WARNING = logging.WARNING
    DEBUG = logging.DEBUG
    ERROR = logging.ERROR
    CRITICAL = logging.CRITICAL
    FATAL = logging.FATAL


def add_import_options(parser: ArgumentParser) -> None:
    """Add what says where task modules are found.

    Without `--tasks-pattern` its value is `None`, for `DEFAULT_TASKS_PATTERN`.
    """
    group = parser.add_argument_group("finding the application")
    group.add_argument(
        "--app-dir",
        "-d",
        metavar="DIR",
        default=None,
        help="directory to import from besides the current one",
    )
    group.add_argument(
        "--fs-discover",
        "-fsd",
        action="store_true",
        help="look for task modules below the current directory; "
        "see `--tasks-pattern` for which files",
    )
    group.add_argument(
        "--tasks-pattern",
        "-tp",
        metavar="PATTERN",
        action="append",
        default=None,
        help="glob pattern of the files to look for; may be repeated. "
        f"Without it: {', '.join(DEFAULT_TASKS_PATTERN)}",
    )


def add_logging_options(parser: ArgumentParser) -> Callable[..., Action]:
    """Add what says whether and how logging is configured.

    The value of `--log-level` is the name of a level.

    :returns: what adds another argument to their group.
    """
    group = parser.add_argument_group("logging")
    group.add_argument(
        "--log-level",
        default=LogLevel.INFO.name,
        choices=[level.name for level in LogLevel],
        help="least serious lines that are logged",
    )
    group.add_argument(
        "--no-configure-logging",
        action="store_false",
        dest="configure_logging",
        help="leave logging as the application configures it",
    )
    return group.add_argument
