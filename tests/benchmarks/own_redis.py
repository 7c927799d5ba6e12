"""A Redis that nobody else uses, so that its commands can be counted."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.support.environments import EnvironmentNotMadeError

if TYPE_CHECKING:
    from collections.abc import Generator

_PATIENCE = 10.0


@contextmanager
def own_redis() -> Generator[str, None, None]:
    """Run a server that keeps nothing on disk, and give its URL.

    :raises EnvironmentNotMadeError: when there is no `redis-server`, or it does not
        start.
    """
    program = shutil.which("redis-server")
    if program is None:
        raise EnvironmentNotMadeError("this table needs redis-server on the PATH")
    port = _free_port()
    with tempfile.TemporaryDirectory() as directory:
        command = [program, "--port", str(port), "--save", "", "--dir", directory]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL)  # noqa: S603 - as built above
        try:
            _wait_for(port)
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            server.terminate()
            server.wait(_PATIENCE)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", port)),
        ):
            return
        time.sleep(0.05)
    raise EnvironmentNotMadeError(f"redis-server does not answer on port {port}")
