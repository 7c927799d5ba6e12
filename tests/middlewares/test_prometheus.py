from __future__ import annotations

import contextlib
import mmap
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from taskiq.middlewares import PrometheusMiddleware, _multiprocess
from taskiq.middlewares._multiprocess import remove_leftovers
from taskiq.middlewares.prometheus_middleware import _try_to_remove_leftovers
from tests.support.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Generator

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "PROMETHEUS_MULTIPROC_DIR"}


leaves_leftovers_on_windows = pytest.mark.skipif(
    sys.platform == "win32",
    reason="on Windows nothing tells that a process has ended, and nothing is removed",
)


class Program:
    """A process that runs one of the programs of `metered_worker`."""

    def __init__(self, name: str, directory: Path, port: int) -> None:
        self._process = subprocess.Popen(  # noqa: S603 - our own program
            [
                sys.executable,
                "-m",
                "tests.middlewares.metered_worker",
                name,
                str(directory),
                str(port),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=ENVIRONMENT,
        )
        self.pid = self._process.pid
        self.log = ""

    def output(self) -> str:
        """What it printed, once that is complete."""
        assert self._process.stdout is not None
        lines: list[str] = []
        for line in self._process.stdout:
            if line == "# END\n":
                return "".join(lines)
            lines.append(line)
        self.end()
        raise AssertionError(f"ended too early: {self.log}")

    def samples(self) -> dict[str, float]:
        """What it scraped: values by name and labels."""
        return {
            name: float(value)
            for line in self.output().splitlines()
            if line and not line.startswith("#")
            for name, _, value in [line.rpartition(" ")]
        }

    def end(self) -> None:
        """Let the process end and read its log."""
        if self._process.poll() is None or not self.log:
            _, self.log = self._process.communicate()


@contextlib.contextmanager
def running(name: str, directory: Path, port: int) -> Generator[Program]:
    program = Program(name, directory, port)
    try:
        yield program
    finally:
        program.end()


@pytest.fixture(scope="module")
def samples() -> Generator[dict[str, float]]:
    with (
        tempfile.TemporaryDirectory() as parent,
        running("worker", Path(parent, "new", "dir"), free_port()) as program,
    ):
        yield program.samples()


def test_failures_are_counted_by_what_becomes_of_them_task_and_reason(
    samples: dict[str, float],
) -> None:
    told = {k: v for k, v in samples.items() if k.startswith("taskiq_failures_")}
    assert told == {
        f'taskiq_failures_{ending}_total{{reason="error",task_name="{name}"}}': 1
        for ending, name in (
            ("acknowledged", "plain"),
            ("acknowledged", "batch"),
            ("acknowledged", "again"),
            ("sent_again", "again"),
            ("given_back", "given"),
            ("dead_lettered", "given"),
        )
    }


def test_plain_tasks_are_counted_and_timed_under_the_old_names(
    samples: dict[str, float],
) -> None:
    plain = {
        name.removesuffix('{task_name="plain"}'): value
        for name, value in samples.items()
        if name.endswith('{task_name="plain"}') and not name.startswith("execution")
    }

    assert plain == {
        "received_tasks_total": 4,
        "found_errors_total": 2,
        "success_tasks_total": 2,
        "saved_results_total": 3,
    }
    assert samples['execution_time_count{task_name="plain"}'] == 4
    assert samples['execution_time_sum{task_name="plain"}'] >= 0
    assert samples['execution_time_bucket{le="+Inf",task_name="plain"}'] == 4


def test_each_message_of_a_batch_is_counted_as_one_of_a_plain_task(
    samples: dict[str, float],
) -> None:
    assert samples['received_tasks_total{task_name="batch"}'] == 4
    assert samples['success_tasks_total{task_name="batch"}'] == 3
    assert samples['found_errors_total{task_name="batch"}'] == 1
    assert samples['saved_results_total{task_name="batch"}'] == 4
    assert samples['execution_time_count{task_name="batch"}'] == 4


def test_what_is_held_and_what_isolation_costs_is_measured_without_a_label_per_key(
    tmp_path: Path,
) -> None:
    with running("holding", tmp_path, free_port()) as program:
        held, ended = program.samples(), program.samples()

    assert held["taskiq_batch_buffered_messages"] == 5
    assert held["taskiq_batch_open_groups"] == 2
    assert ended["taskiq_batch_buffered_messages"] == 0
    assert ended["taskiq_batch_open_groups"] == 0
    # After [2, 4, 6]: [2], then [4], then [6].
    assert ended['taskiq_batch_isolation_calls_total{task_name="keyed"}'] == 3
    assert 'taskiq_batch_isolation_calls_total{task_name="keyed"}' not in held


def test_batches_are_measured_by_size_wait_run_and_reason(
    samples: dict[str, float],
) -> None:
    assert samples['taskiq_batch_size_count{task_name="batch"}'] == 2
    assert samples['taskiq_batch_size_sum{task_name="batch"}'] == 4
    assert samples['taskiq_batch_size_bucket{le="1.0",task_name="batch"}'] == 1
    assert samples['taskiq_batch_size_bucket{le="2.0",task_name="batch"}'] == 1
    assert samples['taskiq_batch_size_bucket{le="5.0",task_name="batch"}'] == 2
    assert samples['taskiq_batch_wait_seconds_count{task_name="batch"}'] == 2
    assert samples['taskiq_batch_run_seconds_count{task_name="batch"}'] == 2
    if sys.platform != "win32":  # its clock ticks 64 times a second
        assert samples['taskiq_batch_run_seconds_sum{task_name="batch"}'] > 0
    flushes = 'taskiq_batch_flushes_total{reason="%s",task_name="batch"}'
    assert samples[flushes % "size"] == 1
    assert samples[flushes % "manual"] == 1


def test_no_metric_has_another_label_than_task_reason_and_bucket(
    samples: dict[str, float],
) -> None:
    labels = {
        pair.partition("=")[0]
        for name in samples
        if "{" in name
        for pair in name.partition("{")[2].rstrip("}").split(",")
    }

    assert labels == {"task_name", "reason", "le"}


def test_a_second_instance_in_a_process_counts_into_the_same_metrics(
    tmp_path: Path,
) -> None:
    with running("two_instances", tmp_path, free_port()) as program:
        samples = program.samples()

    assert samples['received_tasks_total{task_name="plain"}'] == 4


def test_a_metric_of_somebody_else_is_not_counted_into(tmp_path: Path) -> None:
    with running("name_taken", tmp_path, free_port()) as program:
        assert "Duplicated timeseries" in program.output()


def test_metrics_that_stay_in_memory_are_said(tmp_path: Path) -> None:
    with running("imported_before", tmp_path, free_port()) as program:
        assert program.samples() == {}

    assert "WARNING:taskiq.prometheus:prometheus_client was imported" in program.log


def test_metrics_in_files_are_no_reason_to_warn(tmp_path: Path) -> None:
    with running("worker", tmp_path, free_port()) as program:
        program.output()

    assert "WARNING:taskiq.prometheus" not in program.log


@leaves_leftovers_on_windows
def test_a_restarted_worker_counts_from_zero(tmp_path: Path) -> None:
    port = free_port()
    for _ in range(2):
        with running("worker", tmp_path, port) as program:
            samples = program.samples()

    assert samples['received_tasks_total{task_name="plain"}'] == 4


@pytest.mark.skipif(
    sys.platform == "win32",
    reason="on Windows several processes may listen at one port",
)
def test_one_worker_serves_all_and_keeps_what_its_siblings_counted(
    tmp_path: Path,
) -> None:
    port = free_port()
    with running("worker", tmp_path, port) as server:
        first = server.samples()
        with running("worker", tmp_path, port) as sibling:
            second = sibling.samples()
        with running("worker", tmp_path, port) as successor:
            third = successor.samples()

    totals = [
        each['received_tasks_total{task_name="plain"}']
        for each in (first, second, third)
    ]
    assert totals == [4, 8, 12]
    assert "DEBUG:taskiq.prometheus:Metrics are not served" in sibling.log


def test_an_address_that_cannot_be_served_is_said_and_harms_no_task(
    tmp_path: Path,
) -> None:
    with running("bad_address", tmp_path, free_port()) as program:
        assert program.output() == "ran\n"

    assert "WARNING:taskiq.prometheus:Metrics are not served at 192.0." in program.log


def test_leftovers_that_cannot_be_removed_are_said(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    _try_to_remove_leftovers(tmp_path / "missing")

    assert "Cannot remove the metrics of ended processes" in caplog.text


def ended_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@contextlib.contextmanager
def running_process() -> Generator[int]:
    """Give the id of another process, which counts nothing."""
    waiting = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    with subprocess.Popen(waiting, stdin=subprocess.PIPE) as process:  # noqa: S603 - our own command
        yield process.pid


def touch(directory: Path, *names: str) -> None:
    for name in names:
        (directory / name).write_bytes(bytes(8))


def names_in(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


@leaves_leftovers_on_windows
def test_only_files_of_prometheus_are_removed(tmp_path: Path) -> None:
    pid = ended_pid()
    leftover = {f"{kind}_{pid}.db" for kind in ("counter", "histogram", "summary")}
    others = {"counter_x.db", f"notes_{pid}.db", f"counter_{pid}.db.bak", "readme"}
    touch(tmp_path, *leftover, *others, f"gauge_liveall_{pid}.db")

    remove_leftovers(tmp_path)

    assert names_in(tmp_path) == others


@contextlib.contextmanager
def mapped(directory: Path, pid: int) -> Generator[str]:
    """Make the file of a process that is counting, and map it as it would."""
    name = f"counter_{pid}.db"
    with (directory / name).open("w+b") as file:
        file.write(bytes(8))
        file.flush()
        with mmap.mmap(file.fileno(), 8):
            yield name


@leaves_leftovers_on_windows
def test_the_own_file_of_the_process_does_not_keep_those_of_others(
    tmp_path: Path,
) -> None:
    touch(tmp_path, f"counter_{ended_pid()}.db")

    with mapped(tmp_path, os.getpid()) as own:
        remove_leftovers(tmp_path)

        assert names_in(tmp_path) == {own}


def test_while_another_counts_only_live_gauges_of_the_ended_are_removed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pid = ended_pid()
    kept = {f"counter_{pid}.db", f"gauge_all_{pid}.db", "counter_1.db"}
    touch(tmp_path, *kept, f"gauge_livesum_{pid}.db")

    def is_in_use(file: Path, owner: int) -> bool:
        return owner == 1

    monkeypatch.setattr(_multiprocess, "_is_in_use", is_in_use)
    remove_leftovers(tmp_path)

    assert names_in(tmp_path) == kept


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux shows mapped files")
def test_a_process_with_the_id_of_an_ended_one_is_not_taken_for_it(
    tmp_path: Path,
) -> None:
    # As after the restart of a container, where each start gives the same ids.
    with running_process() as pid:
        touch(tmp_path, f"counter_{os.getpid()}.db", f"counter_{pid}.db")

        remove_leftovers(tmp_path)

    assert names_in(tmp_path) == set()


@leaves_leftovers_on_windows
def test_where_mapped_files_cannot_be_seen_a_running_process_keeps_its_file(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_proc(*args: Any, **kwargs: Any) -> Any:
        raise FileNotFoundError

    monkeypatch.setattr(_multiprocess, "open", no_proc, raising=False)
    ended_name = f"counter_{ended_pid()}.db"
    with running_process() as pid:
        running_name = f"counter_{pid}.db"
        touch(tmp_path, running_name, ended_name)

        remove_leftovers(tmp_path)
        assert names_in(tmp_path) == {running_name, ended_name}

    (tmp_path / running_name).unlink()
    remove_leftovers(tmp_path)
    assert names_in(tmp_path) == set()


def test_without_prometheus_client_the_constructor_says_what_to_install(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "restored afterwards")
    monkeypatch.setitem(sys.modules, "prometheus_client", None)

    with pytest.raises(ImportError, match=r"pip install taskiq\[metrics\]"):
        PrometheusMiddleware(tmp_path)


def test_a_client_serves_nothing(tmp_path: Path) -> None:
    with running("client", tmp_path, free_port()) as program:
        assert program.output() == "the port is free\n"
