from __future__ import annotations

import asyncio

import pytest

from taskiq.abc.cmd import TaskiqCMD
from taskiq.cli.common_args import LogLevel
from taskiq.cli.scheduler import cmd
from taskiq.cli.scheduler.args import SchedulerArgs


def test_log_levels_keep_their_order_and_values() -> None:
    assert [(level.name, level.value) for level in LogLevel] == [
        ("INFO", 20),
        ("WARNING", 30),
        ("DEBUG", 10),
        ("ERROR", 40),
        ("CRITICAL", 50),
    ]
    assert LogLevel["FATAL"] is LogLevel.CRITICAL


def test_the_defaults_of_the_command_line_are_those_of_the_class() -> None:
    assert SchedulerArgs.from_cli(["module:name"]) == SchedulerArgs("module:name", [])
    assert SchedulerArgs("module:name", []) == SchedulerArgs(
        scheduler="module:name",
        modules=[],
        app_dir=None,
        log_level=LogLevel.INFO,
        configure_logging=True,
        fs_discover=False,
        tasks_pattern=("**/tasks.py",),
        skip_first_run=False,
        update_interval=None,
        loop_interval=None,
        send_timeout=None,
    )


def test_all_flags_are_read() -> None:
    command_line = (
        "module:name one two --app-dir src --log-level ERROR --no-configure-logging "
        "--fs-discover --tasks-pattern a.py -tp b.py --skip-first-run "
        "--update-interval 5 --loop-interval 2 --send-timeout 1.5"
    )
    assert SchedulerArgs.from_cli(command_line.split()) == SchedulerArgs(
        scheduler="module:name",
        modules=["one", "two"],
        app_dir="src",
        log_level=LogLevel.ERROR,
        configure_logging=False,
        fs_discover=True,
        tasks_pattern=["a.py", "b.py"],
        skip_first_run=True,
        update_interval=5,
        loop_interval=2,
        send_timeout=1.5,
    )
    short = SchedulerArgs.from_cli(["module:name", "-d", "src", "-fsd"])
    assert (short.app_dir, short.fs_discover) == ("src", True)


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["x", "--update-interval", "1.5"],
        ["x", "--loop-interval", "soon"],
        ["x", "--log-level", "info"],
        ["x", "--log-level", "FATAL"],
        ["x", "--unknown"],
    ],
)
def test_a_bad_argument_ends_the_process_with_status_2(flags: list[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        SchedulerArgs.from_cli(flags)
    assert exit_info.value.code == 2


def test_arguments_default_to_those_of_the_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.argv", ["scheduler", "module:name"])
    assert SchedulerArgs.from_cli().scheduler == "module:name"


def test_the_help_says_that_only_cron_schedules_skip_the_first_run(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        SchedulerArgs.from_cli(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "do not send cron schedules that match the minute" in shown
    assert "Intervals and past times are sent at once" in shown


def test_the_command_runs_what_the_arguments_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[SchedulerArgs] = []

    async def run_scheduler(args: SchedulerArgs) -> None:
        assert asyncio.get_running_loop()
        seen.append(args)

    monkeypatch.setattr(cmd, "run_scheduler", run_scheduler)
    command: TaskiqCMD = cmd.SchedulerCMD()
    assert command.exec(["module:name"]) is None
    assert seen == [SchedulerArgs("module:name", [])]
    assert len(command.short_help.splitlines()) == 1
