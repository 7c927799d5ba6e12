"""A way to a server that can be cut."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit, urlunsplit

_CHUNK = 1 << 16


class Proxy:
    """Passes TCP connections on to a server, until told to cut them.

    :param url: of the server.
    :ivar url: the same, by way of the proxy.
    :ivar passed: bytes that were passed on.
    """

    def __init__(self, url: str) -> None:
        self._target = urlsplit(url)
        self._open: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self.url = url
        self.passed = 0

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        login, at, _ = self._target.netloc.rpartition("@")
        self.url = urlunsplit(
            self._target._replace(netloc=f"{login}{at}127.0.0.1:{port}"),
        )

    def cut(self) -> int:
        """Cut every connection at once, as a server that is killed does.

        :returns: how many there were.
        """
        connections = len(self._open) // 2
        for writer in self._open:
            writer.transport.abort()
        return connections

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        self.cut()

    async def _serve(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        try:
            there = await asyncio.open_connection(
                self._target.hostname,
                self._target.port,
            )
        except OSError:
            writer.transport.abort()  # the server is away
            return
        await asyncio.gather(
            self._pass_on(reader, there[1]),
            self._pass_on(there[0], writer),
        )

    async def _pass_on(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._open.add(writer)
        try:
            while data := await reader.read(_CHUNK):
                writer.write(data)
                self.passed += len(data)
                await writer.drain()
        except ConnectionError:
            pass  # one end was cut: so is the other
        finally:
            self._open.discard(writer)
            writer.close()
