"""A reader who does what the tutorial says sees what it says."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.commands import RunningCommand
from tests.support.environments import CHECKOUT
from tests.support.hub import HANG
from tests.support.ports import free_port

from .servers import POSTGRES, REDIS, postgres, sql_name

PAGE = CHECKOUT / "docs" / "tutorial.md"
DOCKERFILE = CHECKOUT / "docs" / "examples" / "deploy" / "Dockerfile"
#: Blocks with such a title are written to files.
FILES = (".json", ".py", ".toml")
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
TITLE = re.compile(r'title="([^"]+)"')


class Block(NamedTuple):
    """A block of the page; `what` is its title, or its language."""

    what: str
    text: str


def blocks_of(step: int) -> list[Block]:
    text = PAGE.read_text("utf-8")
    [section] = re.findall(rf"^## {step}\. .*?(?=^## |\Z)", text, re.DOTALL | re.M)
    return [
        Block(title[1] if (title := TITLE.search(info)) else info, body)
        for info, body in FENCE.findall(section)
    ]


class Reader:
    """Has a directory and terminals of its own, and names of its own at the servers."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.name = f"taskiq-plugins-{uuid.uuid4().hex}"
        self.schema = sql_name(self.name)
        self.running: dict[str, RunningCommand] = {}
        self.ports = {"8000": str(free_port()), "9000": str(free_port())}
        separator = "&" if "?" in POSTGRES.url else "?"
        self.environment = {
            "DATABASE_URL": f"{POSTGRES.url}{separator}search_path={self.schema}",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTEST_ADDOPTS": "-p no:cacheprovider -p no:asyncio",
            "PYTHONPATH": str(CHECKOUT),
            "REDIS_URL": REDIS.url,
            "TMPDIR": str(directory),  # where the metrics are
        }

    def adapt(self, text: str) -> str:
        """Put the names and ports of this reader into what the page has."""
        for shown, port in self.ports.items():
            text = re.sub(rf"(localhost:|port[= ]){shown}", rf"\g<1>{port}", text)
        return text.replace('"tutorial"', f'"{self.name}"')

    def follow(self, step: int) -> None:
        """Write the files of a step, run its commands and compare what they print."""
        printed = ""
        for what, text in blocks_of(step):
            if what.endswith(FILES):
                (self.directory / what).write_text(self.adapt(text), "utf-8")
            elif what == "bash":
                printed = self.run(text)
            elif what == "text":
                assert printed.replace(self.name, "tutorial").strip() == text.strip()
            elif what == "it ends with":
                # pytest says how long it took, too.
                assert re.search(f"{re.escape(text.strip())}( in .*)?$", printed)
            elif what == "it begins with":
                assert printed.startswith(text), printed
            elif what in ("first terminal", "second terminal"):
                self.start(what, text)

    def run(self, command: str) -> str:
        done = subprocess.run(  # noqa: S603 - what the page shows
            ["bash", "-euc", self.adapt(command)],  # noqa: S607
            cwd=self.directory,
            encoding="utf-8",
            env={**os.environ, **self.environment},
            check=False,
            stderr=subprocess.STDOUT,
            stdout=subprocess.PIPE,
            timeout=4 * HANG,
        )
        assert done.returncode == 0, done.stdout + self.logs
        return done.stdout

    def start(self, terminal: str, command: str) -> None:
        """Run a command that goes on, in the place of the one that ran there."""
        if terminal in self.running:
            self.running[terminal].stop()
        words = shlex.split(self.adapt(command))
        running = RunningCommand(["-m", *words], self.directory, self.environment)
        self.running[terminal] = running
        is_worker = words[0] == "taskiq"
        running.wait_for_line("Listening started" if is_worker else "Uvicorn running")

    @property
    def logs(self) -> str:
        return "\n".join(each.output for each in self.running.values())

    def rows(self) -> dict[str, int]:
        """Count the readings in the table, by sensor."""
        counts = "SELECT sensor, count(*) FROM readings GROUP BY sensor"

        async def count() -> dict[str, int]:
            async with postgres(self.environment["DATABASE_URL"]) as connection:
                return dict(await connection.fetch(counts))

        return asyncio.run(count())

    def clean_up(self) -> None:
        for running in self.running.values():
            running.clean_up()
        REDIS.remove(self.name)
        asyncio.run(in_postgres(f"DROP SCHEMA {self.schema} CASCADE"))


async def in_postgres(statement: str) -> None:
    async with postgres(POSTGRES.url) as connection:
        await connection.execute(statement)


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    for server in (REDIS, POSTGRES):
        if reason := server.unavailable():
            pytest.skip(reason)
    reader = Reader(tmp_path)
    asyncio.run(in_postgres(f"CREATE SCHEMA {reader.schema}"))
    try:
        yield reader
    finally:
        reader.clean_up()


def test_who_follows_the_tutorial_sees_what_it_shows(reader: Reader) -> None:
    for step in range(1, 7):
        reader.follow(step)
    # The same reading came once, and 200 came twice.
    assert reader.rows() == {"attic": 201, "garden": 200}
    reader.follow(7)
    reader.follow(8)
    replace_the_worker_while_readings_come_in(reader)
    # A stop ends what was begun: the reading that was put aside is there, too.
    assert reader.running["first terminal"].stop() == 0
    assert reader.rows() == {"attic": 501, "garden": 500, "cellar": 3}


def replace_the_worker_while_readings_come_in(reader: Reader) -> None:
    worker = reader.running["first terminal"]
    sending = RunningCommand(
        ["send.py", "cellar"], reader.directory, reader.environment
    )
    try:
        worker.wait_for_line("flushed by", count=worker.output.count("flushed by") + 1)
        [command] = [t for what, t in blocks_of(8) if what == "first terminal"]
        reader.start("first terminal", command)
        assert sending.wait() == 0
        assert sending.output == "stored: 201"
    finally:
        sending.clean_up()


def test_the_lines_that_the_tutorial_changes_are_in_the_dockerfile() -> None:
    [changed] = [text for what, text in blocks_of(8) if what == "Dockerfile"]
    original = DOCKERFILE.read_text("utf-8")
    adapted = changed.replace("broker.py tasks.py app.py", "app.py")
    for line in adapted.replace("tasks:broker", "app:broker").splitlines():
        assert line in original.splitlines()
