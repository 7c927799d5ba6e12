"""Running a command as a user does, and watching it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from signal import Signals

from .environments import CHECKOUT
from .hub import HANG


class RunningCommand:
    """A command of this interpreter, and what it prints.

    :param arguments: the command line after the interpreter.
    :param directory: where it runs; `tests` can be imported there, too.
    :param environment: variables beside those of this process.
    """

    def __init__(
        self,
        arguments: Iterable[str],
        directory: Path,
        environment: Mapping[str, str],
    ) -> None:
        self.lines: list[str] = []
        self._printed = threading.Condition()
        self.process = subprocess.Popen(  # noqa: S603 - our own command
            [sys.executable, *arguments],
            cwd=directory,
            env={**os.environ, "PYTHONPATH": str(CHECKOUT), **environment},
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
        # All of them have ended; of those not waited for macOS says it differently.
        with suppress(ProcessLookupError, PermissionError):
            self.signal_all(Signals.SIGKILL)
        self.process.wait(HANG)
        self._reader.join(HANG)
        self.process.stdout.close()
