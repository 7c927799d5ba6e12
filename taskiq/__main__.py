"""The `taskiq` command, also run as `python -m taskiq`."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Final

from taskiq import __version__
from taskiq.abc.cmd import TaskiqCMD

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

#: Entry points of this group are subcommands: the name, and a class of `TaskiqCMD`.
_GROUP: Final = "taskiq_cli"

#: What shells report for a command that was interrupted: 128 + SIGINT.
_INTERRUPTED: Final = 130


def main() -> None:
    """Run the subcommand the command line names.

    :raises SystemExit: with what the subcommand returned, 2 for a bad command line.
    """
    commands = load_commands(entry_points(group=_GROUP))
    parser = _parser(commands)
    args, _ = parser.parse_known_args()
    if args.version:
        print(__version__)  # noqa: T201 - the output of the command
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


def load_commands(points: Iterable[EntryPoint]) -> dict[str, TaskiqCMD]:
    """Instantiate the subcommands; one that cannot be imported is printed and skipped.

    :param points: entry points; what is no subclass of `TaskiqCMD` is skipped.
    :returns: the commands by name.
    :raises TypeError: an entry point is no class.
    """
    commands: dict[str, TaskiqCMD] = {}
    for point in points:
        try:
            command = point.load()
        except ImportError as exc:
            message = f"Could not load the command {point.value}. Cause: {exc}"
            print(message)  # noqa: T201 - logging is the subcommand's to configure
            continue
        if issubclass(command, TaskiqCMD):
            commands[point.name] = command()
    return commands


def _parser(commands: Mapping[str, TaskiqCMD]) -> ArgumentParser:
    parser = ArgumentParser(
        prog="taskiq",
        formatter_class=RawDescriptionHelpFormatter,
        description="The command line of taskiq, a distributed task queue.\n"
        "Its subcommands are plugins, found through their entry points;\n"
        f"{len(commands)} of them are installed.",
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
