"""What is done otherwise on Windows and macOS, tried here in their place.

The page on production lists it. On the platforms themselves the whole suite is run, but
for what needs a server; this file sees a mistake on any machine.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from taskiq.cli.inspect import screen
from taskiq.cli.scheduler import lifecycle
from taskiq.cli.worker import executors, process_manager, signals
from taskiq.cli.worker.process_manager import ProcessManager
from taskiq.cli.worker.supervisor import Force

CLI = Path(signals.__file__).parent.parent
#: What Windows has not.
MISSING = ("SIGHUP", "SIGQUIT", "pthread_sigmask")


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Be Windows, as far as the command line looks; put signal handlers back."""
    before = {each: signal.getsignal(each) for each in signals.SOFT}
    with monkeypatch.context() as patched:
        for module in (executors, process_manager, screen, signals):
            patched.setattr(module, "sys", Windows())
        for name in MISSING:
            patched.delattr(signal, name, raising=False)
        yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


class Windows:
    platform = "win32"

    def __getattr__(self, name: str) -> Any:
        return getattr(__import__("sys"), name)


def test_only_signals_that_the_platform_has_are_handled() -> None:
    assert signals._known("SIGTERM", "SIGOFNOPLATFORM") == (signal.SIGTERM,)


@pytest.mark.usefixtures("windows")
def test_a_signal_is_handled_without_the_loop_s_help_and_wakes_it() -> None:
    noted: list[str] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        asked = asyncio.Event()
        loop.add_signal_handler = None  # type: ignore[assignment,method-assign]
        signals.handle_signals(
            loop, asked.set, asked.set, at_once=lambda: noted.append("at once")
        )
        signal.raise_signal(signal.SIGTERM)
        await asyncio.wait_for(asked.wait(), 10)

    asyncio.run(main())
    assert noted == ["at once"]


@pytest.mark.usefixtures("windows")
def test_signals_are_ignored_though_none_can_be_held_back() -> None:
    closed: list[bool] = []
    signals.ignore_soft_signals(after=lambda: closed.append(True))
    assert closed == [True]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN


@pytest.mark.usefixtures("windows")
@pytest.mark.parametrize("force", Force)
def test_a_process_that_is_to_end_is_killed(force: Force) -> None:
    ended: list[str] = []
    process: Any = SimpleNamespace(pid=1, kill=lambda: ended.append("killed"))
    process_manager._send(process, force, is_ending=True)
    assert ended == ["killed"]


@pytest.mark.usefixtures("windows")
def test_the_main_process_handles_what_there_is() -> None:
    manager: Any = SimpleNamespace(action_queue=None)
    ProcessManager._handle_signals(manager)
    assert callable(signal.getsignal(signal.SIGTERM))


@pytest.mark.usefixtures("windows")
def test_the_main_process_waits_for_no_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[list[object]] = []
    monkeypatch.setattr(process_manager, "wait", lambda each, _: waited.append(each))
    manager: Any = SimpleNamespace(
        action_queue=SimpleNamespace(wakeup="wakeup"),
        _health=SimpleNamespace(waited_for=["socket"]),
        _processes={1: SimpleNamespace(sentinel="sentinel")},
        _supervisor=SimpleNamespace(next_decision_at=lambda: None),
    )
    ProcessManager._wait(manager)
    assert waited == [["wakeup", "sentinel"]]


@pytest.mark.usefixtures("windows")
def test_a_process_of_a_pool_is_prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []
    thread = SimpleNamespace(start=lambda: started.append("thread"))
    monkeypatch.setattr(executors, "Thread", lambda **_: thread)
    before = signal.set_wakeup_fd(-1)
    try:
        executors._prepare_process(SimpleNamespace(), None)
    finally:
        signal.set_wakeup_fd(before)
    assert started == ["thread"]


@pytest.mark.usefixtures("windows")
def test_an_old_console_is_asked_to_understand_where_to_paint(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(os, "system", asked.append)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)

    def interrupt() -> list[str]:
        raise KeyboardInterrupt

    screen.watch(interrupt, 1)
    assert asked == [""]
    assert capsys.readouterr().out.endswith("\n")


def test_a_scheduler_runs_in_a_loop_that_knows_no_signals(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lifecycle, "_sigterm_is_unhandled", lambda: True)
    [kind] = [
        each
        for each in vars(lifecycle).values()
        if isinstance(each, type) and hasattr(each, "disarm")
    ]

    async def main() -> None:
        def refuse(*_: object) -> None:
            raise NotImplementedError

        loop = asyncio.get_running_loop()
        loop.add_signal_handler = refuse  # type: ignore[assignment,method-assign]
        with kind() as terminated:
            assert not terminated.received

    asyncio.run(main())


def test_every_module_that_looks_at_the_platform_is_listed() -> None:
    page = Path(__file__).parents[2] / "docs" / "guide" / "production.md"
    listed = set(re.findall(r"`(cli/[\w/]+\.py)`", page.read_text("utf-8")))
    looks = re.compile(r"sys\.platform|os\.name\b|hasattr\(os|NotImplementedError:")
    found = {
        file.relative_to(CLI.parent).as_posix()
        for file in CLI.rglob("*.py")
        if looks.search(file.read_text("utf-8"))
    }
    assert listed - {"cli/worker/run.py"} == found
