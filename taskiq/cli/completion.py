"""The `completion` subcommand: a script with which a shell completes the others.

The scripts are made of the parsers of the commands that are installed, and run nothing
when a key is pressed.
"""

from __future__ import annotations

from argparse import PARSER
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Final, NamedTuple, cast

from taskiq.abc.cmd import TaskiqCMD
from taskiq.cli.commands import GROUP, load_commands
from taskiq.cli.help import command_parser

if TYPE_CHECKING:
    from argparse import Action, ArgumentParser
    from collections.abc import Callable, Iterable, Mapping, Sequence

_EXAMPLES: Final = (
    ("bash >> ~/.bashrc", "bash: from the next shell on"),
    ("zsh > ~/.zfunc/_taskiq", "zsh: in a directory of $fpath, before `compinit`"),
    ("fish > ~/.config/fish/completions/taskiq.fish", "fish"),
)


class Option(NamedTuple):
    """An option of a command.

    :ivar flags: what it is written as.
    :ivar text: what it does.
    :ivar takes_value: whether a value follows.
    :ivar choices: the values there are, if they are known.
    """

    flags: tuple[str, ...]
    text: str
    takes_value: bool
    choices: tuple[str, ...]


class Command(NamedTuple):
    """A subcommand."""

    name: str
    text: str
    options: tuple[Option, ...]
    choices: tuple[str, ...]


class CompletionCMD(TaskiqCMD):
    """Print a script for a shell."""

    short_help = "Print a script that completes commands and options in a shell"

    def exec(self, args: Sequence[str]) -> int | None:
        """Print the script.

        :param args: the name of the shell.
        :returns: `None`, for success.
        """
        shell: str = self.make_parser().parse_args(args).shell
        commands = describe(load_commands(entry_points(group=GROUP)))
        print(SHELLS[shell](commands))  # noqa: T201 - the output of the command
        return None

    def make_parser(self) -> ArgumentParser:
        """Give what reads the arguments."""
        parser = command_parser("completion", f"{self.short_help}.", _EXAMPLES)
        parser.add_argument("shell", choices=list(SHELLS), help="which shell it is for")
        return parser


def describe(commands: Mapping[str, TaskiqCMD]) -> list[Command]:
    """Read what can be completed from the parsers of commands."""
    described: list[Command] = []
    for name, command in sorted(commands.items()):
        # A class of another package need not know of this method.
        make = getattr(command, "make_parser", None)
        parser: ArgumentParser | None = None if make is None else make()
        actions = [] if parser is None else _actions_of(parser)
        options = tuple(
            Option(
                flags=tuple(action.option_strings),
                text=_first_sentence(action.help or ""),
                takes_value=action.nargs != 0,
                choices=_choices_of(action),
            )
            for action in actions
            if action.option_strings
        )
        choices = tuple(
            choice
            for action in actions
            if not action.option_strings
            for choice in _choices_of(action)
        )
        described.append(Command(name, command.short_help, options, choices))
    return described


def _actions_of(parser: ArgumentParser) -> list[Action]:
    """Give the arguments of a command, and the options of what it does or shows."""
    actions = list(parser._actions)  # noqa: SLF001 - no other way
    for action in parser._actions:  # noqa: SLF001
        if action.nargs == PARSER:
            kinds = cast("Mapping[str, ArgumentParser]", action.choices)
            actions += [
                own
                for kind in kinds.values()
                for own in _actions_of(kind)
                if own.option_strings
            ]
    return list(
        {str(each.option_strings or id(each)): each for each in actions}.values()
    )


def _choices_of(action: Action) -> tuple[str, ...]:
    """List the values of an argument, also where only its help names them."""
    shown = action.metavar
    if not action.choices and isinstance(shown, str) and shown.startswith("{"):
        return tuple(shown.strip("{}").split(","))
    return tuple(map(str, action.choices or ()))


def _first_sentence(text: str) -> str:
    return text.replace("%%", "%").split(". ")[0].split(";")[0].rstrip(".")


def _words(words: Iterable[str]) -> str:
    return _quoted(" ".join(words))


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def bash(commands: Sequence[Command]) -> str:
    """Make the script for bash, 4 and later."""
    names = _words([*(command.name for command in commands), "--help", "--version"])
    cases: list[str] = []
    for command in commands:
        values = "".join(
            f"        {'|'.join(option.flags)}) "
            f'COMPREPLY=($(compgen -W {_words(option.choices)} -- "$cur")); return;;\n'
            for option in command.options
            if option.choices
        )
        files = "|".join(
            flag
            for option in command.options
            if option.takes_value and not option.choices
            for flag in option.flags
        )
        if files:
            values += (
                f'        {files}) COMPREPLY=($(compgen -f -- "$cur")); return;;\n'
            )
        flags = [flag for option in command.options for flag in option.flags]
        values = f'      case "$prev" in\n{values}      esac\n' if values else ""
        cases.append(
            f"    {command.name})\n{values}"
            f"      words={_words([*command.choices, *flags])};;\n",
        )
    return (
        "_taskiq() {\n"
        '  local cur="${COMP_WORDS[COMP_CWORD]}" prev="${COMP_WORDS[COMP_CWORD-1]}"\n'
        "  local words=''\n"
        '  if [ "$COMP_CWORD" -eq 1 ]; then\n'
        f"    words={names}\n"
        "  else\n"
        '    case "${COMP_WORDS[1]}" in\n' + "".join(cases) + "    esac\n"
        "  fi\n"
        '  COMPREPLY=($(compgen -W "$words" -- "$cur"))\n'
        "}\n"
        "complete -o default -F _taskiq taskiq"
    )


def zsh(commands: Sequence[Command]) -> str:
    """Make the script for zsh."""

    def escaped(text: str) -> str:
        for special in "\\[]:":
            text = text.replace(special, "\\" + special)
        return text

    names = " ".join(
        _quoted(f"{command.name}:{escaped(command.text)}") for command in commands
    )
    cases: list[str] = []
    for command in commands:
        specs: list[str] = []
        for option in command.options:
            value = f":value:({' '.join(option.choices)})" if option.choices else ""
            if option.takes_value and not option.choices:
                value = ":value:_files"
            specs += [
                _quoted(f"*{flag}[{escaped(option.text)}]{value}")
                for flag in option.flags
            ]
        rest = f"({' '.join(command.choices)})" if command.choices else "_files"
        specs.append(_quoted(f"*:argument:{rest}"))
        arguments = " \\\n        ".join(specs)
        cases.append(f"    {command.name})\n      _arguments {arguments};;\n")
    return (
        "#compdef taskiq\n"
        "_taskiq() {\n"
        "  local -a commands\n"
        f"  commands=({names})\n"
        "  if (( CURRENT == 2 )); then\n"
        "    _describe command commands\n"
        "    return\n"
        "  fi\n"
        "  local name=$words[2]\n"
        "  shift words\n"
        "  (( CURRENT-- ))\n"
        "  case $name in\n" + "".join(cases) + "  esac\n"
        "}\n"
        'if [ "$funcstack[1]" = _taskiq ]; then _taskiq "$@"; '
        "else compdef _taskiq taskiq; fi"
    )


def fish(commands: Sequence[Command]) -> str:
    """Make the script for fish."""
    lines: list[str] = []
    for command in commands:
        lines.append(
            "complete -c taskiq -n __fish_use_subcommand "
            f"-a {command.name} -d {_for_fish(command.text)}",
        )
        where = f"-n '__fish_seen_subcommand_from {command.name}'"
        if command.choices:
            choices = _for_fish(" ".join(command.choices))
            lines.append(f"complete -c taskiq {where} -f -a {choices}")
        for option in command.options:
            flags = " ".join(map(_fish_flag, option.flags))
            value = " -r" if option.takes_value else ""
            if option.choices:
                value += f" -f -a {_for_fish(' '.join(option.choices))}"
            text = _for_fish(option.text)
            lines.append(f"complete -c taskiq {where} {flags}{value} -d {text}")
    return "\n".join(lines)


def _fish_flag(flag: str) -> str:
    if flag.startswith("--"):
        return f"-l {flag[2:]}"
    return f"-s {flag[1:]}" if len(flag) == 2 else f"-o {flag[1:]}"  # noqa: PLR2004


def _for_fish(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


#: What makes the script of each shell.
SHELLS: Final[Mapping[str, Callable[[Sequence[Command]], str]]] = {
    "bash": bash,
    "zsh": zsh,
    "fish": fish,
}
