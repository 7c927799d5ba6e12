"""Subcommands of the `taskiq` command."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Sequence


class TaskiqCMD(ABC):
    """A subcommand, found through the entry-point group `taskiq_cli`."""

    #: One line for the list of commands.
    short_help = ""

    @abstractmethod
    def exec(self, args: Sequence[str]) -> int | None:
        """Run the command.

        :param args: command line arguments after the name of the command.
        :returns: exit status of the process, `None` for success.
        """

    def make_parser(self) -> ArgumentParser | None:
        """Give what reads the arguments, from which shells complete them.

        :returns: a new parser; `None` if there is none, and nothing is completed.
        """
        return None
