from __future__ import annotations

import asyncio
import logging
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from taskiq.api.scheduler import run_scheduler_task
from taskiq.cli.common_args import LogLevel
from taskiq.cli.scheduler.args import SchedulerArgs
from taskiq.cli.scheduler.run import SchedulerLoop, run_scheduler
from taskiq.scheduler.scheduler import TaskiqScheduler

from .fakes import ListSource, RecordingBroker, schedule
from .virtual_time import World


class Stage:
    """A scheduler with two sources and a broker that share a log."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.broker = RecordingBroker(self.log)
        self.first, self.second = ListSource(log=self.log), ListSource(log=self.log)
        self.first.name, self.second.name = "first", "second"
        self.scheduler = TaskiqScheduler(self.broker, [self.first, self.second])
        self.options: dict[str, Any] = {}

    def args(self, **fields: Any) -> SchedulerArgs:
        return SchedulerArgs(
            scheduler=self.scheduler,
            modules=[],
            configure_logging=False,
            **fields,
        )

    def let_loop(
        self,
        monkeypatch: pytest.MonkeyPatch,
        behave: Callable[[], Any],
    ) -> None:
        """Replace the loop by a function."""
        stage = self

        async def run(loop: SchedulerLoop, **options: Any) -> None:
            assert loop.scheduler is stage.scheduler
            stage.log.append("loop")
            stage.options = options
            await behave()

        monkeypatch.setattr(SchedulerLoop, "run", run)


needs_sigterm = pytest.mark.skipif(
    sys.platform == "win32",
    reason="no event loop handles SIGTERM on Windows, where it would end the tests",
)

STARTED = ["first starts", "second starts", "broker starts"]
ENDED = ["broker ends", "first ends", "second ends"]


async def cancel() -> None:
    raise asyncio.CancelledError


async def crash() -> None:
    raise RuntimeError("the loop broke")


@pytest.fixture
def stage() -> Stage:
    return Stage()


@pytest.fixture(autouse=True)
def process_settings() -> Iterator[None]:
    """Start without a SIGTERM handler; leave it and the log level as they were."""
    level = logging.getLogger("taskiq").level
    handler = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGTERM, handler)
    logging.getLogger("taskiq").setLevel(level)


async def test_sources_start_before_the_broker_and_end_after_it(
    stage: Stage,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage.let_loop(monkeypatch, cancel)
    await run_scheduler(stage.args())
    assert stage.log == [*STARTED, "loop", *ENDED]
    assert stage.broker.is_scheduler_process


async def test_the_loop_gets_the_arguments(
    stage: Stage,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage.let_loop(monkeypatch, cancel)
    await run_scheduler(
        stage.args(
            update_interval=0,
            loop_interval=5,
            skip_first_run=True,
            send_timeout=1.5,
            log_level=LogLevel.ERROR,
        ),
    )
    given = {
        name: value.total_seconds() if "interval" in name else value
        for name, value in stage.options.items()
    }
    assert given == {
        "update_interval": 0,
        "loop_interval": 5,
        "skip_first_run": True,
        "send_timeout": 1.5,
    }
    assert logging.getLogger("taskiq").level == logging.ERROR


async def test_an_error_of_the_loop_propagates_after_everything_was_shut_down(
    stage: Stage,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage.let_loop(monkeypatch, crash)
    with pytest.raises(RuntimeError, match="the loop broke"):
        await run_scheduler(stage.args())
    assert stage.log == [*STARTED, "loop", *ENDED]


async def test_a_bad_timeout_is_refused_before_anything_starts(stage: Stage) -> None:
    with pytest.raises(ValueError, match="send_timeout must be > 0"):
        await run_scheduler(stage.args(send_timeout=0))
    assert stage.log == []


@pytest.mark.parametrize("error", [OSError("no"), asyncio.CancelledError()])
async def test_a_failing_start_shuts_down_what_was_started_in_reverse(
    stage: Stage,
    caplog: pytest.LogCaptureFixture,
    error: BaseException,
) -> None:
    stage.broker.startup_error = error
    stage.second.shutdown_error = asyncio.CancelledError("cleanup failed")
    with pytest.raises(type(error)) as raised:
        await run_scheduler(stage.args())
    assert raised.value is error
    assert stage.log == [*STARTED, "second ends", "first ends"]
    [record] = [record for record in caplog.records if record.levelname == "ERROR"]
    assert record.exc_info is not None


async def test_a_source_that_fails_to_start_is_not_shut_down(stage: Stage) -> None:
    stage.second.startup_error = OSError("no")
    with pytest.raises(OSError, match="no"):
        await run_scheduler(stage.args())
    assert stage.log == ["first starts", "second starts", "first ends"]


async def test_a_failing_shutdown_of_the_broker_does_not_keep_sources_open(
    stage: Stage,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    stage.let_loop(monkeypatch, cancel)
    stage.broker.shutdown_error = OSError("broker")
    stage.first.shutdown_error = OSError("first")
    with pytest.raises(OSError, match="broker"):
        await run_scheduler(stage.args())
    assert stage.log[-3:] == ENDED
    assert caplog.text.count("Cannot shut down") == 2


async def test_a_function_that_returns_the_scheduler_is_called(
    stage: Stage,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage.let_loop(monkeypatch, cancel)
    args = stage.args()
    args.scheduler = lambda: stage.scheduler  # type: ignore[assignment] # as imported
    await run_scheduler(args)
    assert "loop" in stage.log


async def test_a_path_is_imported_from_the_directory_of_the_application(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stage: Stage,
) -> None:
    (tmp_path / "a_scheduler_module.py").write_text(
        "made = None\ndef make(): return made"
    )
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(stage, "scheduler", stage.scheduler)
    stage.let_loop(monkeypatch, cancel)
    args = stage.args(app_dir=str(tmp_path))
    args.scheduler = "a_scheduler_module:make"
    with pytest.raises(SystemExit):
        await run_scheduler(args)
    sys.modules["a_scheduler_module"].made = stage.scheduler  # type: ignore[attr-defined] # of the test
    await run_scheduler(args)
    del sys.modules["a_scheduler_module"]
    assert "loop" in stage.log


class CallableObject:
    def __call__(self) -> TaskiqScheduler:
        raise AssertionError("only functions are called")


@pytest.mark.parametrize("found", [None, CallableObject(), TaskiqScheduler])
async def test_anything_else_ends_the_process_with_an_error(
    caplog: pytest.LogCaptureFixture,
    found: Any,
) -> None:
    with pytest.raises(SystemExit) as raised:
        await run_scheduler(SchedulerArgs(found, [], configure_logging=False))
    assert raised.value.code == 2
    assert [record.levelname for record in caplog.records] == ["ERROR"]


async def test_task_modules_are_imported_in_a_scheduler_process(
    stage: Stage,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = tmp_path / "a_late_task_module.py"
    module.write_text("raise ImportError('after all')")
    monkeypatch.chdir(tmp_path)
    stage.let_loop(monkeypatch, cancel)
    args = stage.args(fs_discover=True, tasks_pattern=["a_late*.py"])
    await run_scheduler(args)
    assert args.modules == ["a_late_task_module"]


async def test_logging_is_configured_unless_the_application_does_it(
    stage: Stage,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(
        "taskiq.cli.scheduler.run.basicConfig",
        lambda **options: calls.append(options),
    )
    stage.let_loop(monkeypatch, cancel)
    args = stage.args()
    await run_scheduler(args)
    assert calls == []
    args.configure_logging = True
    await run_scheduler(args)
    assert calls == [
        {
            "level": LogLevel.INFO,
            "format": "[%(asctime)s][%(levelname)-7s]"
            "[%(module)s:%(funcName)s:%(lineno)d] %(message)s",
        },
    ]


async def test_cancelling_shuts_down_and_returns(stage: Stage) -> None:
    job = asyncio.ensure_future(run_scheduler(stage.args()))
    await until(lambda: stage.second.questions)
    job.cancel()
    await job
    assert stage.log == [*STARTED, *ENDED]


async def until(condition: Callable[[], object]) -> None:
    """Let other tasks run until something has happened."""
    while not condition():  # noqa: ASYNC110 - the condition is any state of a fake
        await asyncio.sleep(0)


@needs_sigterm
async def test_sigterm_shuts_down_like_sigint_and_returns(stage: Stage) -> None:
    job = asyncio.ensure_future(run_scheduler(stage.args()))
    await until(lambda: stage.second.questions)
    signal.raise_signal(signal.SIGTERM)
    await job
    assert stage.log == [*STARTED, *ENDED]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@needs_sigterm
async def test_sigterm_during_the_start_shuts_down_what_was_started(
    stage: Stage,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def start_for_ever() -> None:
        stage.log.append("second starts")
        await asyncio.Event().wait()

    monkeypatch.setattr(stage.second, "startup", start_for_ever)
    job = asyncio.ensure_future(run_scheduler(stage.args()))
    await until(lambda: "second starts" in stage.log)
    signal.raise_signal(signal.SIGTERM)
    await job
    assert stage.log == ["first starts", "second starts", "first ends"]


@needs_sigterm
@pytest.mark.parametrize("first_signal", [signal.SIGTERM, signal.SIGINT])
async def test_a_sigterm_does_not_disturb_a_shutdown_that_has_begun(
    stage: Stage,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    first_signal: signal.Signals,
) -> None:
    caplog.set_level(logging.INFO)
    is_shutting_down = asyncio.Event()
    signals = 2 if first_signal is signal.SIGTERM else 1

    async def shut_down_slowly() -> None:
        is_shutting_down.set()
        await until(lambda: caplog.text.count("Got SIGTERM") == signals)
        await asyncio.sleep(0)
        stage.log.append("first ends")

    monkeypatch.setattr(stage.first, "shutdown", shut_down_slowly)
    job = asyncio.ensure_future(run_scheduler(stage.args()))
    await until(lambda: stage.second.questions)
    if first_signal is signal.SIGTERM:
        signal.raise_signal(first_signal)
    else:
        job.cancel()  # what asyncio makes of SIGINT
    await is_shutting_down.wait()
    signal.raise_signal(signal.SIGTERM)
    await job
    assert stage.log == [*STARTED, *ENDED]


async def test_an_application_keeps_its_own_sigterm_handler(
    stage: Stage,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    got: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: got.append(number))
    stage.let_loop(monkeypatch, lambda: until(lambda: got))
    job = asyncio.ensure_future(run_scheduler(stage.args()))
    await until(lambda: "loop" in stage.log)
    signal.raise_signal(signal.SIGTERM)
    await job
    assert got == [signal.SIGTERM]


def test_sendings_under_way_end_before_the_broker_does(
    stage: Stage,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def send_slowly() -> None:
        await asyncio.sleep(3)
        stage.log.append("sent")

    stage.broker.reactions.append(send_slowly)
    stage.first.schedules.append(schedule(interval=100))
    world = World(monkeypatch)
    world.run_for(2, run_scheduler(stage.args()))
    world.loop.close()
    assert stage.log == [*STARTED, "sent", *ENDED]


async def test_the_api_starts_and_shuts_down_the_sources_only(
    stage: Stage,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage.let_loop(monkeypatch, cancel)
    with pytest.raises(asyncio.CancelledError):
        await run_scheduler_task(stage.scheduler)
    assert stage.log == [*STARTED[:2], "loop", *ENDED[1:]]
    assert stage.options == {"update_interval": None, "loop_interval": None}
    assert not stage.broker.is_scheduler_process


async def test_the_api_starts_and_shuts_down_the_broker_on_request(
    stage: Stage,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage.let_loop(monkeypatch, crash)
    stage.broker.shutdown_error = OSError("logged only")
    with pytest.raises(RuntimeError, match="the loop broke"):
        await run_scheduler_task(stage.scheduler, run_startup=True)
    assert stage.log == [*STARTED, "loop", *ENDED]


async def test_the_api_cleans_up_after_a_failing_start(stage: Stage) -> None:
    stage.second.startup_error = OSError("no")
    with pytest.raises(OSError, match="no"):
        await run_scheduler_task(stage.scheduler)
    assert stage.log == ["first starts", "second starts", "first ends"]


def test_importing_the_scheduler_classes_loads_no_cron_library() -> None:
    code = (
        "import sys, taskiq.scheduler.scheduler, taskiq.schedule_sources\n"
        "import taskiq.cli.scheduler.args\n"
        "assert not {'pycron', 'pytz'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)  # noqa: S603 - own code
