"""What `--help` says, and what a shell completes."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from taskiq.abc.cmd import TaskiqCMD
from taskiq.cli.commands import GROUP, load_commands
from taskiq.cli.completion import SHELLS, describe
from taskiq.cli.inspect.cmd import InspectCMD
from taskiq.cli.scheduler.cmd import SchedulerCMD
from taskiq.cli.worker.cmd import WorkerCMD

CLI_PAGE = Path(__file__).parents[2] / "docs" / "guide" / "cli.md"


class OtherCMD(TaskiqCMD):
    """A plugin's, with what shells take for something else."""

    short_help = "It's another: $HOME [1] `pwd`"

    def exec(self, args: Sequence[str]) -> int | None:
        raise NotImplementedError

    def make_parser(self) -> ArgumentParser:
        parser = ArgumentParser()
        parser.add_argument("kind", choices=["some", "more"])
        parser.add_argument("--own", help="what's [this]: 100%%; and more")
        return parser


class SilentCMD(TaskiqCMD):
    """A plugin's, which tells nothing of its arguments."""

    def exec(self, args: Sequence[str]) -> int | None:
        raise NotImplementedError


OURS = ("completion", "dead", "health", "inspect", "scheduler", "worker")

COMMANDS = {
    "worker": WorkerCMD(),
    "scheduler": SchedulerCMD(),
    "inspect": InspectCMD(),
    "other": OtherCMD(),
    "silent": SilentCMD(),
}


def taskiq(*arguments: str) -> str:
    done = subprocess.run(  # noqa: S603 - our own command
        [sys.executable, "-m", "taskiq", *arguments],
        check=True,
        capture_output=True,
        text=True,
        env={"PATH": "", "COLUMNS": "100", "NO_COLOR": "1"},
    )
    return done.stdout


def test_each_command_has_one_line_and_its_page_shows_them() -> None:
    page = CLI_PAGE.read_text("utf-8")
    output = taskiq("--help")
    for name in OURS:
        [line] = re.findall(rf"^    {name} +\S.*$", output, re.MULTILINE)
        assert line in page


@pytest.mark.parametrize("command", ["worker", "scheduler"])
def test_help_has_groups_units_defaults_and_examples(command: str) -> None:
    output = taskiq(command, "--help")
    assert output.startswith(f"usage: taskiq {command} ")
    assert "(default: INFO)" in output
    assert "None)" not in output
    assert "(default: False)" not in output
    for title in ("finding the application:", "logging:", "examples:"):
        assert f"\n{title}\n" in output
    assert f"\n  taskiq {command} app." in output
    assert " SECONDS" in output


@pytest.mark.parametrize("what", ["list", "show", "retry", "drop"])
def test_help_on_dead_letters_has_defaults_and_examples(what: str) -> None:
    output = taskiq("dead", what, "--help")
    assert f"\nexamples:\n  taskiq dead {what} app:broker" in output
    assert f"\n  taskiq dead {what} app:broker" in taskiq("dead", "--help")
    assert ("--limit LETTERS" in output and "(default: 50)" in output) == (
        what == "list"
    )
    assert "None)" not in output


@pytest.mark.parametrize(
    "command",
    [
        *((name,) for name in OURS),
        *(("inspect", kind) for kind in ("tasks", "workers", "queues")),
    ],
    ids=" ".join,
)
def test_every_command_has_examples_of_itself_that_it_can_read(
    command: tuple[str, ...],
) -> None:
    _, _, examples = taskiq(*command, "--help").partition("\nexamples:\n")
    name = command[0]
    lines = re.findall(rf"^  taskiq {name} (.+)$", examples, re.MULTILINE)
    assert lines
    parser = load_commands(entry_points(group=GROUP))[name].make_parser()
    assert parser is not None
    for line in lines:
        assert line.startswith(" ".join(command[1:]))
        parser.parse_args(shlex.split(re.sub(r" > .*| >> .*", "", line)))


@pytest.mark.parametrize(
    ("command", "flag"),
    [("dead", "--reason"), ("health", "--live"), ("inspect", "--watch")],
)
def test_the_options_of_every_command_can_be_completed(command: str, flag: str) -> None:
    described = describe(load_commands(entry_points(group=GROUP)))
    [found] = [each for each in described if each.name == command]
    assert flag in [each for option in found.options for each in option.flags]


def test_a_default_of_zero_is_told() -> None:
    assert re.search(
        r"--max-prefetch N [^-]*\(default: 0\)", taskiq("worker", "--help")
    )


def test_a_script_is_printed_for_each_shell() -> None:
    for shell in SHELLS:
        assert "--wait-tasks-timeout" in taskiq("completion", shell).replace(
            "-l ", "--"
        )


#: Prints what bash completes for the words it is given; the last one is typed so far.
COMPLETE = """
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
_taskiq
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.mark.skipif(not shutil.which("bash"), reason="there is no bash")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["w"], ["worker"]),
        (
            [""],
            [
                "inspect",
                "other",
                "scheduler",
                "silent",
                "worker",
                "--help",
                "--version",
            ],
        ),
        (["worker", "--wait"], ["--wait-tasks-timeout"]),
        (["worker", "--log-level", "D"], ["DEBUG"]),
        (
            ["worker", "app:broker", "--ack-type", "when_"],
            ["when_received", "when_executed", "when_saved"],
        ),
        (["scheduler", "--send"], ["--send-timeout"]),
        (["other", ""], ["some", "more", "-h", "--help", "--own"]),
        (["inspect", "q"], ["queues"]),
        (["inspect", "queues", "--wa"], ["--watch"]),
        (["inspect", "queues", "--po"], ["--port"]),
        (["silent", ""], []),
    ],
)
def test_bash_completes_commands_options_and_values(
    words: list[str],
    expected: list[str],
) -> None:
    script = SHELLS["bash"](describe(COMMANDS)) + COMPLETE
    done = subprocess.run(  # noqa: S603 - our own script
        ["bash", "-c", script, "-", "taskiq", *words],  # noqa: S607 - the one in PATH
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == expected
    assert not done.stderr


# Of those that are installed: bash nearly everywhere, the others on few machines.
@pytest.mark.parametrize("shell", sorted(filter(shutil.which, SHELLS)))
def test_shells_can_read_their_script(shell: str) -> None:
    script = SHELLS[shell](describe(COMMANDS))
    subprocess.run(  # noqa: S603 - our own script
        [shell, "-n"], input=script, check=True, capture_output=True, text=True
    )


def test_what_shells_take_for_something_else_is_quoted() -> None:
    fish = SHELLS["fish"](describe(COMMANDS))
    assert r"-a other -d 'It\'s another: $HOME [1] `pwd`'" in fish
    assert r"-l own -r -d 'what\'s [this]: 100%'" in fish
    zsh = SHELLS["zsh"](describe(COMMANDS))
    assert r"'other:It'\''s another\: $HOME \[1\] `pwd`'" in zsh
    assert r"'*--own[what'\''s \[this\]\: 100%]:value:_files'" in zsh
