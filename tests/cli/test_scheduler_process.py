"""The scheduler command as a process of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

APPLICATION = """
from taskiq import InMemoryBroker, TaskiqScheduler
from taskiq.schedule_sources import LabelScheduleSource

broker = InMemoryBroker()
scheduler = TaskiqScheduler(broker, [LabelScheduleSource(broker)])
"""

pytestmark = pytest.mark.skipif(
    sys.platform == "win32",
    reason="Windows has no signals to send to other processes",
)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_shuts_the_scheduler_down_and_is_no_error(
    tmp_path: Path,
    signum: signal.Signals,
) -> None:
    (tmp_path / "app.py").write_text(APPLICATION)
    with subprocess.Popen(
        [sys.executable, "-m", "taskiq", "scheduler", "app:scheduler"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "Startup completed." in line:
                break
        process.send_signal(signum)
        try:
            output, _ = process.communicate(timeout=60)
        finally:
            process.kill()

    assert process.returncode == 0, output
    assert "Scheduler is shut down." in output
    assert "Traceback" not in output
