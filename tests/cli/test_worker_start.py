"""What `taskiq worker` says when it cannot start, and when it ends for it."""

from __future__ import annotations

import json
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import pytest

from taskiq.cli.finding import (
    RegistrationError,
    StartError,
    check_modules,
    find_broker,
    find_object,
    registration_told,
)
from tests.support.commands import RunningCommand

Run: TypeAlias = Callable[..., RunningCommand]

APP = """
import asyncio
from taskiq import InMemoryBroker, async_shared_broker as shared

memory = InMemoryBroker()

class QuietBroker(InMemoryBroker):
    async def listen(self):
        await asyncio.Event().wait()
        yield b""

class AwayBroker(QuietBroker):
    async def startup(self):
        await super().startup()
        raise ConnectionError("connection\\nrefused")

class CrashingBroker(QuietBroker):
    async def startup(self):
        import os
        os._exit(3)

broker = QuietBroker()
crashing = CrashingBroker()
away = AwayBroker()
nothing = 5

def make(url): return broker
def make_none(): return None
async def make_later(): return broker
"""

MISTYPED = """
from taskiq import InMemoryBroker

broker = InMemoryBroker()

@broker.task("shop:store", batch=True, batchsize=5)
async def store(items: list[int]) -> list[int]:
    return items
"""
#: Where Python sees the decorator: before 3.11 in the line of what it decorates.
LINE = 6 if sys.version_info >= (3, 11) else 7
TOLD = (
    f"{{app}}/{{module}}.py, line {LINE}: Cannot register task shop:store: batchsize= "
    "would be a label that nothing reads; did you mean batch_size=?"
)

pytestmark = pytest.mark.skipif(
    sys.platform == "win32",
    reason="Windows has no signals to send to other processes",
)


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Path]:
    """A directory with applications, whose names no other test imports."""
    package = tmp_path / "shop_of_start"
    package.mkdir()
    (package / "__init__.py").touch()
    for module in (package / "tasks.py", tmp_path / "app_of_start.py"):
        module.write_text(APP)
    (tmp_path / "broken_of_start.py").write_text("import a_missing_library")
    (tmp_path / "mistyped_of_start.py").write_text(MISTYPED)
    (tmp_path / "dying_of_start.py").write_text("import os; os._exit(7)")
    yield tmp_path
    for name in [name for name in sys.modules if "of_start" in name]:
        del sys.modules[name]


@pytest.fixture
def run(app: Path) -> Iterator[Run]:
    started: list[RunningCommand] = []

    def start(*options: str) -> RunningCommand:
        command = RunningCommand(["-m", "taskiq", "worker", *options], app, {})
        started.append(command)
        return command

    yield start
    for command in started:
        command.clean_up()


def errors(command: RunningCommand) -> list[str]:
    """What it says at ERROR; or a traceback, line by line."""
    return [
        re.sub(r"^.*\[MainProcess\] ", "", line)
        for line in command.lines
        if "[INFO" not in line and " ended: exit code " not in line
    ]


# -- What is named wrongly ---------------------------------------------------------

WRONG = [
    ("app_of_start", "it must be written module:variable."),
    (
        "ap_of_start:broker",
        "there is no module 'ap_of_start' in {app} nor among the installed packages. "
        "Did you mean 'app_of_start'?",
    ),
    (
        "shop_of_start.task:broker",
        "there is no module 'shop_of_start.task' in {app}/shop_of_start. "
        "Did you mean 'shop_of_start.tasks'?",
    ),
    (
        "app_of_start:brokre",
        "the module 'app_of_start' ({app}/app_of_start.py) has no 'brokre'. "
        "Did you mean 'broker'?",
    ),
    (
        "app_of_start:xyz",
        "the module 'app_of_start' ({app}/app_of_start.py) has no 'xyz'. "
        "It has these of type AsyncBroker: 'shared', 'memory', 'broker', 'crashing', "
        "'away'.",
    ),
]


@pytest.mark.parametrize(("spec", "reason"), WRONG)
def test_a_wrong_name_is_told_with_where_it_was_looked_for(
    spec: str,
    reason: str,
    app: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(app)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(StartError) as caught:
        find_broker(spec, None)
    found = f"Cannot find the broker {spec!r}: "
    assert str(caught.value) == found + reason.format(app=app)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (
            "nothing",
            "nor a function that returns one, but 5 of type int",
        ),
        ("make", r"is called without arguments, and has the parameters \(url\)"),
        ("make_none", "must return a broker of type AsyncBroker, but returned None"),
        (
            "make_later",
            "of type AsyncBroker, but returned <coroutine",
        ),
    ],
)
def test_what_is_no_broker_and_makes_none_is_told(
    name: str,
    reason: str,
    app: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(app)
    with pytest.raises(StartError, match=reason):
        find_broker(f"app_of_start:{name}", None)


def test_an_error_of_the_application_is_not_taken_for_a_wrong_name(
    app: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(app)
    with pytest.raises(ModuleNotFoundError, match="a_missing_library"):
        find_object("broken_of_start:broker", None, object, "broker")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (
            "shop_of_star",
            "there is no module 'shop_of_star' in {app} nor among the installed "
            "packages. Did you mean 'shop_of_start'?",
        ),
        (
            "shop_of_start.task",
            "there is no module 'shop_of_start.task' in {app}/shop_of_start. "
            "Did you mean 'shop_of_start.tasks'?",
        ),
    ],
)
def test_a_wrong_name_of_a_module_of_tasks_is_told_in_the_same_way(
    name: str,
    reason: str,
    app: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(app)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(StartError) as caught:
        check_modules(["shop_of_start.tasks", name], None)
    found = f"Cannot find the module {name!r} of tasks: "
    assert str(caught.value) == found + reason.format(app=app)


def test_a_module_that_cannot_import_another_one_is_there(
    app: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(app)
    check_modules(["broken_of_start"], None)
    assert "broken_of_start" not in sys.modules


def test_a_wrong_module_of_tasks_ends_the_worker_with_status_2(run: Run) -> None:
    worker = run("app_of_start:broker", "no_such_of_start", "--workers=1")
    assert worker.wait() == 2
    [error] = errors(worker)
    assert error.startswith("Cannot find the module 'no_such_of_start' of tasks: ")


def test_a_wrong_name_is_one_line_and_status_2(run: Run, app: Path) -> None:
    worker = run("app_of_start:brokre", "--workers=3")
    assert worker.wait() == 2
    assert errors(worker) == [
        "Cannot find the broker 'app_of_start:brokre': the module 'app_of_start' "
        f"({app}/app_of_start.py) has no 'brokre'. Did you mean 'broker'?",
    ]
    assert len(re.findall("Started process", worker.output)) == 3


@pytest.mark.parametrize("name", ["memory", "shared"])
def test_a_broker_that_nobody_can_listen_to_is_told_in_one_line(
    name: str, run: Run
) -> None:
    worker = run(f"app_of_start:{name}", "--workers=1")
    assert worker.wait() == 2
    [error] = errors(worker)
    assert error.startswith(f"A worker cannot listen to 'app_of_start:{name}', as it ")


def test_every_line_is_an_object_if_json_is_wanted(run: Run) -> None:
    worker = run("app_of_start:brokre", "--log-format=json")
    assert worker.wait() == 2
    lines = [json.loads(line) for line in worker.lines]
    errors_told = [line for line in lines if line["level"] == "ERROR"]
    assert len(errors_told) == 1, worker.output
    [error] = errors_told
    assert error["logger"] == "taskiq.process-manager"
    assert error["message"].startswith("Cannot find the broker 'app_of_start:brokre'")


# -- A task that cannot be registered ----------------------------------------------


def told(app: Path, module: str = "mistyped_of_start") -> str:
    return TOLD.format(app=app, module=module)


@pytest.mark.parametrize(
    "named",
    [("mistyped_of_start:broker",), ("app_of_start:broker", "mistyped_of_start")],
    ids=["module of the broker", "module of tasks"],
)
def test_a_typo_in_a_decorator_is_one_line_with_its_place_and_status_2(
    named: tuple[str, ...],
    run: Run,
    app: Path,
) -> None:
    worker = run(*named, "--workers=2")
    assert worker.wait() == 2
    assert errors(worker) == [told(app)]
    assert len(re.findall("Started process", worker.output)) == 2


@pytest.mark.parametrize("command", [("scheduler",), ("inspect", "tasks")])
def test_other_commands_tell_it_as_well(command: tuple[str, ...], app: Path) -> None:
    other = RunningCommand(
        ["-m", "taskiq", *command, "mistyped_of_start:broker"], app, {}
    )
    try:
        assert other.wait() == 2
    finally:
        other.clean_up()
    [line] = other.lines
    assert line.endswith(told(app))


def test_a_hint_that_cannot_be_resolved_is_told_in_the_same_way(app: Path) -> None:
    file = app / "unknown_type_of_start.py"
    file.write_text(
        MISTYPED.replace("batchsize=5", "").replace("list[int]", "'list[Order]'")
    )
    with pytest.raises(RegistrationError) as caught, registration_told():
        exec(compile(file.read_text(), str(file), "exec"), {"__name__": "app"})  # noqa: S102 - our own text
    assert str(caught.value) == (
        f"{file}, line {LINE}: Cannot register a task: "
        "NameError: name 'Order' is not defined"
    )


def test_an_error_beside_the_decorators_stays_what_it_is() -> None:
    with pytest.raises(ZeroDivisionError), registration_told():
        _ = 1 / 0


def test_a_reloading_worker_waits_for_the_typo_to_be_mended(
    run: Run, app: Path
) -> None:
    worker = run("mistyped_of_start:broker", "--reload")
    worker.wait_for_line(re.escape(told(app)), 3)
    assert worker.stop() == 0
    assert "Traceback" not in worker.output


def test_a_typo_that_a_running_worker_reads_on_a_reload_is_told_at_each_try(
    run: Run,
    app: Path,
) -> None:
    (app / "mistyped_later_of_start.py").touch()
    worker = run("app_of_start:broker", "mistyped_later_of_start", "--workers=1")
    worker.wait_for_line("Listening started")
    (app / "mistyped_later_of_start.py").write_text(MISTYPED)
    worker.signal(signal.SIGHUP)
    worker.wait_for_line(re.escape(told(app, "mistyped_later_of_start")), 2)
    assert worker.stop() == 0


# -- An application that cannot be imported ----------------------------------------


def test_three_failed_imports_in_a_row_end_the_worker(run: Run) -> None:
    worker = run("broken_of_start:broker", "--workers=1")
    assert worker.wait() == 1
    assert len(re.findall("This worker cannot start", worker.output)) == 3
    assert errors(worker)[-1] == (
        "The application cannot be imported, 3 times in a row: "
        "ModuleNotFoundError: No module named 'a_missing_library'"
    )


def test_so_do_three_deaths_while_importing(run: Run) -> None:
    worker = run("dying_of_start:broker", "--workers=1")
    assert worker.wait() == 1
    assert errors(worker) == [
        "The application cannot be imported, 3 times in a row: the process died",
    ]


def test_a_process_that_dies_once_it_has_imported_is_replaced_for_ever(
    run: Run,
) -> None:
    worker = run("app_of_start:crashing", "--workers=1")
    worker.wait_for_line("worker-0 with pid .* ended: exit code 3", 4)
    assert worker.stop() == 0


def test_a_reloading_worker_waits_for_the_application_to_be_mended(run: Run) -> None:
    worker = run("broken_of_start:broker", "--reload")
    worker.wait_for_line("This worker cannot start", 4)
    assert worker.stop() == 0


# -- A broker that is not there ----------------------------------------------------


def test_each_attempt_to_reach_a_broker_is_one_line(run: Run) -> None:
    worker = run("app_of_start:away", "--workers=1")
    line = "Cannot start the broker, it is tried again in 0.[0-9] s: "
    worker.wait_for_line(line + "ConnectionError: connection refused", 3)
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
    assert "Traceback" not in worker.output
    assert len(re.findall("Started process", worker.output)) == 1


def test_a_worker_that_is_to_fail_fast_ends_instead(run: Run) -> None:
    worker = run("app_of_start:away", "--workers=2", "--fail-fast")
    assert worker.wait() == 1
    assert [line for line in errors(worker) if "WARNING" not in line] == [
        "Cannot start the broker: ConnectionError: connection refused",
    ]
