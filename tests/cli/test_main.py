from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import EntryPoint, entry_points

import pytest

import taskiq
from taskiq import __main__ as cli
from taskiq.abc.cmd import TaskiqCMD
from taskiq.cli.commands import load_commands
from taskiq.cli.health.cmd import HealthCMD
from taskiq.cli.inspect.cmd import InspectCMD
from taskiq.cli.scheduler.cmd import SchedulerCMD
from taskiq.cli.worker.cmd import WorkerCMD


class RecordingCMD(TaskiqCMD):
    short_help = "Write down what it gets"
    calls: list[list[str]]

    def exec(self, args: Sequence[str]) -> int | None:
        self.calls.append([sys.argv[0], *args])
        return 7 if "fail" in args else None


class InterruptedCMD(TaskiqCMD):
    def exec(self, args: Sequence[str]) -> int | None:
        raise KeyboardInterrupt


def not_a_class() -> None:
    """What an entry point should not name."""


def entry(name: str, value: str) -> EntryPoint:
    return EntryPoint(name, f"{__name__}:{value}", "taskiq_cli")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    points = [entry("record", "RecordingCMD"), entry("interrupt", "InterruptedCMD")]
    monkeypatch.setattr(cli, "entry_points", lambda **_: points)
    RecordingCMD.calls = []

    def main(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["taskiq", *arguments])
        cli.main()

    return main


def test_the_command_is_found_by_its_name_and_gets_the_rest(
    run: Callable[..., None],
) -> None:
    run("record", "a", "--unknown", "-x", "--help")
    assert RecordingCMD.calls == [["record", "a", "--unknown", "-x", "--help"]]


def test_what_a_command_returns_is_the_exit_status(run: Callable[..., None]) -> None:
    with pytest.raises(SystemExit) as caught:
        run("record", "fail")
    assert caught.value.code == 7


def test_an_interrupted_command_is_no_traceback(run: Callable[..., None]) -> None:
    with pytest.raises(SystemExit) as caught:
        run("interrupt")
    assert caught.value.code == 130


@pytest.mark.parametrize("arguments", [["-V"], ["--version"], ["--version", "record"]])
def test_the_version_is_printed_instead_of_running_anything(
    run: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
) -> None:
    run(*arguments)
    assert capsys.readouterr().out == f"{taskiq.__version__}\n"
    assert not RecordingCMD.calls


def test_without_a_command_the_help_tells_of_all_of_them(
    run: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    run()
    output = capsys.readouterr().out
    assert "2 of them are installed" in output
    assert "record" in output
    assert "Write down what it gets" in output


def test_an_unknown_command_is_an_error(
    run: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as caught:
        run("unknown")
    assert caught.value.code == 2
    assert "unknown" in capsys.readouterr().err


#: The flags of taskiq 0.13.0.
COMMON_FLAGS = (
    "-h --help --app-dir -d --tasks-pattern -tp --fs-discover -fsd --log-level "
    "--no-configure-logging"
)
WORKER_FLAGS = (
    "--receiver --receiver_arg --log-format --workers -w --no-parse "
    "--no-propagate-errors --max-threadpool-threads --shutdown-timeout --reload -r "
    "--reload-dir --do-not-use-gitignore --max-async-tasks --max-async-tasks-jitter "
    "--max-prefetch --max-fails --fail-fast --ack-type --max-tasks-per-child "
    "--wait-tasks-timeout --hardkill-count --use-process-pool "
    "--max-process-pool-processes --health-file --health-port"
)
SCHEDULER_FLAGS = "--skip-first-run --update-interval --loop-interval --send-timeout"


def test_a_command_that_cannot_be_imported_is_printed_and_skipped(
    capsys: pytest.CaptureFixture[str],
) -> None:
    missing = EntryPoint("missing", "no_such_module:CMD", "taskiq_cli")
    commands = load_commands([missing, entry("record", "RecordingCMD")])
    assert list(commands) == ["record"]
    output = capsys.readouterr().out
    assert "no_such_module:CMD" in output
    assert "No module named" in output


def test_other_classes_are_skipped_and_other_objects_refused() -> None:
    other = EntryPoint("other", "decimal:Decimal", "taskiq_cli")
    assert load_commands([other]) == {}
    with pytest.raises(TypeError):
        load_commands([entry("function", "not_a_class")])


def test_its_subcommands_are_installed() -> None:
    found = {point.name: point.load() for point in entry_points(group="taskiq_cli")}
    assert found["worker"] is WorkerCMD
    assert found["scheduler"] is SchedulerCMD
    assert found["health"] is HealthCMD
    assert found["inspect"] is InspectCMD
    assert all(command.short_help for command in found.values())
    [script] = entry_points(group="console_scripts", name="taskiq")
    assert script.load() is cli.main


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        ([], "-h --help -V --version"),
        (["worker"], f"{COMMON_FLAGS} {WORKER_FLAGS}"),
        (["scheduler"], f"{COMMON_FLAGS} {SCHEDULER_FLAGS}"),
    ],
    ids=lambda value: " ".join(["taskiq", *value]) if isinstance(value, list) else "",
)
def test_help_shows_exactly_the_flags_there_are(command: list[str], flags: str) -> None:
    done = subprocess.run(  # noqa: S603 - our own command
        [sys.executable, "-m", "taskiq", *command, "--help"],
        capture_output=True,
        check=True,
        text=True,
    )
    assert done.stdout.startswith(f"usage: {' '.join(['taskiq', *command])} ")
    shown = re.findall(
        r"(?<![\w`-])--?[a-zA-Z][\w-]*", done.stdout.partition("options:")[2]
    )
    assert set(shown) == set(flags.split())
