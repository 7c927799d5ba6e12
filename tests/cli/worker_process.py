"""Running `taskiq worker` as a user does, and watching it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from signal import Signals

from .hub import HANG, Hub

HERE = Path(__file__).parent
COMMAND = ("-m", "taskiq")
WITH_START_METHOD = """
import multiprocessing, sys
multiprocessing.set_start_method(sys.argv.pop(1))
from taskiq.__main__ import main
main()
"""
#: Shadows the real package in the directory where the worker is run.
NO_UVLOOP = "raise ImportError('hidden for the test')\n"


def command_with(start_method: str) -> tuple[str, ...]:
    """Give the command that starts worker processes in this way."""
    return ("-c", WITH_START_METHOD, start_method)


class WorkerProcess:
    """The main process of a `taskiq worker` command, and what it prints.

    :param options: the command line after `taskiq worker`; the broker is put before it
        unless it is named.
    """

    def __init__(
        self,
        hub: Hub,
        directory: Path,
        *options: str,
        broker: str = "worker_app:broker",
        command: tuple[str, ...] = ("-c", WITH_START_METHOD, "spawn"),
        uvloop: bool = True,
    ) -> None:
        self.hub = hub
        self.lines: list[str] = []
        self._printed = threading.Condition()
        if not uvloop:
            (directory / "uvloop.py").write_text(NO_UVLOOP)
        self.process = subprocess.Popen(  # noqa: S603 - our own command
            [
                sys.executable,
                *command,
                "worker",
                broker,
                *options,
                f"--app-dir={HERE}",
            ],
            cwd=directory,
            env={**os.environ, "TASKIQ_TEST_HUB": str(hub.port)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._printed:
                self.lines.append(line.rstrip("\n"))
                self._printed.notify_all()

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    @property
    def children(self) -> list[int]:
        """Pids of all worker processes there ever were, in the order of their start."""
        return [
            int(pid) for pid in re.findall(r"Started process .* (\d+)", self.output)
        ]

    def wait_for_line(self, pattern: str, count: int = 1) -> None:
        """Wait until lines that match were printed."""
        with self._printed:
            assert self._printed.wait_for(
                lambda: len(re.findall(pattern, self.output)) >= count,
                HANG,
            ), f"{pattern!r} was not printed:\n{self.output}"

    def signal(self, signum: Signals) -> None:
        """Signal the main process."""
        self.process.send_signal(signum)

    def signal_all(self, signum: Signals) -> None:
        """Signal every process of the command, as a terminal does."""
        os.killpg(self.process.pid, signum)

    def wait(self) -> int:
        """Wait for the end of all processes and give the exit status of the first."""
        status = self.process.wait(HANG)
        self.hub.wait(lambda: not self.hub.alive)
        self._reader.join(HANG)
        assert not self._reader.is_alive(), "somebody still holds the pipe"
        return status

    def stop(self) -> int:
        """Stop the command with one SIGTERM."""
        self.signal(Signals.SIGTERM)
        return self.wait()

    def clean_up(self) -> None:
        """Leave no process behind, whatever the test has done."""
        assert self.process.stdout is not None
        for pid in (self.process.pid, *self.children, *(x.pid for x in self.hub.alive)):
            try:
                os.kill(pid, Signals.SIGKILL)
            except ProcessLookupError:  # noqa: PERF203 - most have ended
                continue
        self.process.wait(HANG)
        self._reader.join(HANG)
        self.process.stdout.close()
