"""Running `taskiq worker`, and ending its processes in every way."""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
import sys
from contextlib import suppress
from pathlib import Path

from tests.support.environments import CHECKOUT

from .lines import Settings

#: Seconds after which a process that was told to end hangs.
HANG = 60.0

_STARTED = re.compile(r"Started process .* (\d+)")


class Workers:
    """A `taskiq worker` command that is started again when it was ended.

    :param options: the command line after the broker.
    :param log: what all processes print, in one file.
    """

    def __init__(self, settings: Settings, log: Path, *options: str) -> None:
        self._settings = settings
        self._log = log
        self._options = options
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "taskiq",
                "worker",
                "tests.faults.app:broker",
                *self._options,
                cwd=CHECKOUT,
                env={**os.environ, **self._settings.to_environment()},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=asyncio.subprocess.STDOUT,
                # Ctrl-C in the terminal is ours: it must not end them before us.
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    @property
    def children(self) -> list[int]:
        """Pids of the worker processes that live."""
        pids = map(int, _STARTED.findall(self.output))
        return [pid for pid in pids if _lives(pid)]

    def kill_one(self) -> bool:
        """Kill a worker process, whatever it does; the command starts another.

        :returns: whether there was one.
        """
        children = self.children
        if not children:
            return False
        os.kill(random.choice(children), signal.SIGKILL)  # noqa: S311 - no secret
        return True

    async def stop(self) -> int:
        """Ask the command to end and wait until all its processes have.

        :returns: its exit status.
        :raises asyncio.TimeoutError: it does not end.
        """
        assert self._process is not None
        self._process.terminate()
        return await asyncio.wait_for(self._process.wait(), HANG)

    async def kill(self) -> None:
        """Leave no process behind."""
        if self._process is None:
            return
        with suppress(ProcessLookupError):  # all of them have ended
            os.killpg(self._process.pid, signal.SIGKILL)
        await self._process.wait()


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
