"""Running `taskiq worker` as a user does, and watching it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from signal import Signals
from typing import TypeAlias

from ..support.commands import RunningCommand
from ..support.hub import Hub

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


class WorkerProcess(RunningCommand):
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
        if not uvloop:
            (directory / "uvloop.py").write_text(NO_UVLOOP)
        super().__init__(
            [*command, "worker", broker, *options, f"--app-dir={HERE}"],
            directory,
            {"TASKIQ_TEST_HUB": str(hub.port)},
        )

    @property
    def children(self) -> list[int]:
        """Pids of all worker processes there ever were, in the order of their start."""
        return [
            int(pid) for pid in re.findall(r"Started process .* (\d+)", self.output)
        ]

    def wait(self) -> int:
        """Wait for the end of all processes and give the exit status of the first."""
        status = super().wait()
        self.hub.wait(lambda: not self.hub.alive)
        return status

    def clean_up(self) -> None:
        """Leave no process behind, whatever the test has done."""
        for pid in (*self.children, *(line.pid for line in self.hub.alive)):
            try:
                os.kill(pid, Signals.SIGKILL)
            except ProcessLookupError:  # noqa: PERF203 - most have ended
                continue
        super().clean_up()


#: Starts one, with its options; it is cleaned up after the test.
Run: TypeAlias = Callable[..., WorkerProcess]
