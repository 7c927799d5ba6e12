"""How `--help` of the subcommands looks: groups, units, defaults, examples."""

from __future__ import annotations

from argparse import SUPPRESS, Action, ArgumentParser, RawDescriptionHelpFormatter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class HelpFormatter(RawDescriptionHelpFormatter):
    """Tells each default that says something, and leaves the examples as they are."""

    def _get_help_string(self, action: Action) -> str | None:
        text = action.help
        if text is None or action.const is not None or not action.option_strings:
            return text
        is_told = "%(default)" in text or "Without it" in text
        default = action.default
        if is_told or default is None or default is False or default in ([], SUPPRESS):
            return text
        return f"{text} (default: %(default)s)"


def command_parser(
    name: str,
    description: str,
    examples: Iterable[tuple[str, str]],
) -> ArgumentParser:
    """Make the parser of one subcommand.

    :param name: the subcommand.
    :param examples: command lines after that name, and what each does.
    """
    return ArgumentParser(
        prog=f"taskiq {name}",
        formatter_class=HelpFormatter,
        description=description,
        epilog=examples_of(name, examples),
    )


def examples_of(name: str, examples: Iterable[tuple[str, str]]) -> str:
    """Write the examples of a subcommand, as `command_parser` takes them."""
    lines = [f"  taskiq {name} {line}\n      {what}" for line, what in examples]
    return "\n".join(["examples:", *lines])
