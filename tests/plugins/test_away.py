"""What a worker prints whose server is not there: one line an attempt."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.support.commands import RunningCommand
from tests.support.ports import free_port

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
