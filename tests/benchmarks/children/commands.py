"""How many commands a Redis has run, for children that have it to themselves."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

#: What is sent once to look, or for each connection.
_NOT_COUNTED = ("config", "info", "hello", "client", "select", "dbsize", "xpending")


class CommandCount:
    """Counts commands by `INFO commandstats`, those that scripts run included.

    It speaks to the server without a client library, which the children do not share.

    :param url: of the server, `None` to count nothing.
    """

    def __init__(self, url: str | None) -> None:
        self._address = urlsplit(url) if url else None

    async def begin(self) -> None:
        """Begin to count."""
        await self._run("CONFIG RESETSTAT")

    async def end(self) -> int:
        """Give how many commands were run since."""
        lines = (await self._run("INFO commandstats")).splitlines()
        counted = [
            line
            for line in lines
            if line.startswith("cmdstat_") and not line[8:].startswith(_NOT_COUNTED)
        ]
        return sum(int(line.partition("calls=")[2].split(",")[0]) for line in counted)

    async def _run(self, command: str) -> str:
        if self._address is None:
            return ""
        reader, writer = await asyncio.open_connection(
            self._address.hostname,
            self._address.port,
        )
        writer.write(f"{command}\r\n".encode())
        first = await reader.readline()
        text = first
        if first.startswith(b"$"):
            text = await reader.readexactly(int(first[1:]))
        writer.close()
        await writer.wait_closed()
        return text.decode()
