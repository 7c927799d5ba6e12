"""The subcommands that are installed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from taskiq.abc.cmd import TaskiqCMD

if TYPE_CHECKING:
    from collections.abc import Iterable
    from importlib.metadata import EntryPoint

#: Entry points of this group are subcommands: the name, and a class of `TaskiqCMD`.
GROUP: Final = "taskiq_cli"


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
