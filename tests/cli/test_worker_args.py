from __future__ import annotations

import dataclasses
import sys
from typing import Any

import pytest

from taskiq.acks import AcknowledgeType
from taskiq.cli.common_args import LogLevel
from taskiq.cli.worker.args import WorkerArgs, receiver_arg_type

EVERY_FLAG: dict[str, tuple[list[str], object]] = {
    "app_dir": (["--app-dir", "src"], "src"),
    "tasks_pattern": (["-tp", "a.py", "--tasks-pattern", "b.py"], ["a.py", "b.py"]),
    "fs_discover": (["-fsd"], True),
    "configure_logging": (["--no-configure-logging"], False),
    "log_level": (["--log-level", "DEBUG"], LogLevel.DEBUG),
    "log_format": (["--log-format", "%(message)s"], "%(message)s"),
    "workers": (["-w", "3"], 3),
    "max_threadpool_threads": (["--max-threadpool-threads", "4"], 4),
    "max_process_pool_processes": (["--max-process-pool-processes", "5"], 5),
    "no_parse": (["--no-parse"], True),
    "shutdown_timeout": (["--shutdown-timeout", "0.5"], 0.5),
    "reload": (["-r"], True),
    "reload_dirs": (["--reload-dir", "a", "--reload-dir", "b"], ["a", "b"]),
    "no_gitignore": (["--do-not-use-gitignore"], True),
    "max_async_tasks": (["--max-async-tasks", "6"], 6),
    "max_async_tasks_jitter": (["--max-async-tasks-jitter", "7"], 7),
    "receiver": (["--receiver", "a:B"], "a:B"),
    "receiver_arg": (
        ["--receiver_arg", "a=b=c", "--receiver_arg", "d="],
        [("a", "b=c"), ("d", "")],
    ),
    "max_prefetch": (["--max-prefetch", "8"], 8),
    "no_propagate_errors": (["--no-propagate-errors"], True),
    "max_fails": (["--max-fails", "9"], 9),
    "ack_type": (["--ack-type", "Manual"], AcknowledgeType.MANUAL),
    "max_tasks_per_child": (["--max-tasks-per-child", "10"], 10),
    "wait_tasks_timeout": (["--wait-tasks-timeout", "1.5"], 1.5),
    "hardkill_count": (["--hardkill-count", "11"], 11),
    "use_process_pool": (["--use-process-pool"], True),
    "fail_fast": (["--fail-fast"], True),
    "health_file": (["--health-file", "health"], "health"),
    "health_port": (["--health-port", "8080"], 8080),
}


def test_the_defaults_of_the_command_line_are_those_of_the_dataclass() -> None:
    assert WorkerArgs.from_cli(["a:b"]) == WorkerArgs(broker="a:b", modules=[])


def test_every_field_but_the_positional_ones_has_a_flag() -> None:
    fields = [field.name for field in dataclasses.fields(WorkerArgs)]
    assert fields == ["broker", "modules", *EVERY_FLAG]


@pytest.mark.parametrize("field", EVERY_FLAG)
def test_a_flag_sets_its_field_and_no_other(field: str) -> None:
    flags, value = EVERY_FLAG[field]
    expected = dataclasses.replace(WorkerArgs("a:b", ["c", "d"]), **{field: value})  # type: ignore[arg-type]  # any field
    assert WorkerArgs.from_cli(["a:b", "c", "d", *flags]) == expected


def test_the_arguments_of_the_process_are_read_by_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", ["worker", "a:b", "c"])
    assert WorkerArgs.from_cli() == WorkerArgs("a:b", ["c"])


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["a:b", "--ack-type", "never"],
        ["a:b", "--log-level", "info"],
        ["a:b", "--receiver_arg", "no sign"],
        ["a:b", "--workers", "many"],
        ["a:b", "--unknown"],
    ],
)
def test_a_bad_argument_ends_the_process_with_status_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        WorkerArgs.from_cli(arguments)
    assert caught.value.code == 2


@pytest.mark.parametrize(
    ("arguments", "defaults"),
    [(["--max-prefetch", "-1"], None), ([], {"max_prefetch": -1})],
)
def test_max_prefetch_cannot_be_negative(
    arguments: list[str],
    defaults: dict[str, Any] | None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as caught:
        WorkerArgs.from_cli(["a:b", *arguments], defaults)
    assert caught.value.code == 2
    assert "max_prefetch cannot be negative" in capsys.readouterr().err


def test_the_command_line_wins_over_given_defaults() -> None:
    defaults = {
        "workers": 5,
        "log_level": "ERROR",
        "ack_type": "MANUAL",
        "reload": True,
    }
    args = WorkerArgs.from_cli(["a:b", "--workers", "6"], defaults)
    assert args == WorkerArgs(
        broker="a:b",
        modules=[],
        workers=6,
        log_level=LogLevel.ERROR,
        ack_type=AcknowledgeType.MANUAL,
        reload=True,
    )


def test_several_default_patterns_are_all_kept_and_given_ones_replace_them() -> None:
    defaults = {"tasks_pattern": ["a.py", "b.py"]}
    assert WorkerArgs.from_cli(["a:b"], defaults).tasks_pattern == ["a.py", "b.py"]
    args = WorkerArgs.from_cli(["a:b", "-tp", "c.py"], defaults)
    assert args.tasks_pattern == ["c.py"]
    assert defaults == {"tasks_pattern": ["a.py", "b.py"]}


@pytest.mark.parametrize(
    ("defaults", "error"),
    [
        ({"unknown": 1}, TypeError),
        ({"log_level": LogLevel.INFO}, KeyError),
        ({"ack_type": "never"}, ValueError),
    ],
)
def test_bad_defaults_are_refused(
    defaults: dict[str, Any],
    error: type[Exception],
) -> None:
    with pytest.raises(error):
        WorkerArgs.from_cli(["a:b"], defaults)


def test_a_receiver_argument_is_split_at_the_first_equals_sign() -> None:
    assert receiver_arg_type("key=value=more") == ("key", "value=more")
    with pytest.raises(ValueError, match="key=value"):
        receiver_arg_type("key")


def test_the_help_shows_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        WorkerArgs.from_cli(["--help"])
    assert caught.value.code == 0
    assert "(default: when_saved)" in capsys.readouterr().out


def test_a_subclass_gets_plain_arguments_too() -> None:
    class MyArgs(WorkerArgs):
        pass

    assert type(MyArgs.from_cli(["a:b"])) is WorkerArgs
