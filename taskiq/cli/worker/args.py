"""Arguments of the worker command."""

from __future__ import annotations

import os
from argparse import (
    ZERO_OR_MORE,
    ArgumentParser,
    ArgumentTypeError,
    Namespace,
)
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from taskiq.acks import AcknowledgeType, parse_acknowledge_type
from taskiq.cli.common_args import (
    DEFAULT_TASKS_PATTERN,
    LogLevel,
    add_import_options,
    add_logging_options,
)
from taskiq.cli.health.files import VARIABLE
from taskiq.cli.help import command_parser

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_LOG_FORMAT: Final = (
    "[%(asctime)s][%(name)s][%(levelname)-7s][%(processName)s] %(message)s"
)

_EXAMPLES: Final = (
    ("app.tasks:broker", "two processes, each with up to 100 tasks at once"),
    (
        "app.broker:broker app.mails.tasks --workers 4 --max-async-tasks 20",
        "import the tasks of another module, and run more processes with less each",
    ),
    (
        "app.tasks:broker --wait-tasks-timeout 25 --log-format json",
        "in production: give running tasks 25 seconds at a stop",
    ),
    ("app.tasks:broker --reload", "while developing: restart when a file changes"),
)


def receiver_arg_type(string: str) -> tuple[str, str]:
    """Split `key=value` at its first equals sign.

    :returns: the key and the value.
    :raises ValueError: there is no equals sign.
    """
    key, sign, value = string.partition("=")
    if not sign:
        raise ValueError(f"Invalid value: {string!r} is not of the form key=value")
    return key, value


@dataclass
class WorkerArgs:
    """What workers are run with.

    Timeouts are in seconds; `None` stands for no limit, or for the default of the
    standard library where it is about the size of a pool.
    """

    broker: str
    modules: list[str]
    app_dir: str | None = None
    tasks_pattern: Sequence[str] = DEFAULT_TASKS_PATTERN
    fs_discover: bool = False
    configure_logging: bool = True
    log_level: LogLevel = LogLevel.INFO
    log_format: str = _LOG_FORMAT
    workers: int = 2
    max_threadpool_threads: int | None = None
    max_process_pool_processes: int | None = None
    no_parse: bool = False
    shutdown_timeout: float = 5
    reload: bool = False
    reload_dirs: list[str] = field(default_factory=list[str])
    no_gitignore: bool = False
    max_async_tasks: int = 100
    max_async_tasks_jitter: int = 0
    receiver: str = "taskiq.receiver:Receiver"
    receiver_arg: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    max_prefetch: int = 0
    no_propagate_errors: bool = False
    max_fails: int = -1
    ack_type: AcknowledgeType = AcknowledgeType.WHEN_SAVED
    max_tasks_per_child: int | None = None
    wait_tasks_timeout: float | None = None
    hardkill_count: int = 3
    use_process_pool: bool = False
    fail_fast: bool = False
    health_file: str | None = None
    health_port: int | None = None

    @classmethod
    def from_cli(
        cls,
        args: Sequence[str] | None = None,
        defaults: dict[str, Any] | None = None,
    ) -> WorkerArgs:
        """Read command line arguments; a bad one ends the process with status 2.

        :param args: the arguments, by default those of the process.
        :param defaults: values by field for what the arguments leave open; the log
            level is given by its name.
        :raises TypeError: `defaults` has an unknown field.
        :raises KeyError: `defaults` has an unknown log level.
        :raises ValueError: `defaults` has an unknown acknowledge type.
        """
        preset = dict(defaults or {})
        # Given patterns replace the others; argparse would add to them.
        preset_patterns = preset.pop("tasks_pattern", None) or DEFAULT_TASKS_PATTERN
        parser = make_parser()
        values = vars(parser.parse_args(args, Namespace(**preset)))
        if values["max_prefetch"] < 0:
            parser.error("argument --max-prefetch: max_prefetch cannot be negative.")
        values["health_file"] = values["health_file"] or None
        values["log_level"] = LogLevel[values["log_level"]]
        values["ack_type"] = parse_acknowledge_type(values["ack_type"])
        values["tasks_pattern"] = values["tasks_pattern"] or preset_patterns
        return WorkerArgs(**values)


def _ack_type(string: str) -> AcknowledgeType:
    try:
        return parse_acknowledge_type(string)
    except ValueError as exc:
        raise ArgumentTypeError(str(exc)) from exc


def _receiver_arg(string: str) -> tuple[str, str]:
    try:
        return receiver_arg_type(string)
    except ValueError as exc:
        raise ArgumentTypeError(str(exc)) from exc


def make_parser() -> ArgumentParser:
    """Make what reads the command line of the worker."""
    parser = command_parser(
        "worker",
        "Run worker processes that execute the tasks of a broker.",
        _EXAMPLES,
    )
    parser.add_argument(
        "broker",
        help="where the broker, or a function returning it, is found: "
        "`module.path:variable`",
    )
    parser.add_argument(
        "modules",
        nargs=ZERO_OR_MORE,
        default=[],
        help="task modules to import",
    )
    add_import_options(parser)
    add_logging_options(parser)(
        "--log-format",
        metavar="FORMAT",
        default=_LOG_FORMAT,
        help="format of Python's logging, or `json` for an object of JSON in each "
        "line. Without it: when, who, how serious, which process, and what",
    )
    _add_process_options(parser)
    _add_reload_options(parser)
    _add_receiver_options(parser)
    _add_ending_options(parser)
    _add_health_options(parser)
    return parser


def _add_process_options(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("processes")
    group.add_argument(
        "--workers",
        "-w",
        type=int,
        metavar="N",
        default=2,
        help="number of worker processes",
    )
    group.add_argument(
        "--max-fails",
        type=int,
        metavar="N",
        default=-1,
        help="most failures of worker processes that are tolerated: at the next one "
        "all are stopped, with exit status 255. Without it, or below 1: any number",
    )
    group.add_argument(
        "--fail-fast",
        action="store_true",
        help="end when the broker cannot be started at first, instead of trying again",
    )
    group.add_argument(
        "--max-tasks-per-child",
        type=int,
        metavar="N",
        default=None,
        help="replace a worker process after so many tasks. Without it: never",
    )
    _add_pool_options(group.add_argument)


def _add_pool_options(add: Callable[..., object]) -> None:
    add(
        "--max-threadpool-threads",
        type=int,
        metavar="N",
        default=None,
        help="most threads of a worker process for functions that are not async. "
        "Without it: as Python chooses",
    )
    add(
        "--use-process-pool",
        action="store_true",
        help="run functions that are not async in processes instead of threads",
    )
    add(
        "--max-process-pool-processes",
        type=int,
        metavar="N",
        default=None,
        help="most processes of that pool. Without it: as Python chooses",
    )


def _add_reload_options(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("reloading")
    group.add_argument(
        "--reload",
        "-r",
        action="store_true",
        help="restart the worker when a file changes; needs the extra `reload`",
    )
    group.add_argument(
        "--reload-dir",
        action="append",
        default=[],
        dest="reload_dirs",
        metavar="DIR",
        help="directory to watch for changes; may be repeated. "
        "Without it: the current directory",
    )
    group.add_argument(
        "--do-not-use-gitignore",
        action="store_true",
        dest="no_gitignore",
        help="restart on changes of files that git ignores, too",
    )


def _add_receiver_options(parser: ArgumentParser) -> None:
    _add_limits(parser)
    group = parser.add_argument_group("what is run, and how")
    group.add_argument(
        "--receiver",
        metavar="MODULE:CLASS",
        default="taskiq.receiver:Receiver",
        help="where the class of the receiver is found: `module.path:variable`",
    )
    group.add_argument(
        "--receiver_arg",
        action="append",
        type=_receiver_arg,
        metavar="KEY=VALUE",
        default=[],
        help="keyword argument for the receiver, `key=value`; may be repeated",
    )
    group.add_argument(
        "--ack-type",
        type=_ack_type,
        default=AcknowledgeType.WHEN_SAVED.value,
        metavar="{" + ",".join(member.value for member in AcknowledgeType) + "}",
        help="when messages are acknowledged",
    )
    group.add_argument(
        "--no-parse",
        action="store_true",
        help="do not cast arguments to the types of the parameters",
    )
    group.add_argument(
        "--no-propagate-errors",
        action="store_true",
        help="do not raise errors of tasks in generator dependencies",
    )


def _add_limits(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("how much runs at once in a process")
    group.add_argument(
        "--max-async-tasks",
        type=int,
        metavar="N",
        default=100,
        help="most tasks at once in a worker process",
    )
    group.add_argument(
        "--max-async-tasks-jitter",
        type=int,
        metavar="N",
        default=0,
        help="add a random number up to this one to `--max-async-tasks`, so that not "
        "all processes end at the same time",
    )
    group.add_argument(
        "--max-prefetch",
        type=int,
        metavar="N",
        default=0,
        help="most messages that wait in a worker process beyond those that run",
    )


def _add_ending_options(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("stopping")
    group.add_argument(
        "--wait-tasks-timeout",
        type=float,
        metavar="SECONDS",
        default=None,
        help="most seconds to wait for running tasks before exiting. Without it: "
        "until they have ended",
    )
    group.add_argument(
        "--shutdown-timeout",
        type=float,
        metavar="SECONDS",
        default=5,
        help="most seconds for shutting down the broker",
    )
    group.add_argument(
        "--hardkill-count",
        type=int,
        metavar="N",
        default=3,
        help="number of termination signals to the main process before performing a "
        "hard kill: so many wait for running tasks, the next one does not",
    )


def _add_health_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--health-file",
        metavar="DIR",
        default=os.environ.get(VARIABLE),
        help="directory in which each process writes a heartbeat every second, for "
        "`taskiq health` and `taskiq inspect workers`; for this worker alone. By "
        f"default that of the variable {VARIABLE}",
    )
    parser.add_argument(
        "--health-port",
        metavar="PORT",
        type=int,
        default=None,
        help="port at which probes are answered over HTTP: /live and /ready",
    )
