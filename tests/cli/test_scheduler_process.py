"""The scheduler command as a process of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

APPLICATION = """
from taskiq import InMemoryBroker, TaskiqScheduler
from taskiq.schedule_sources import LabelScheduleSource

broker = InMemoryBroker()
scheduler = TaskiqScheduler(broker, [LabelScheduleSource(broker)])
"""

#: Has a source that starts for ever, after one that has to be shut down.
STARTING = """
import asyncio
from taskiq import InMemoryBroker, TaskiqScheduler
from taskiq.schedule_sources import LabelScheduleSource

class First(LabelScheduleSource):
    async def shutdown(self):
        print("First is shut down.", flush=True)

class Second(LabelScheduleSource):
    async def startup(self):
        print("Second starts.", flush=True)
        await asyncio.Event().wait()

broker = InMemoryBroker()
scheduler = TaskiqScheduler(broker, [First(broker), Second(broker)])
"""

pytestmark = pytest.mark.skipif(
    sys.platform == "win32",
    reason="Windows has no signals to send to other processes",
)


@pytest.fixture
def interruptible() -> Generator[None, None, None]:
    """Have child processes start with SIGINT as it is by default.

    A shell script ignores it for what it runs in the background, and who ignores a
    signal hands that down: also when that is a test run.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def signalled(
    directory: Path,
    application: str,
    line: str,
    signum: signal.Signals,
) -> tuple[int, str]:
    """Run a scheduler, signal it after that line, and give its status and the rest."""
    (directory / "app.py").write_text(application, encoding="utf-8")
    with subprocess.Popen(
        [sys.executable, "-m", "taskiq", "scheduler", "app:scheduler"],
        cwd=directory,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        for printed in process.stdout:
            if line in printed:
                break
        process.send_signal(signum)
        try:
            output, _ = process.communicate(timeout=60)
        finally:
            process.kill()
    return process.returncode, output


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_shuts_the_scheduler_down_and_is_no_error(
    tmp_path: Path,
    signum: signal.Signals,
) -> None:
    status, output = signalled(tmp_path, APPLICATION, "Startup completed.", signum)

    assert status == 0, output
    assert "Scheduler is shut down." in output
    assert "Traceback" not in output


@pytest.mark.usefixtures("interruptible")
def test_a_scheduler_that_is_interrupted_while_it_starts_closes_what_was_opened(
    tmp_path: Path,
) -> None:
    status, output = signalled(tmp_path, STARTING, "Second starts.", signal.SIGINT)

    assert status == 130, output
    assert "First is shut down." in output
    assert "Traceback" not in output
