"""The `taskiq` command, also run as `python -m taskiq`."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from importlib import import_module
from typing import TYPE_CHECKING, Final

import taskiq
from taskiq.cli.commands import GROUP, load_commands

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from importlib.metadata import EntryPoint

    from taskiq.abc.cmd import TaskiqCMD

#: A subcommand that a probe runs every few seconds: it is run without looking for any
#: other, which would take ten times as long as itself.
_PROBE: Final = "health"

#: What shells report for a command that was interrupted: 128 + SIGINT.
_INTERRUPTED: Final = 130


def main() -> None:
    """Run the subcommand the command line names.

    :raises SystemExit: with what the subcommand returned, 2 for a bad command line.
    """
    if sys.argv[1:2] == [_PROBE]:
        commands = {_PROBE: _probe()}
    else:
        commands = load_commands(entry_points(group=GROUP))
    parser = _parser(commands)
    args, _ = parser.parse_known_args()
    if args.version:
        print(taskiq.__version__)  # noqa: T201 - the output of the command
        return
    if args.subcommand is None:
        parser.print_help()
        return
    # The subcommand reads the rest, and its usage lines start with its own name.
    sys.argv.pop(0)
    try:
        status = commands[args.subcommand].exec(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
    if status is not None:
        sys.exit(status)


def entry_points(group: str) -> Iterable[EntryPoint]:
    """Find the entry points of a group, in every distribution that is installed."""
    from importlib import metadata  # noqa: PLC0415 - a probe does not wait for it

    return metadata.entry_points(group=group)


def _probe() -> TaskiqCMD:
    command: TaskiqCMD = import_module("taskiq.cli.health.cmd").HealthCMD()
    return command


def _parser(commands: Mapping[str, TaskiqCMD]) -> ArgumentParser:
    parser = ArgumentParser(
        prog="taskiq",
        formatter_class=RawDescriptionHelpFormatter,
        description="The command line of taskiq, a distributed task queue.\n"
        "Its subcommands are plugins, found through their entry points;\n"
        f"{len(commands)} of them are installed.",
        epilog="`taskiq COMMAND --help` tells of one command, with examples.\n"
        'eval "$(taskiq completion bash)" completes its words; zsh and fish, too.',
    )
    parser.add_argument(
        "-V",
        "--version",
        action="store_true",
        help="print the version of taskiq",
    )
    subparsers = parser.add_subparsers(
        title="available subcommands",
        dest="subcommand",
        metavar="subcommand",
    )
    for name, command in commands.items():
        # Help, too, is left to the subcommand.
        subparsers.add_parser(name, help=command.short_help, add_help=False)
    return parser


if __name__ == "__main__":
    main()
