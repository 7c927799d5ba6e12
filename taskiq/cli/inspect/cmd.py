"""The `inspect` subcommand: its arguments, and what each of its kinds shows."""

from __future__ import annotations

import json
import os
import sys
import time
from argparse import ZERO_OR_MORE, ArgumentParser, ArgumentTypeError
from contextlib import closing
from typing import TYPE_CHECKING, Any, Final

from taskiq.abc.cmd import TaskiqCMD
from taskiq.cli.common_args import add_import_options
from taskiq.cli.finding import WRONG_USE, StartError
from taskiq.cli.health.files import VARIABLE
from taskiq.cli.help import HelpFormatter, command_parser, examples_of
from taskiq.cli.inspect import queues, tasks, workers
from taskiq.cli.inspect.exporter import export
from taskiq.cli.inspect.screen import watch, width_of_terminal
from taskiq.cli.inspect.table import prose, warning

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Sequence

#: Exit status when something could not be asked.
INCOMPLETE: Final = 1

#: Seconds between two screens, unless told otherwise.
_INTERVAL: Final = 2.0


#: By what is shown.
_EXAMPLES: Final = {
    "tasks": (
        ("tasks app:broker", "tasks, settings and warnings; no server is asked"),
        ("tasks app:broker --health-file /run/taskiq", "and how their batches left"),
    ),
    "workers": (
        ("workers /run/taskiq", "of this machine, by their --health-file"),
        ("workers http://worker:8080 --watch", "of others, every two seconds"),
    ),
    "queues": (
        ("queues app:broker --json", "how much waits, for a script"),
        ("queues app:broker --port 9808", "serve it to Prometheus or KEDA"),
    ),
}

_HOW_TO_SEE_BATCHES: Final = (
    "How the last batches left, and why: add --health-file with the directory of a "
    "worker, or its address as http://host:8080."
)


class InspectCMD(TaskiqCMD):
    """Show tasks, workers or queues."""

    short_help = "Show tasks, workers and queues"

    def exec(self, args: Sequence[str]) -> int | None:
        """Show what the arguments name.

        :param args: command line arguments after the name of the command.
        :returns: exit status: `None` for success, 1 if something could not be asked, 2
            for a bad call.
        """
        options = self.make_parser().parse_args(args)
        try:
            view: _View = options.view(options)
            with closing(view):
                if isinstance(view, _Queues) and options.port is not None:
                    return export(view.ask, options.port)
                return _show(view, options)
        except StartError as exc:
            sys.stderr.write(f"taskiq inspect: {exc}\n")
            return exc.status

    def make_parser(self) -> ArgumentParser:
        """Give what reads the arguments."""
        return _parser()


def _show(view: _View, options: Namespace) -> int | None:
    if options.watch is not None:
        watch(lambda: _painted(view, as_json=options.json), options.watch)
        return None
    for line in _painted(view, as_json=options.json):
        sys.stdout.write(f"{line}\n")
    return None if view.is_complete() else INCOMPLETE


def _painted(view: _View, *, as_json: bool) -> list[str]:
    view.look()
    if as_json:
        return [json.dumps(view.record(), default=str)]
    return view.lines(width_of_terminal())


class _View:
    """One thing that is shown: it looks, and then has it in two forms."""

    def look(self) -> None:
        """Look at what is to be shown."""

    def record(self) -> dict[str, Any]:
        """Give what was seen as what `json` writes."""
        raise NotImplementedError

    def lines(self, width: int | None) -> list[str]:
        """Give what was seen in lines for people."""
        raise NotImplementedError

    def is_complete(self) -> bool:
        """Whether everybody answered who was asked."""
        return True

    def close(self) -> None:
        """Let go of what is held to look."""


class _Tasks(_View):
    def __init__(self, options: Namespace) -> None:
        self._application = tasks.application_of(options)
        self._sources: list[str] = options.health_file or _default_sources()
        self._answers = workers.Answers([], [])

    def look(self) -> None:
        self._answers = workers.ask(self._sources)

    def record(self) -> dict[str, Any]:
        record = tasks.as_json(self._application, self._answers.flushes())
        return {**record, "errors": self._answers.errors}

    def lines(self, width: int | None) -> list[str]:
        flushes = self._answers.flushes() if self._answers.fleets else None
        told = tasks.lines(self._application, flushes, width)
        if not self._sources and self._application.has_batches():
            told += ["", *prose(_HOW_TO_SEE_BATCHES, width)]
        for text in self._answers.errors:
            told += warning(text, width)
        return told

    def is_complete(self) -> bool:
        return not self._answers.errors


class _Workers(_View):
    def __init__(self, options: Namespace) -> None:
        self._sources: list[str] = options.sources or _default_sources()
        if not self._sources:
            raise StartError(
                "name the directories or addresses of workers, as "
                f"`taskiq inspect workers DIR http://host:8080`, or set {VARIABLE}.",
                WRONG_USE,
            )
        self._answers = workers.Answers([], [])

    def look(self) -> None:
        self._answers = workers.ask(self._sources)

    def record(self) -> dict[str, Any]:
        return workers.as_json(self._answers, time.time())

    def lines(self, width: int | None) -> list[str]:
        return workers.lines(self._answers, time.time(), width)

    def is_complete(self) -> bool:
        return not self._answers.errors


class _Queues(_View):
    def __init__(self, options: Namespace) -> None:
        self._queues = queues.Queues(tasks.application_of(options).broker)
        self._seen = queues.Seen([], None)

    def ask(self) -> queues.Seen:
        """Ask how much waits now."""
        return self._queues.look()

    def look(self) -> None:
        self._seen = self.ask()

    def record(self) -> dict[str, Any]:
        return queues.as_json(self._seen)

    def lines(self, width: int | None) -> list[str]:
        return queues.lines(self._seen, width)

    def is_complete(self) -> bool:
        return self._seen.error is None

    def close(self) -> None:
        self._queues.close()


def _default_sources() -> list[str]:
    named = os.environ.get(VARIABLE)
    return [named] if named else []


# -- Arguments ------------------------------------------------------------------------


def _parser() -> ArgumentParser:
    parser = command_parser(
        "inspect",
        "Show the tasks of an application, what workers are at, or how much waits.",
        [example for examples in _EXAMPLES.values() for example in examples],
    )
    kinds = parser.add_subparsers(title="what is shown", required=True, metavar="what")
    _add_tasks(kinds)
    _add_workers(kinds)
    _add_queues(kinds)
    return parser


def _add_kind(
    kinds: Any,
    name: str,
    view: Callable[[Namespace], _View],
    text: str,
    more: str,
) -> ArgumentParser:
    parser: ArgumentParser = kinds.add_parser(
        name,
        help=text,
        description=f"Show {text}.\n{more}",
        formatter_class=HelpFormatter,
        epilog=examples_of("inspect", _EXAMPLES[name]),
    )
    parser.set_defaults(view=view)
    parser.add_argument(
        "--json",
        action="store_true",
        help="write one line of JSON, for scripts",
    )
    parser.add_argument(
        "--watch",
        nargs="?",
        type=_interval,
        const=_INTERVAL,
        default=None,
        metavar="SECONDS",
        help="show it again every so many seconds, %(const)s if none are given, until "
        "Ctrl-C",
    )
    return parser


def _add_application(parser: ArgumentParser) -> None:
    parser.add_argument(
        "broker",
        help="where the broker, or a function returning it, is found: "
        "`module.path:variable`",
    )
    parser.add_argument(
        "modules", nargs=ZERO_OR_MORE, default=[], help="task modules to import"
    )
    add_import_options(parser)


def _add_tasks(kinds: Any) -> None:
    parser = _add_kind(
        kinds,
        "tasks",
        _Tasks,
        "the tasks of an application and their settings",
        "The application is imported, and nothing is started: no server is asked.",
    )
    _add_application(parser)
    parser.add_argument(
        "--health-file",
        action="append",
        metavar="DIR",
        help="directory of a worker's heartbeats, or address as http://host:8080, to "
        f"show how batches left; may be repeated. By default that of {VARIABLE}",
    )


def _add_workers(kinds: Any) -> None:
    parser = _add_kind(
        kinds,
        "workers",
        _Workers,
        "what the processes of workers are at",
        "Their heartbeats are read; the application is not imported.",
    )
    parser.add_argument(
        "sources",
        nargs=ZERO_OR_MORE,
        metavar="worker",
        help="directory that a worker writes to (its --health-file), or its address "
        "(its --health-port) as http://host:8080: of a name that stands for several "
        f"machines each is asked. By default the directory that {VARIABLE} names",
    )


def _add_queues(kinds: Any) -> None:
    parser = _add_kind(
        kinds,
        "queues",
        _Queues,
        "how many messages wait in the queues of a broker",
        "The application is imported and not started; the server of the broker is "
        "asked.",
    )
    _add_application(parser)
    parser.add_argument(
        "--port",
        type=int,
        default=None,
        help="serve the numbers instead, for Prometheus at /metrics and as JSON at "
        "/queues, until told to end",
    )


def _interval(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0
    if seconds > 0:
        return seconds
    raise ArgumentTypeError(f"{text!r} is no number of seconds above 0")
