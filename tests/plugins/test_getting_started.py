"""The brokers that the first page shows run its tasks, without a warning."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import pytest

from tests.support.commands import RunningCommand
from tests.support.environments import CHECKOUT
from tests.support.hub import HANG
from tests.test_docs import CLIENTS, DOCS

from .servers import NATS, POSTGRES, RABBITMQ, REDIS, Server, sql_name

BROKERS = DOCS / "examples" / "brokers"
SERVERS = {"rabbitmq": RABBITMQ, "nats": NATS, "postgresql": POSTGRES}
#: The addresses that the page has.
URLS = {
    "amqp://guest:guest@localhost:5672": RABBITMQ.url,
    "nats://localhost:4222": NATS.url,
    "postgresql://localhost:5432/app": POSTGRES.url,
    "redis://localhost:6379": REDIS.url,
}


def test_each_broker_is_run() -> None:
    assert {file.stem for file in BROKERS.iterdir() if file.is_file()} == set(SERVERS)


@pytest.mark.parametrize(("which", "server"), SERVERS.items(), ids=SERVERS)
def test_the_client_gets_its_results(
    which: str, server: Server, tmp_path: Path
) -> None:
    for each in (server, REDIS):
        if reason := each.unavailable():
            pytest.skip(reason)
    name = f"taskiq-plugins-{uuid4().hex}"
    code = (BROKERS / f"{which}.py").read_text("utf-8")
    for shown, url in URLS.items():
        code = code.replace(shown, url)
    code = code.replace("getting-started", name)
    code = code.replace("getting_started", sql_name(name))
    (tmp_path / "tasks.py").write_text(code, "utf-8")
    [client] = [each for each in CLIENTS if each.page == DOCS / "getting-started.md"]
    (tmp_path / "client.py").write_text(client.code, "utf-8")
    command = ["-m", "taskiq", "worker", "tasks:broker", "-w", "2"]
    worker = RunningCommand(command, tmp_path, {})
    try:
        worker.wait_for_line("Listening started", count=2)
        done = subprocess.run(
            [sys.executable, "client.py"],
            capture_output=True,
            check=False,
            cwd=tmp_path,
            encoding="utf-8",
            env={"PYTHONPATH": str(CHECKOUT)},
            timeout=HANG,
        )
        assert done.stdout.split() == ["3", "0", "2", "4", "6", "8"], (
            done.stderr + worker.output
        )
        assert worker.stop() == 0
        assert "WARNING" not in worker.output, worker.output
    finally:
        worker.clean_up()
        server.remove(name)
        REDIS.remove(name)
