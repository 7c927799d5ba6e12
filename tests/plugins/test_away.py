"""What a worker prints whose server is not there: one line an attempt.

In an outage it is one line when that begins, and one at its end, whatever its client
makes of it.
"""

from __future__ import annotations

import re
import sys
import time
import uuid
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support.commands import RunningCommand
from tests.support.ports import free_port
from tests.support.proxy import Proxy

from .servers import NATS, POSTGRES, RABBITMQ, REDIS, Server

APP = """
from taskiq_aio_pika import AioPikaBroker
from taskiq_nats import PullBasedJetStreamBroker
rabbitmq = AioPikaBroker("amqp://guest:guest@127.0.0.1:{port}/")
nats = PullBasedJetStreamBroker(["nats://127.0.0.1:{port}"])
"""

#: The client of NATS tries again by itself, and gives up late.
TOLD = {
    "rabbitmq": r"Cannot start the broker, it is tried again in \S+ s: AMQPConnection",
    "nats": "nats: encountered error: ConnectionRefusedError",
}

pytestmark = pytest.mark.skipif(
    sys.platform == "win32",
    reason="Windows has no signals to send to other processes",
)


@pytest.mark.parametrize("broker", TOLD)
def test_each_attempt_to_reach_a_server_is_one_line(
    broker: str, tmp_path: Path
) -> None:
    (tmp_path / "app_of_away.py").write_text(APP.format(port=free_port()))
    worker = RunningCommand(
        ["-m", "taskiq", "worker", f"app_of_away:{broker}", "--workers=1"],
        tmp_path,
        {},
    )
    try:
        worker.wait_for_line(TOLD[broker], 2)
        before_the_stop = list(worker.lines)
    finally:
        worker.clean_up()
    others = [line for line in before_the_stop if not re.search(TOLD[broker], line)]
    assert [re.sub(r".*\] ", "", line)[:16] for line in others] == [
        "Starting 1 worke",
        "Started process ",
    ]


CONNECTED = """
import os
from taskiq.adapters import redis as adapted
from taskiq_aio_pika import AioPikaBroker, Exchange, Queue
from taskiq_nats import PullBasedJetStreamBroker
from taskiq_pg.asyncpg import AsyncpgBroker
from taskiq_redis import ListQueueBroker, PubSubBroker, RedisStreamBroker
url, name = os.environ["APP_URL"], os.environ["APP_NAME"]
broker = {make}
"""
#: Those whose clients fail, fail late, or connect again by themselves and tell of it.
BROKERS = {
    "list": (REDIS, "ListQueueBroker(url, queue_name=name)"),
    "adapted_list": (REDIS, "adapted.ListQueueBroker(url, queue_name=name)"),
    "pubsub": (REDIS, "PubSubBroker(url, queue_name=name)"),
    "stream": (REDIS, "RedisStreamBroker(url, queue_name=name)"),
    "rabbitmq": (
        RABBITMQ,
        "AioPikaBroker(url, exchange=Exchange(name=f'{name}-exchange'), "
        "task_queues=[Queue(name=f'{name}-queue')], "
        "dead_letter_queue=Queue(name=f'{name}-dead'))",
    ),
    "nats": (
        NATS,
        "PullBasedJetStreamBroker([url], subject=f'{name}-subject', "
        "stream_name=f'{name}-stream', durable=f'{name}-durable')",
    ),
    "postgresql": (
        POSTGRES,
        "AsyncpgBroker(url, table_name=name.replace('-', '_') + '_messages', "
        "channel_name=name.replace('-', '_'))",
    ),
}
#: Seconds without messages, more than any client waits for one; and without a server.
IDLE, AWAY = 6, 5
BEGINS = r"The listener failed, it is started again|The broker is away, its client"


def way_to(server: Server) -> tuple[Proxy, str]:
    """Open a way to a server, and give its address there."""
    parts = urlsplit(server.url)
    assert parts.hostname is not None
    assert parts.port is not None
    proxy = Proxy(parts.hostname, parts.port)
    proxy.open()
    login, at, _ = parts.netloc.rpartition("@")
    netloc = f"{login}{at}127.0.0.1:{proxy.port}"
    return proxy, parts._replace(netloc=netloc).geturl()


def start(kind: str, directory: Path, stack: ExitStack) -> tuple[RunningCommand, Proxy]:
    server, make = BROKERS[kind]
    name = f"taskiq-plugins-{uuid.uuid4().hex}"
    stack.callback(server.remove, name)
    proxy, url = way_to(server)
    stack.callback(proxy.close)
    (directory / f"app_of_{kind}.py").write_text(CONNECTED.format(make=make))
    worker = RunningCommand(
        ["-m", "taskiq", "worker", f"app_of_{kind}:broker", "--workers=1"],
        directory,
        {"APP_URL": url, "APP_NAME": name},
    )
    stack.callback(worker.clean_up)
    return worker, proxy


def test_an_outage_is_one_line_when_it_begins_and_one_when_it_ends(
    tmp_path: Path,
) -> None:
    """All at the same time, since each is mostly waiting."""
    for server, _ in BROKERS.values():
        if reason := server.unavailable():
            pytest.skip(reason)
    with ExitStack() as stack:
        workers = {kind: start(kind, tmp_path, stack) for kind in BROKERS}
        for worker, _ in workers.values():
            worker.wait_for_line("Listening started")
        time.sleep(IDLE)
        before = {kind: len(worker.lines) for kind, (worker, _) in workers.items()}
        for _, proxy in workers.values():
            proxy.close()
        time.sleep(AWAY)
        for _, proxy in workers.values():
            proxy.open()
        told: dict[str, list[str]] = {}
        for kind, (worker, _) in workers.items():
            worker.wait_for_line("The broker is back after [0-9.]+ s")
            told[kind] = worker.lines[before[kind] :]
    for kind, lines in told.items():
        begin, end = lines
        assert re.search(BEGINS, begin), (kind, lines)
        assert "The broker is back after" in end, (kind, lines)
    # Nor did a worker say anything of messages that did not come before: all is of its
    # start, with an advice for the plugin of lists.
    assert {kind: count - 4 for kind, count in before.items() if count != 4} == {
        "list": 1,
    }
