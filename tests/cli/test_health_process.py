"""`taskiq health`, and a real worker whose health it tells."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from taskiq.cli.health.endpoint import Answer, Endpoint
from taskiq.cli.health.files import HealthDirectory

from ..support.hub import HANG, Hub
from ..support.ports import free_port
from ..test_health import beat, fleet
from .worker_process import Run

needs_signals = pytest.mark.skipif(
    sys.platform == "win32",
    reason="Windows has no signals to send to other processes",
)


def health(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603 - our own command
        [sys.executable, "-m", "taskiq", "health", *options],
        capture_output=True,
        check=False,
        encoding="utf-8",
        env={**os.environ, "TASKIQ_HEALTH_FILE": "", **environment},
        timeout=HANG,
    )


def write(directory: Path) -> None:
    """Write that two processes listen, from now on and for long."""
    files, both = HealthDirectory(directory), fleet(beat(11), beat(12))
    files.clear()
    assert both.roster is not None
    future = time.time() + 1000
    files.write_roster(both.roster._replace(written_at=future))
    for each in both.heartbeats:
        files.write(each._replace(answered_at=future))


def wait_until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + HANG
    while not condition():
        assert time.monotonic() < end, "it does not come true"
        time.sleep(0.05)


# -- The command --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "ready: 2 processes\n"),
        (("--ready",), "ready: 2 processes\n"),
        (("--live",), "live: 2 processes\n"),
    ],
)
def test_the_command_says_that_a_worker_is_well(
    tmp_path: Path,
    options: tuple[str, ...],
    said: str,
) -> None:
    write(tmp_path)
    done = health(*options, TASKIQ_HEALTH_FILE=str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (0, said, "")


def test_the_command_says_what_is_wrong_and_fails(tmp_path: Path) -> None:
    done = health("--health-file", str(tmp_path), "--live")
    said = "not live: no worker has written a heartbeat here\n"
    assert (done.returncode, done.stdout) == (1, said)


def test_a_file_that_is_no_heartbeat_is_named(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "worker-11.json").write_text("{")
    done = health("--health-file", str(tmp_path))
    assert done.returncode == 1
    assert re.fullmatch(
        r"taskiq health: .*worker-11.json is no heartbeat: .*\n", done.stderr
    )


def test_without_a_directory_it_says_how_to_name_one() -> None:
    done = health()
    assert done.returncode == 2
    assert "--health-file or TASKIQ_HEALTH_FILE" in done.stderr


def test_a_probe_imports_nothing_it_does_not_need(tmp_path: Path) -> None:
    write(tmp_path)
    script = """
import sys
before = set(sys.modules)  # what measures the coverage loads is not ours
from taskiq.__main__ import main
try:
    main()
finally:
    new = set(sys.modules) - before
    print(*sorted({"pydantic", "asyncio", "importlib.metadata", "dataclasses"} & new))
    print(*sorted(name for name in new if name.startswith("taskiq")))
"""
    done = subprocess.run(  # noqa: S603 - our own command
        [sys.executable, "-c", script, "health", f"--health-file={tmp_path}"],
        capture_output=True,
        check=True,
        encoding="utf-8",
        timeout=HANG,
    )
    said, unneeded, ours = done.stdout.splitlines()
    assert (said, unneeded) == ("ready: 2 processes", "")
    assert "taskiq.abc.broker" not in ours.split()


# -- Its server ---------------------------------------------------------------------


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    opened = Endpoint(0)
    yield opened
    opened.close()


def connect(endpoint: Endpoint) -> socket.socket:
    return socket.create_connection(("127.0.0.1", endpoint.port), timeout=HANG)


def echo(path: str) -> Answer:
    return Answer(200, path)


def reply_to(endpoint: Endpoint, *parts: bytes) -> str:
    with connect(endpoint) as client:
        for part in parts:
            client.sendall(part)
            endpoint.serve(echo)
        reply = b""
        while data := client.recv(4096):
            reply += data
    return reply.decode()


@pytest.mark.parametrize(
    ("parts", "status", "body"),
    [
        ([b"GET /live?x=1 HTTP/1.1\r\nHost: a\r\n\r\n"], "200 OK", "/live"),
        ([b"GET /re", b"ady HTTP/1.0\r\n", b"\r\n"], "200 OK", "/ready"),
        ([b"HEAD /live HTTP/1.1\r\n\r\n"], "200 OK", ""),
        ([b"POST /live HTTP/1.1\r\n\r\n"], "400 Bad Request", "Only GET and HEAD"),
        ([b"\r\n\r\n"], "400 Bad Request", "Only GET and HEAD"),
    ],
)
def test_requests_are_answered_however_they_come(
    endpoint: Endpoint,
    parts: list[bytes],
    status: str,
    body: str,
) -> None:
    head, _, text = reply_to(endpoint, *parts).partition("\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status}\r\n")
    assert text.startswith(body)
    assert len(endpoint.sockets) == 1, "connections are closed"


def test_clients_that_say_nothing_keep_nobody_else_waiting(endpoint: Endpoint) -> None:
    silent = [connect(endpoint) for _ in range(100)]
    endpoint.serve(echo)
    assert len(endpoint.sockets) <= 33
    assert "200 OK" in reply_to(endpoint, b"GET /live HTTP/1.1\r\n\r\n")
    for client in silent:
        client.close()
    endpoint.serve(echo)
    assert len(endpoint.sockets) == 1


# -- A worker -----------------------------------------------------------------------


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}") as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@needs_signals
def test_a_blocked_process_is_not_live_within_ten_seconds_and_the_others_say_so(
    hub: Hub,
    run: Run,
    tmp_path: Path,
) -> None:
    directory, port = tmp_path / "health", free_port()
    run("--workers=2", f"--health-file={directory}", f"--health-port={port}")
    hub.wait_for_listeners(2)
    wait_until(lambda: health(f"--health-file={directory}").returncode == 0)
    assert get(port, "/ready") == (200, "ready: 2 processes\n")

    hub.send("block")
    blocked = hub.wait_for("blocked")
    blocked_at = time.time()
    asked: list[float] = []

    def is_live() -> bool:
        asked.append(time.time())
        return get(port, "/live")[0] == 200

    wait_until(lambda: not is_live())
    told_at = time.time()
    status, text = get(port, "/live")
    told = re.fullmatch(
        rf"not live: {blocked['name']} \({blocked['pid']}\) is blocked for (\d+) s\n",
        text,
    )
    assert (status, bool(told)) == (503, True), text
    assert told is not None
    beats = {
        each["pid"]: each for each in json.loads(get(port, "/workers")[1])["workers"]
    }
    # Whoever asks learns it eight seconds after the last answer, and not before.
    answered_at = beats[blocked["pid"]]["answered_at"]
    assert answered_at < blocked_at
    assert asked[-2] - answered_at < 8 < told_at - answered_at
    assert 8 <= int(told[1]) <= round(time.time() - answered_at)
    assert health("--live", f"--health-file={directory}").returncode == 1
    lag = {pid: each["loop_lag"] for pid, each in beats.items()}
    assert lag.pop(blocked["pid"]) > 5
    assert max(lag.values()) < 5


@needs_signals
def test_a_broker_that_is_away_makes_nobody_restart_the_worker(
    hub: Hub,
    run: Run,
) -> None:
    port = free_port()
    worker = run("--workers=1", f"--health-port={port}")
    hub.wait_for_listeners()
    wait_until(lambda: get(port, "/ready")[0] == 200)

    hub.refuse()
    hub.listening[0].send(None)  # the listener fails
    wait_until(lambda: get(port, "/ready")[0] == 503)
    assert get(port, "/ready")[1].endswith(": broker away\n")
    assert get(port, "/live") == (200, "live: 1 process\n")
    assert len(worker.children) == 1


@needs_signals
def test_a_process_that_died_is_forgotten_and_a_stopped_worker_leaves_no_file(
    hub: Hub,
    run: Run,
    tmp_path: Path,
) -> None:
    (tmp_path / "worker-1.json").write_text("left by one that was killed")
    worker = run("--workers=1", f"--health-file={tmp_path}")
    hub.wait_for_listeners()

    hub.send("crash", 1)
    worker.wait_for_line(r"Listening started", 2)
    first, second = worker.children
    wait_until((tmp_path / f"worker-{second}.json").exists)
    assert not (tmp_path / f"worker-{first}.json").exists()

    hub.wait_for_listeners()
    hub.send("hold")
    hub.wait(lambda: hub.held)
    worker.signal(signal.SIGTERM)
    wait_until(lambda: ": stopping" in health(f"--health-file={tmp_path}").stdout)
    assert health("--live", f"--health-file={tmp_path}").returncode == 0
    hub.let_go()
    assert worker.wait() == 0
    assert not list(tmp_path.glob("*.json"))


@needs_signals
@pytest.mark.parametrize(
    "option",
    ["--health-file=/dev/null/x", "--health-port=", "--health-port=99999"],
)
def test_a_place_that_cannot_be_used_ends_the_command_with_one_line(
    run: Run,
    option: str,
) -> None:
    with socket.create_server(("", 0)) as taken:
        if option == "--health-port=":
            option += str(taken.getsockname()[1])
        worker = run(option)
        assert worker.wait() == 1
    assert re.search(r"Cannot (answer probes at port|write heartbeats)", worker.output)
    assert "Traceback" not in worker.output
