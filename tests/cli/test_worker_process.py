"""`taskiq worker` as its users meet it: real processes, real signals."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import sys
from pathlib import Path

import pytest

from ..support.hub import Hub
from .worker_process import COMMAND, Run, command_with

pytestmark = pytest.mark.skipif(
    sys.platform == "win32",
    reason="Windows has no signals to send to other processes",
)

SIGINT, SIGTERM = signal.SIGINT, signal.SIGTERM


def needs_uvloop() -> None:
    if importlib.util.find_spec("uvloop") is None:
        pytest.skip("uvloop is not installed")


# -- An idle worker ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("signum", "uvloop", "workers"),
    [
        (SIGINT, False, 1),
        (SIGTERM, False, 4),
        (SIGINT, True, 4),
        (SIGTERM, True, 1),
    ],
)
def test_an_idle_worker_stops_at_one_signal(
    hub: Hub,
    run: Run,
    signum: signal.Signals,
    uvloop: bool,
    workers: int,
) -> None:
    if uvloop:
        needs_uvloop()
    worker = run(f"--workers={workers}", uvloop=uvloop)
    hub.wait_for_listeners(workers)

    worker.signal(signum)

    assert worker.wait() == 0
    assert len(hub.all("shutdown")) == workers
    assert {report["loop"] == "uvloop" for report in hub.all("startup")} == {uvloop}
    assert "Traceback" not in worker.output


def test_ctrl_c_in_a_terminal_is_no_error(hub: Hub, run: Run) -> None:
    worker = run("--workers=2")
    hub.wait_for_listeners(2)

    for _ in range(3):
        worker.signal_all(SIGINT)

    assert worker.wait() == 0
    assert len(hub.all("shutdown")) == 2
    assert "Traceback" not in worker.output


@pytest.mark.parametrize(
    ("method", "signum"),
    [("fork", SIGINT), ("spawn", SIGTERM)],
)
def test_a_signal_ends_a_worker_that_is_still_importing(
    hub: Hub,
    run: Run,
    tmp_path: Path,
    method: str,
    signum: signal.Signals,
) -> None:
    text = """
import time, worker_app
worker_app.report("importing")
while True:
    time.sleep(0.01)
"""
    (tmp_path / "slow_module.py").write_text(text)
    worker = run("slow_module", "--workers=1", command=command_with(method))
    hub.wait_for("importing")

    worker.signal_all(signum)

    assert worker.wait() == 0
    assert not hub.all("startup")
    worker.wait_for_line("All workers have ended")
    assert "Traceback" not in worker.output


def test_the_main_process_never_imports_the_broker(hub: Hub, run: Run) -> None:
    worker = run("--workers=1")
    hub.wait_for_listeners()
    assert {line.pid for line in hub.alive} == set(worker.children)
    assert {line.name for line in hub.alive} == {"worker-0"}
    assert worker.stop() == 0


def test_an_application_s_modules_cost_no_garbage_collection(
    hub: Hub,
    run: Run,
) -> None:
    worker = run("--workers=1")
    hub.wait_for_listeners()
    (started,) = hub.all("startup")
    assert started["frozen"] > 10_000
    assert worker.stop() == 0


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_children_log_under_every_start_method(
    hub: Hub,
    run: Run,
    method: str,
) -> None:
    worker = run(
        "--workers=1",
        "--log-format=<%(message)s>",
        command=command_with(method),
    )
    hub.wait_for_listeners()
    worker.wait_for_line("<Listening started.>")
    hub.send("warn")
    worker.wait_for_line("<said by the application>")
    assert worker.stop() == 0
    assert "Traceback" not in worker.output


# -- A busy worker ----------------------------------------------------------------


def test_running_tasks_are_finished_and_the_broker_is_shut_down_after_them(
    hub: Hub,
    run: Run,
) -> None:
    worker = run("--workers=1")
    hub.wait_for_listeners()
    ids = {hub.send("hold"), hub.send("hold_sync")}
    hub.wait(lambda: len(hub.held) == 2)

    worker.signal_all(SIGTERM)
    hub.wait_for_listeners(0)
    hub.let_go()

    assert worker.wait() == 0
    assert {report["id"] for report in hub.all("result", error=None)} == ids
    assert {report["id"] for report in hub.all("ack")} == ids
    assert hub.reports[-1]["kind"] == "shutdown"


def test_tasks_that_take_longer_than_the_grace_time_are_given_up(
    hub: Hub,
    run: Run,
) -> None:
    worker = run("--workers=1", "--wait-tasks-timeout=0.1")
    hub.wait_for_listeners()
    hub.send("hold")
    hub.send("hold_sync")
    hub.wait(lambda: len(hub.held) == 2)

    assert worker.stop() == 0
    assert hub.all("cancelled")
    assert hub.all("shutdown")
    assert not hub.all("ack")
    assert "Traceback" not in worker.output


def test_signals_beyond_the_hard_kill_count_give_up_running_tasks(
    hub: Hub,
    run: Run,
) -> None:
    worker = run("--workers=1", "--hardkill-count=2")
    hub.wait_for_listeners()
    hub.send("hold")
    hub.send("hold_sync")
    hub.wait(lambda: len(hub.held) == 2)

    for count in (1, 2):
        worker.signal_all(SIGINT)
        worker.wait_for_line("scheduled for shutdown", count)
    assert not hub.all("cancelled")
    worker.signal_all(SIGINT)

    assert worker.wait() == 1
    assert hub.all("cancelled")
    assert hub.all("shutdown")
    assert not hub.all("ack")
    assert "Traceback" not in worker.output


def test_a_child_stuck_in_blocking_code_is_killed(hub: Hub, run: Run) -> None:
    worker = run("--workers=1", "--hardkill-count=1", "--shutdown-timeout=0")
    hub.wait_for_listeners()
    hub.send("block")
    hub.wait_for("blocked")

    worker.signal(SIGINT)
    worker.wait_for_line("scheduled for shutdown")
    worker.signal(SIGINT)

    assert worker.wait() == 1
    worker.wait_for_line("worker-0 .* killed by SIGKILL")


def test_no_child_outlives_a_main_process_that_was_killed(hub: Hub, run: Run) -> None:
    worker = run("--workers=3")
    hub.wait_for_listeners(3)

    worker.signal(signal.SIGKILL)

    worker.wait()
    assert len(hub.all("shutdown")) == 3


# -- Children come and go ---------------------------------------------------------


def test_sighup_replaces_every_child_and_loses_no_task(hub: Hub, run: Run) -> None:
    worker = run("--workers=2")
    hub.wait_for_listeners(2)
    old = list(worker.children)
    task_id = hub.send("hold")
    hub.wait(lambda: hub.held)

    worker.signal(signal.SIGHUP)
    hub.wait_for_listeners(1)
    hub.let_go()
    hub.wait_for("ack", id=task_id)
    hub.wait(lambda: len(hub.all("listening")) == 4)
    hub.wait_for_listeners(2)

    assert {line.pid for line in hub.listening}.isdisjoint(old)
    assert {line.name for line in hub.listening} == {"worker-0", "worker-1"}
    assert worker.stop() == 0


def test_a_shutdown_does_not_wait_for_a_reload(hub: Hub, run: Run) -> None:
    worker = run("--workers=2", "--log-level=DEBUG")
    hub.wait_for_listeners(2)
    first = next(n for n, line in enumerate(hub.listening) if line.name == "worker-0")
    hub.send("hold", to=first)
    hub.wait(lambda: hub.held)

    worker.signal(signal.SIGHUP)
    worker.wait_for_line("Told worker-0 .* to end")
    worker.signal(SIGTERM)
    worker.wait_for_line("Told worker-1 .* to end")
    hub.let_go()

    assert worker.wait() == 0
    assert len(worker.children) == 2


def test_a_child_that_crashes_is_replaced(hub: Hub, run: Run) -> None:
    worker = run("--workers=1")
    hub.wait_for_listeners()
    hub.send("crash", 3)
    worker.wait_for_line("worker-0 .* ended: exit code 3")
    hub.wait(lambda: len(hub.all("listening")) == 2)
    os.kill(hub.listening[-1].pid, signal.SIGKILL)
    worker.wait_for_line("worker-0 .* ended: killed by SIGKILL")
    hub.wait(lambda: len(hub.all("listening")) == 3)
    assert worker.stop() == 0


def test_too_many_failures_stop_the_remaining_children(hub: Hub, run: Run) -> None:
    worker = run("--workers=2", "--max-fails=1")
    hub.wait_for_listeners(2)
    hub.send("crash", 1)
    hub.wait(lambda: len(hub.all("listening")) == 3)
    hub.wait_for_listeners(2)
    hub.send("crash", 1)

    assert worker.wait() == 255
    assert hub.all("shutdown")
    worker.wait_for_line("More than 1 failures")


def test_a_child_that_has_run_its_number_of_tasks_is_no_failure(
    hub: Hub,
    run: Run,
) -> None:
    worker = run("--workers=1", "--max-tasks-per-child=2", "--max-fails=1")
    for round_ in (1, 2):
        hub.wait(lambda n=round_: len(hub.all("listening")) == n and hub.listening)  # type: ignore[misc]  # bound now
        hub.send("echo", 1)
        hub.send("echo", 2)
        hub.wait(lambda n=round_: len(hub.all("ack")) == 2 * n)  # type: ignore[misc]  # bound now
    hub.wait(lambda: len(hub.all("listening")) == 3)

    pids = [report["value"]["pid"] for report in hub.all("result")]
    assert pids[0] == pids[1] != pids[2] == pids[3]
    assert worker.stop() == 0


def test_a_failing_listener_is_restarted_in_its_process(hub: Hub, run: Run) -> None:
    worker = run("--workers=1")
    hub.wait_for_listeners()
    hub.listening[0].send(None)
    hub.wait(lambda: len(hub.all("listening")) == 2 and hub.listening)
    task_id = hub.send("echo", 5)
    hub.wait_for("ack", id=task_id)

    assert len(worker.children) == 1
    # Its broker is connected anew before.
    assert len(hub.all("startup")) == 2
    worker.wait_for_line("The listener failed, it is started again in 0.1 s")
    assert worker.stop() == 0


# -- Options ----------------------------------------------------------------------


def test_reload_watches_files_but_not_those_that_git_ignores(
    hub: Hub,
    run: Run,
    tmp_path: Path,
) -> None:
    (tmp_path / ".gitignore").write_text("*.log\n")
    worker = run("--reload", "--workers=3", "--log-level=DEBUG")
    hub.wait_for_listeners()
    assert len(worker.children) == 1

    (tmp_path / "some.log").write_text("ignored")
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "a.pyc").write_text("ignored")
    (tmp_path / "module.py").write_text("changed = True")

    worker.wait_for_line("File changed: .*module.py")
    hub.wait(lambda: len(hub.all("listening")) >= 2)
    changes = "\n".join(line for line in worker.lines if "File changed" in line)
    assert "some.log" not in changes
    assert "__pycache__" not in changes
    assert worker.stop() == 0


def test_a_receiver_of_the_application_gets_its_arguments(hub: Hub, run: Run) -> None:
    worker = run(
        "--workers=1",
        "--receiver=worker_app:EagerReceiver",
        "--receiver_arg=greeting=a=b",
        "--ack-type=WHEN_RECEIVED",
        broker="worker_app:make_broker",
    )
    hub.wait_for("greeting", text="a=b", ack_type="when_received")
    hub.wait_for_listeners()
    assert worker.stop() == 0


def test_task_modules_are_discovered_by_their_pattern(
    hub: Hub,
    run: Run,
    tmp_path: Path,
) -> None:
    (tmp_path / "deep" / "down").mkdir(parents=True)
    task = (
        "from worker_app import broker\n@broker.task('{0}')\ndef {0}(): return '{0}'\n"
    )
    (tmp_path / "deep" / "down" / "jobs.py").write_text(task.format("found"))
    (tmp_path / "named.py").write_text(task.format("named"))
    worker = run("named", "--workers=1", "--fs-discover", "--tasks-pattern=**/jobs.py")
    hub.wait_for_listeners()
    hub.send("found")
    hub.send("named")
    hub.wait_for("result", value="found", error=None)
    hub.wait_for("result", value="named", error=None)
    assert worker.stop() == 0


def test_a_worker_says_at_start_how_it_batches_and_what_it_may_hold_unacknowledged(
    hub: Hub,
    run: Run,
) -> None:
    worker = run("--workers=2", "--max-async-tasks=7", "--max-prefetch=4")
    hub.wait_for_listeners(2)
    # One line of each from each process: 7 + 4, and 1000 of the only batch task.
    worker.wait_for_line(
        "Task count runs in batches: batch_size=50, batch_timeout=5.0, "
        "batch_results=each, batch_max_buffered=1000",
        count=2,
    )
    worker.wait_for_line(
        "This process holds at most 1011 messages unacknowledged", count=2
    )
    assert worker.stop() == 0
    assert len(re.findall("runs in batches", worker.output)) == 2


def test_a_batch_task_gives_every_message_its_own_result(hub: Hub, run: Run) -> None:
    worker = run("--workers=1")
    hub.wait_for_listeners()
    expected = {hub.send("count", number): number for number in range(200)}
    hub.wait(lambda: len(hub.all("ack")) == 200)

    results = {report["id"]: report["value"] for report in hub.all("result")}
    assert results == {
        task_id: {"number": number, "batch": 50} for task_id, number in expected.items()
    }
    assert worker.stop() == 0


# -- A process pool ---------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [COMMAND, command_with("fork"), command_with("spawn")],
    ids=["default", "fork", "spawn"],
)
def test_a_pool_process_finishes_its_task_when_all_processes_are_signalled(
    hub: Hub,
    run: Run,
    command: tuple[str, ...],
) -> None:
    worker = run(
        "--workers=1",
        "--use-process-pool",
        "--max-process-pool-processes=2",
        command=command,
    )
    hub.wait_for_listeners()
    task_id = hub.send("hold_sync")
    hub.wait(lambda: hub.held)

    worker.signal_all(SIGTERM)
    worker.wait_for_line("Waiting for 1 running task to complete")
    hub.let_go()

    assert worker.wait() == 0
    [result] = hub.all("result", id=task_id, error=None)
    assert result["value"] not in worker.children
    assert hub.all("ack", id=task_id)
    assert "Traceback" not in worker.output
    worker.wait_for_line("All workers have ended")


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_no_pool_process_outlives_a_hard_kill(
    hub: Hub,
    run: Run,
    method: str,
) -> None:
    worker = run(
        "--workers=1",
        "--use-process-pool",
        "--max-process-pool-processes=2",
        "--hardkill-count=0",
        command=command_with(method),
    )
    hub.wait_for_listeners()
    hub.send("hold_sync")
    hub.wait(lambda: hub.held)

    worker.signal_all(SIGINT)

    assert worker.wait() == 1
    assert not hub.all("ack")
    assert hub.all("shutdown")


def test_a_worker_whose_pool_broke_can_be_stopped(hub: Hub, run: Run) -> None:
    worker = run("--workers=1", "--use-process-pool", "--max-process-pool-processes=2")
    hub.wait_for_listeners()
    hub.send("hold_sync")
    hub.send("hold_sync")
    hub.wait(lambda: len(hub.held) == 2)
    hub.let_go()
    hub.wait(lambda: len(hub.all("ack")) == 2)
    task_id = hub.send("crash_sync")
    assert "BrokenProcessPool" in hub.wait_for("result", id=task_id)["error"]
    assert worker.stop() == 0
