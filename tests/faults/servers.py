"""Servers of our own, which may be restarted without harm to anybody else."""

from __future__ import annotations

import asyncio
import shutil
import signal
from abc import ABC, abstractmethod
from contextlib import suppress
from pathlib import Path

from tests.support.ports import free_port

from .lines import Line

#: Seconds for a server to begin or end.
_PATIENCE = 60.0
_INTERVAL = 0.05


class OwnServer(ABC):
    """A server on a free port that keeps its data over a restart.

    :param directory: for its data and its log; there are no others.
    """

    program: str
    scheme: str

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._port = free_port()
        self._process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self._port}"

    @classmethod
    def is_installed(cls) -> bool:
        return shutil.which(cls.program) is not None

    @abstractmethod
    def _arguments(self, directory: Path, port: int) -> list[str]: ...

    async def start(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        with (self._directory / "log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                self.program,
                *self._arguments(self._directory, self._port),
                cwd=self._directory,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
            )
        await asyncio.wait_for(self._wait_until_it_listens(), _PATIENCE)

    async def _wait_until_it_listens(self) -> None:
        while not await self._listens():  # noqa: ASYNC110 - nobody tells us
            await asyncio.sleep(_INTERVAL)

    async def _listens(self) -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:
            return False
        writer.close()
        return True

    async def stop(self, signum: signal.Signals = signal.SIGTERM) -> None:
        if self._process is None:
            return
        self.signal(signum)
        await asyncio.wait_for(self._process.wait(), _PATIENCE)

    def signal(self, signum: signal.Signals) -> None:
        """Send its process a signal, if it has one."""
        if self._process is not None:
            with suppress(ProcessLookupError):  # it has ended
                self._process.send_signal(signum)

    async def restart(self, away: float) -> None:
        """End it and start it again, with the same data on the same port.

        :param away: seconds between the two.
        """
        await self.stop()
        await asyncio.sleep(away)
        await self.start()


class OwnRedis(OwnServer):
    program = "redis-server"
    scheme = "redis"

    def _arguments(self, directory: Path, port: int) -> list[str]:
        return [
            *("--bind", "127.0.0.1", "--port", str(port)),
            *("--dir", str(directory), "--save", "", "--appendonly", "yes"),
        ]


class OwnNats(OwnServer):
    program = "nats-server"
    scheme = "nats"

    def _arguments(self, directory: Path, port: int) -> list[str]:
        return ["-a", "127.0.0.1", "-p", str(port), "-js", "-sd", str(directory)]


#: RabbitMQ is missing: its server takes a host name, a cookie and a port mapper that
#: belong to the whole machine. So is PostgreSQL, whose server does not run as root.
#: What a restart does to their clients a cut does, too.
OWN_SERVERS: dict[Line, type[OwnServer]] = {
    "redis": OwnRedis,
    "redis-adapted": OwnRedis,
    "nats-push": OwnNats,
    "nats-pull": OwnNats,
    "nats-pull-adapted": OwnNats,
}
