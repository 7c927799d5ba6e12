"""The files to deploy with are valid, fit together, and start a worker."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from taskiq.cli.worker.args import WorkerArgs

from .support.commands import RunningCommand
from .support.environments import CHECKOUT
from .support.hub import HANG

DEPLOY = Path(__file__).parent.parent / "docs" / "examples" / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text("utf-8")
UNIT = (DEPLOY / "taskiq-worker.service").read_text("utf-8")
KUBERNETES = (DEPLOY / "kubernetes.yaml").read_text("utf-8")
#: Seconds that a worker may take beside what it is told to wait for.
REST = 10

APPLICATION = """
from taskiq import InMemoryBroker
class Broker(InMemoryBroker):
    async def listen(self):
        import asyncio
        await asyncio.Event().wait()
        yield b""
broker = Broker()
"""


def one(pattern: str, text: str) -> str:
    [found] = re.findall(pattern, text, re.MULTILINE)
    return str(found)


def words(instruction: str) -> list[str]:
    """Give the words of the last such instruction, which has them in brackets."""
    found: list[str] = json.loads(one(rf"^{instruction} .*?(\[.*\])$", DOCKERFILE))
    return found


ARGUMENTS = {
    "container": (words("CMD"), 60),  # as the page says it to Docker
    "systemd": (
        one(r"^ExecStart=\S+ worker (.*)$", UNIT).split(),
        int(one(r"^TimeoutStopSec=(\d+)$", UNIT)),
    ),
    "Kubernetes": (
        json.loads(one(r"^ +args: (\[.*\])$", KUBERNETES)),
        int(one(r"^ +terminationGracePeriodSeconds: (\d+)$", KUBERNETES)),
    ),
}


@pytest.mark.parametrize("where", ARGUMENTS)
def test_the_supervisor_waits_longer_than_the_worker(where: str) -> None:
    arguments, patience = ARGUMENTS[where]
    args = WorkerArgs.from_cli(arguments)
    assert args.wait_tasks_timeout is not None
    assert args.wait_tasks_timeout + args.shutdown_timeout + REST <= patience


def test_the_image_has_two_stages_and_runs_as_nobody_without_a_shell() -> None:
    assert len(re.findall(r"^FROM ", DOCKERFILE, re.MULTILINE)) == 2
    assert one(r"^USER (\S+)$", DOCKERFILE) == one(r"runAsUser: (\d+)", KUBERNETES)
    assert one(r"^STOPSIGNAL (\S+)$", DOCKERFILE) == "SIGTERM"
    assert words("ENTRYPOINT") == ["taskiq", "worker"]


def test_the_image_is_not_built_with_another_taskiq() -> None:
    """As the page on production says it, too."""
    check = one(r'^RUN /opt/venv/bin/(python -c "import .*")$', DOCKERFILE)
    for page in ("guide/production.md", "install.md"):
        assert check in (DEPLOY.parents[1] / page).read_text("utf-8")
    code = shlex.split(check)[-1]
    subprocess.run([sys.executable, "-c", code], check=True, timeout=HANG)  # noqa: S603


def test_probes_ask_for_what_they_are_for_at_the_port_that_answers() -> None:
    live, ready = (
        one(rf"{probe}Probe:\n +httpGet:\n +path: (\S+)\n +port: health$", KUBERNETES)
        for probe in ("liveness", "readiness")
    )
    assert (live, ready) == ("/live", "/ready")
    port = WorkerArgs.from_cli(ARGUMENTS["Kubernetes"][0]).health_port
    assert one(r"containerPort: (\d+)", KUBERNETES) == str(port)
    # The file is made of two spaces a level and has no tabs; its parts have a kind.
    assert re.findall(r"^kind: (\S+)", KUBERNETES, re.MULTILINE) == [
        "Deployment",
        "PodDisruptionBudget",
    ]
    assert not re.search(r"^(  )* \S|\t", KUBERNETES, re.MULTILINE)
    labels = re.findall(r"(?:matchLabels|labels):\n +(.*)$", KUBERNETES, re.MULTILINE)
    assert set(labels) == {"app: worker"}


def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path) -> None:
    tool = shutil.which("systemd-analyze")
    if tool is None:
        pytest.skip("systemd-analyze is not installed")
    unit = tmp_path / "taskiq-worker.service"
    # It looks whether the program is there.
    unit.write_text(UNIT.replace("/opt/venv/bin/taskiq", sys.executable), "utf-8")
    done = subprocess.run(  # noqa: S603 - a tool of the system
        [tool, "verify", "--man=no", str(unit)],
        capture_output=True,
        check=False,
        encoding="utf-8",
        timeout=HANG,
    )
    told = [line for line in done.stderr.splitlines() if unit.name in line]
    assert (done.returncode, told) == (0, []), done.stderr


@pytest.mark.skipif(os.name == "nt", reason="the image is one of Linux")
def test_the_command_of_the_image_starts_answers_its_check_and_stops(
    tmp_path: Path,
) -> None:
    (tmp_path / "app.py").write_text(APPLICATION, "utf-8")
    health = {"TASKIQ_HEALTH_FILE": str(tmp_path / "health")}
    assert "TASKIQ_HEALTH_FILE=" in DOCKERFILE
    command = ["-m", *words("ENTRYPOINT"), *words("CMD")]
    running = RunningCommand(command, tmp_path, health)
    try:
        running.wait_for_line("Listening started", count=2)
        deadline = time.monotonic() + HANG
        while check(health).returncode:
            assert time.monotonic() < deadline, running.output
        running.signal(signal.Signals[one(r"^STOPSIGNAL (\S+)$", DOCKERFILE)])
        assert running.wait() == 0, running.output
        assert all(json.loads(line)["message"] for line in running.lines)
    finally:
        running.clean_up()


def check(environment: dict[str, str]) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(  # noqa: S603 - our own command
        [sys.executable, "-m", *words("HEALTHCHECK")],
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT), **environment},
        timeout=HANG,
    )
