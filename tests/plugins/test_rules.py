"""What holds on every broker, with its own result backend and schedule source."""

from __future__ import annotations

import asyncio
import datetime as dt
import uuid
from collections.abc import Iterator
from signal import SIGTERM

import pytest
from taskiq_pipelines import Pipeline

from taskiq import AsyncTaskiqTask, ScheduledTask, gather_results
from taskiq.depends.progress_tracker import TaskState
from tests.support.hub import HANG, Hub

from .lines import LINES, Line
from .stage import Client, Stage, result_of, results_of, values_of


async def test_a_task_is_run_and_its_result_comes_back(client: Client) -> None:
    result = await client.ask("add", 40, 2, number=3)
    assert not result.is_err
    assert result.return_value == 42
    assert result.labels == {"number": 3}


async def test_many_are_sent_in_one_go_and_their_results_come_back_in_order(
    client: Client,
) -> None:
    kicker = client.kicker("add")
    handles = await kicker.kiq_many(kicker.call(number, 1) for number in range(300))
    results = await gather_results(handles, timeout=HANG)
    assert values_of(results) == list(range(1, 301))
    assert (await handles[0].wait_result(timeout=HANG)).return_value == 1


async def test_a_sync_task_is_run_in_a_thread(client: Client) -> None:
    assert (await client.ask("name_thread", "ü")).return_value == "ü in a thread"


async def test_an_error_comes_back_as_it_was_raised(client: Client) -> None:
    result = await client.ask("fail", "bad", 3, None)
    assert result.is_err
    assert isinstance(result.error, ValueError)
    assert result.error.args == ("bad", 3, None)


async def test_a_failed_task_is_retried_until_it_succeeds(client: Client) -> None:
    result = await client.ask("fail_times", 2, retry_on_error=True, max_retries=3)
    assert values_of([result]) == ["succeeded after 2"]


async def test_a_task_that_goes_on_failing_fails_after_its_retries(
    client: Client,
) -> None:
    result = await client.ask("fail_times", 9, retry_on_error=True, max_retries=2)
    assert values_of([result]) == ["ValueError('run 1')"]


async def test_a_requeued_message_is_run_again_with_its_labels(client: Client) -> None:
    result = await client.ask("requeue_once", number=3)
    assert values_of([result]) == [["1", 3]]


async def test_progress_can_be_followed(client: Client) -> None:
    handle = await client.send("report_progress")
    await result_of(handle)
    progress = await handle.get_progress()
    assert progress is not None
    assert (progress.state, progress.meta) == (TaskState.STARTED, {"done": [1, 2]})


# -- Schedules --------------------------------------------------------------------


def test_the_scheduler_sends_what_labels_ask_for(stage: Stage) -> None:
    before = len(stage.hub.all("tick", source="of the label"))
    with stage.scheduler("label_scheduler"):
        stage.hub.wait(
            lambda: len(stage.hub.all("tick", source="of the label")) >= before + 2
        )


@pytest.mark.parametrize(
    "line",
    [line for line in LINES.values() if line.make_source is not None],
    ids=str,
    indirect=True,
)
async def test_the_scheduler_sends_what_is_in_the_schedule_source_of_the_plugin(
    stage: Stage, client: Client
) -> None:
    """A schedule of one moment is sent once and gone, one of an interval stays."""
    assert stage.line.make_source is not None
    source = stage.line.make_source(client.broker, stage.name)
    now = dt.datetime.now(dt.timezone.utc)
    once = schedule("tick", f"{stage.name}-once", time=now)
    often = schedule("tick", f"{stage.name}-often", interval=1)
    await source.startup()

    with stage.scheduler("own_scheduler"):
        await source.add_schedule(once)
        await source.add_schedule(often)
        await asyncio.to_thread(
            stage.hub.wait,
            lambda: len(stage.hub.all("tick", source=f"{stage.name}-often")) >= 3,
        )
    assert len(stage.hub.all("tick", source=f"{stage.name}-once")) == 1

    left = {each.schedule_id for each in await source.get_schedules()}
    assert often.schedule_id in left
    assert once.schedule_id not in left
    await source.delete_schedule(often.schedule_id)
    left = {each.schedule_id for each in await source.get_schedules()}
    assert often.schedule_id not in left
    await source.shutdown()


def schedule(task_name: str, *args: object, **fields: object) -> ScheduledTask:
    """Make a schedule with an id that every source keeps as it is."""
    always = {"labels": {}, "kwargs": {}, "schedule_id": str(uuid.uuid4())}
    return ScheduledTask.model_validate(
        {"task_name": task_name, "args": args, **always, **fields}
    )


# -- Pipelines --------------------------------------------------------------------


async def test_a_pipeline_runs_over_plain_tasks(client: Client) -> None:
    pipeline: Pipeline[..., int] = Pipeline(client.broker, client.kicker("add"))
    pipeline.call_next(client.kicker("add"), other=5)
    pipeline.call_after(client.kicker("add"), number=8, other=1)

    assert values_of([await result_of(await pipeline.kiq(1, 2))]) == [9]


async def test_batch_tasks_can_be_steps_of_a_pipeline(client: Client) -> None:
    """As the step itself, and for each element of what the step before returned."""
    pipeline: Pipeline[..., str] = Pipeline(client.broker, client.kicker("split"))
    pipeline.map(client.kicker("measure"), unit="cm", check_interval=0.05)
    pipeline.call_next(client.kicker("join"), between=" + ")
    pipeline.call_next(client.kicker("measure"), unit="mm")

    # measured: "3 cm + 2 cm + 4 cm"
    assert values_of([await result_of(await pipeline.kiq("one is more"))]) == ["18 mm"]


# -- The end ----------------------------------------------------------------------


@pytest.fixture
def stage_of_its_own(line: Line, hub: Hub) -> Iterator[Stage]:
    with Stage(line, hub).opened() as stage:
        yield stage


def test_a_stop_finishes_what_runs_and_leaves_the_rest_to_the_next_worker(
    stage_of_its_own: Stage,
) -> None:
    stage, hub, line = stage_of_its_own, stage_of_its_own.hub, stage_of_its_own.line
    with stage.worker() as worker:
        running = asyncio.run(send(stage, "hold"))
        buffered = asyncio.run(send(stage, "hold_all"))
        for task_id in running + buffered:
            hub.wait_for("arrival", id=task_id)

        worker.signal(SIGTERM)
        # The batch that was open leaves; it waits for the hub, too.
        hub.wait(lambda: len(hub.held) == 4)
        assert hub.all("held", task="hold_all")[-1]["size"] == 3
        hub.let_go()
        assert worker.wait() == 0
    assert values(stage, running + buffered) == [0, 1, 2] * 2
    if line.unfinished is not None:
        assert line.unfinished(stage.name) == 0

    late = asyncio.run(send(stage, "requeue_odd")) if line.keeps else []
    with stage.worker():
        assert values(stage, late) == [
            f"{number} at last" for number in range(len(late))
        ]
    if line.unfinished is not None:
        assert line.unfinished(stage.name) == 0


async def send(stage: Stage, task_name: str) -> list[str]:
    """Send three messages; give their ids."""
    async with stage.client() as client:
        handles = await client.send_all(task_name, range(3), announced=True)
    return [handle.task_id for handle in handles]


def values(stage: Stage, task_ids: list[str]) -> list[object]:
    async def read() -> list[object]:
        async with stage.client() as client:
            backend = client.broker.result_backend
            handles = [AsyncTaskiqTask[object](each, backend) for each in task_ids]
            return values_of(await results_of(handles))

    return asyncio.run(read())
