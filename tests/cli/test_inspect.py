"""`taskiq inspect`, run as its users run it, and the rules of what it shows."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from taskiq.cli.health.files import HealthDirectory
from taskiq.cli.inspect.exporter import metrics
from taskiq.cli.inspect.flushes import explain, merged
from taskiq.cli.inspect.queues import Seen, total
from taskiq.cli.inspect.table import seconds, table
from taskiq.health import Flush, ListenerState, TaskFlushes
from taskiq.queues import DEAD, QueueDepth

from ..support.commands import RunningCommand
from ..support.environments import CHECKOUT
from ..support.hub import HANG
from ..test_health import beat, fleet

APPLICATION = """
from taskiq import InMemoryBroker
from taskiq.queues import QueueDepth

class Broker(InMemoryBroker):
    _qos = 10
    async def startup(self):
        raise AssertionError("it was started")
    async def queue_depths(self):
        text = open("depth").read()
        if not text:
            raise ConnectionError("refused")
        return [
            QueueDepth("tasks", int(text), 2, 1.5),
            QueueDepth("dead", 7, role="dead letters"),
        ]

broker = Broker()

@broker.task("insert", batch=True, batch_size=50, batch_timeout=0.5)
async def insert(rows: list[int]) -> list[int]:
    return rows

@broker.task("mail")
async def mail(address: str) -> None: ...
"""


@pytest.fixture
def application(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(APPLICATION)
    (tmp_path / "depth").write_text("3")
    return tmp_path


def inspect(
    directory: Path, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603 - our own command
        [sys.executable, "-m", "taskiq", "inspect", *arguments],
        capture_output=True,
        check=False,
        cwd=directory,
        encoding="utf-8",
        env={
            **os.environ,
            "PYTHONPATH": str(CHECKOUT),
            "TASKIQ_HEALTH_FILE": "",
            **environment,
        },
        timeout=HANG,
    )


def flushes(**fields: Any) -> TaskFlushes:
    """Give those of a task that is not remarkable."""
    last = tuple(Flush("size", 50, 0.1, float(at)) for at in range(5))
    usual = TaskFlushes("insert", 50, 0.5, 10, 50.0, 0.1, {"size": 10}, last)
    return usual._replace(**fields)


@pytest.fixture
def worker(tmp_path: Path) -> Path:
    """A directory with the heartbeats of two processes, one of them blocked."""
    files = HealthDirectory(tmp_path / "health")
    left = flushes(
        mean_messages=12.5,
        mean_waited=4.2,
        reasons={"timeout": 9, "size": 1},
        last=(Flush("size", 50, 0.1, 1.0), Flush("timeout", 3, 0.5, 2.0)),
    )
    now = time.time()
    one = beat(11, flushes=(left,), buffered=4, batches_open=1, oldest_age=0.25)
    both = fleet(one, beat(12, listener=ListenerState.LISTENING))
    assert both.roster is not None
    files.clear()
    files.write_roster(both.roster._replace(written_at=now + 1000))
    for each, answered in zip(both.heartbeats, (now + 1000, now - 60), strict=True):
        files.write(each._replace(answered_at=answered, started_at=now - 600))
    return tmp_path / "health"


# -- Tasks --------------------------------------------------------------------------


def test_tasks_are_shown_with_their_settings_and_what_does_not_fit(
    application: Path,
) -> None:
    done = inspect(application, "tasks", "app:broker")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "app:broker: app.Broker"
    [insert] = [line for line in lines if line.startswith("insert ")]
    assert insert.split(maxsplit=5) == [
        *("insert", "in", "batches", "50", "0.5"),
        "s  results=each, max_buffered=1000",
    ]
    assert any(re.match(r"mail +one by one$", line) for line in lines)
    assert "batch_size=50, but the broker hands out at most qos=10" in done.stdout


def test_tasks_are_given_to_scripts_with_how_their_batches_left(
    application: Path,
    worker: Path,
) -> None:
    done = inspect(
        application, "tasks", "app:broker", "--json", TASKIQ_HEALTH_FILE=str(worker)
    )
    record = json.loads(done.stdout)
    insert, mail = record["tasks"]
    assert (insert["name"], insert["batch"]["size"]) == ("insert", 50)
    assert insert["function"].startswith("app:insert:")
    assert insert["flushes"]["reasons"] == {"timeout": 9, "size": 1}
    assert (mail["batch"], mail["flushes"]) == (None, None)
    assert len(record["warnings"]) == 1


HOW_TO_SEE = "How the last batches left, and why: add --health-file"


def test_people_see_how_batches_left_or_how_to_see_it(
    application: Path,
    worker: Path,
) -> None:
    done = inspect(application, "tasks", "app:broker", "--health-file", str(worker))
    assert "12.5 of 50 (25%)" in done.stdout
    assert HOW_TO_SEE not in done.stdout
    assert HOW_TO_SEE in inspect(application, "tasks", "app:broker").stdout


def test_nothing_is_said_of_batches_where_no_worker_answers(application: Path) -> None:
    done = inspect(application, "tasks", "app:broker", "--health-file", "nowhere")
    assert done.returncode == 1
    assert "nowhere: no worker has written there" in done.stdout
    assert "No batch has left yet" not in done.stdout


def test_an_application_that_cannot_be_imported_is_one_line(application: Path) -> None:
    (application / "broken.py").write_text("1 / 0")
    for spec, status in (("app:brokre", 2), ("broken:broker", 1)):
        done = inspect(application, "tasks", spec)
        assert done.returncode == status
        assert len(done.stderr.splitlines()) == 1


# -- Workers ------------------------------------------------------------------------


def test_workers_are_shown_with_their_state_and_why_batches_are_small_and_late(
    tmp_path: Path,
    worker: Path,
) -> None:
    done = inspect(tmp_path, "workers", str(worker))
    assert done.returncode == 0, done.stderr
    first, second = re.findall(r"^worker-.*$", done.stdout, re.MULTILINE)
    assert "listening" in first
    assert first.split()[-2:] == ["0.25", "s"]
    assert re.search(r"blocked 6\d s", second)
    assert re.search(
        r"insert +10 +12.5 of 50 \(25%\) +4.20 s +timeout 9, size 1", done.stdout
    )
    assert "50 size, 3 timeout" in done.stdout
    assert "insert: small: most leave by timeout" in done.stdout
    assert "insert: late: the first message waits 4.20 s" in done.stdout
    assert re.search(
        r"Warning: host: worker-1 \(12\) is blocked for 6\d s", done.stdout
    )


def test_workers_are_given_to_scripts(tmp_path: Path, worker: Path) -> None:
    done = inspect(tmp_path, "workers", "--json", TASKIQ_HEALTH_FILE=str(worker))
    record = json.loads(done.stdout)
    assert [each["is_blocked"] for each in record["workers"]] == [False, True]
    assert record["workers"][0]["buffered"] == 4
    assert len(record["not_live"]) == 1


def test_a_worker_that_does_not_answer_is_named_beside_the_others(
    tmp_path: Path,
    worker: Path,
) -> None:
    away = "http://127.0.0.1:1"
    done = inspect(tmp_path, "workers", str(worker), away, str(tmp_path / "nowhere"))
    assert done.returncode == 1
    assert "worker-0" in done.stdout
    assert f"Warning: {away}: " in done.stdout
    assert "nowhere: no worker has written there" in done.stdout


def test_without_a_worker_to_ask_it_says_how_to_name_one(tmp_path: Path) -> None:
    done = inspect(tmp_path, "workers")
    assert done.returncode == 2
    assert "TASKIQ_HEALTH_FILE" in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_watching_shows_it_again_until_ctrl_c(tmp_path: Path, worker: Path) -> None:
    command = RunningCommand(
        ["-m", "taskiq", "inspect", "workers", str(worker), "--watch", "0.05"],
        tmp_path,
        {},
    )
    try:
        command.wait_for_line("WORKER", 3)
        command.signal(signal.SIGINT)
        assert command.wait() == 0
    finally:
        command.clean_up()
    assert "Traceback" not in command.output


# -- Queues -------------------------------------------------------------------------


def test_queues_are_shown_and_what_is_not_known_is_said(application: Path) -> None:
    done = inspect(application, "queues", "app:broker")
    assert done.returncode == 0, done.stderr
    assert re.search(r"tasks +tasks +3 +2 +1.50 s", done.stdout)
    assert re.search(r"dead +dead letters +7 +not known +not known", done.stdout)
    record = json.loads(inspect(application, "queues", "app:broker", "--json").stdout)
    assert record["total"] == 5
    assert record["queues"][1]["unacknowledged"] is None


def test_a_broker_that_does_not_answer_is_an_error(application: Path) -> None:
    (application / "depth").write_text("")
    done = inspect(application, "queues", "app:broker")
    said = "The broker cannot be asked: ConnectionError: refused\n"
    assert (done.returncode, done.stdout) == (1, said)


@pytest.fixture
def exporter(application: Path) -> Iterator[RunningCommand]:
    command = RunningCommand(
        ["-m", "taskiq", "inspect", "queues", "app:broker", "--port=0"],
        application,
        {},
    )
    yield command
    command.clean_up()


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_depths_are_served_while_no_worker_runs(
    exporter: RunningCommand,
    application: Path,
) -> None:
    exporter.wait_for_line(r"at port \d+")
    port = exporter.output.rpartition(" ")[2].strip(".")
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as reply:
        assert reply.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        text = reply.read().decode()
    assert 'taskiq_queue_depth{queue="tasks",role="tasks"} 3\n' in text
    assert "taskiq_queue_up 1\n" in text

    (application / "depth").write_text("")
    end = time.monotonic() + HANG
    while "taskiq_queue_up 0\n" not in text:
        assert time.monotonic() < end, text
        time.sleep(0.1)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as reply:
            text = reply.read().decode()
    assert "taskiq_queue_depth{" not in text
    with pytest.raises(urllib.error.HTTPError, match="503"):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/queues")
    assert exporter.stop() == 0


def test_prometheus_reads_what_is_served() -> None:
    parser = pytest.importorskip("prometheus_client.parser")
    seen = Seen(
        [QueueDepth('a "b"\\c', 3, None, None), QueueDepth("empty", 0, 0)], None
    )
    families = parser.text_string_to_metric_families("".join(metrics(seen)))
    found = {
        (sample.name, sample.labels.get("queue")): sample.value
        for family in families
        for sample in family.samples
    }
    assert found == {
        ("taskiq_queue_up", None): 1,
        ("taskiq_queue_total", None): 3,
        ("taskiq_queue_depth", 'a "b"\\c'): 3,
        ("taskiq_queue_depth", "empty"): 0,
        ("taskiq_queue_unacknowledged", "empty"): 0,
        ("taskiq_queue_oldest_seconds", "empty"): 0,
    }


@pytest.mark.parametrize(
    ("queues", "count"),
    [
        ([QueueDepth("a", 3, 2), QueueDepth("b", 1)], 6),
        ([QueueDepth("a", 3), QueueDepth("dead", 9, role=DEAD)], 3),
        ([QueueDepth("a", 3), QueueDepth("b")], None),
        ([], None),
    ],
)
def test_the_total_is_of_messages_to_be_run_and_never_of_a_part(
    queues: list[QueueDepth],
    count: int | None,
) -> None:
    assert total(Seen(queues, None)) == count


# -- Why batches are small, or late -------------------------------------------------


def same(count: int) -> tuple[Flush, ...]:
    return tuple(Flush("timeout", count, 0.5, float(at)) for at in range(5))


@pytest.mark.parametrize(
    ("fields", "starts"),
    [
        ({}, []),
        ({"mean_messages": 5, "reasons": {"timeout": 10}}, ["small: most leave by"]),
        (
            {"mean_messages": 8, "reasons": {"timeout": 10}, "last": same(8)},
            ["small: it is always 8 messages"],
        ),
        (
            {"mean_messages": 1, "reasons": {"timeout": 10}, "last": same(1)},
            ["small: most leave by timeout"],
        ),
        ({"mean_messages": 5, "reasons": {"idle": 10}}, ["small: most leave as no"]),
        ({"mean_messages": 5, "reasons": {"weight": 10}}, ["small: most leave as ba"]),
        ({"mean_messages": 5, "reasons": {"shutdown": 10}}, []),
        ({"reasons": {"size": 9, "pressure": 1}}, ["pressure: the process held"]),
        ({"mean_waited": 0.6}, []),
        ({"mean_waited": 0.8}, ["late: the first message waits 0.80 s"]),
    ],
)
def test_batches_that_are_small_or_late_are_explained(
    fields: dict[str, Any],
    starts: list[str],
) -> None:
    told = explain(flushes(**fields))
    assert [text[: len(start)] for text, start in zip(told, starts, strict=True)] == (
        starts
    )


def test_what_several_processes_say_of_a_task_is_weighed() -> None:
    few = flushes(batches=1, mean_messages=10, mean_waited=1, reasons={"idle": 1})
    other = flushes(task="other")
    summed, alone = merged([flushes(batches=3), other, few])
    assert alone == other
    assert (summed.batches, summed.mean_messages) == (4, 40)
    assert summed.mean_waited == pytest.approx(0.325)
    assert summed.reasons == {"size": 10, "idle": 1}
    assert [flush.at for flush in summed.last] == [2.0, 3.0, 3.0, 4.0, 4.0]


# -- Tables -------------------------------------------------------------------------


def test_a_table_fits_its_terminal_and_cuts_no_number() -> None:
    titles = ("NAME", "COUNT", "SPARE", "TEXT")
    rows = [("a" * 30, "123456", "x", "b" * 20), ("c", "7", "y", "d")]
    assert table(titles, rows, None)[2] == (f"c{' ' * 29}       7  y      d")
    for width in range(30, 80):
        lines = table(titles, rows, width, spare=["SPARE"])
        assert max(map(len, lines)) <= width
        assert "123456" in lines[1]
        assert ("SPARE" in lines[0]) == (width >= 67)


def test_what_is_to_be_copied_is_not_cut() -> None:
    rows = [("0123456789abcdef", "a text that is long enough to be cut")]
    [_, row] = table(("ID", "ERROR"), rows, 30, whole=["ID"])
    assert row == "0123456789abcdef  a text that…"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0.004, "0.00 s"),
        (9.99, "9.99 s"),
        (12.34, "12.3 s"),
        (150, "150 s"),
        (3600, "60 min"),
        (86400, "24 h"),
        (864000, "10 d"),
    ],
)
def test_times_are_read_at_a_glance(value: float | None, text: str) -> None:
    assert seconds(value) == text
