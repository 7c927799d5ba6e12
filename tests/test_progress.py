import asyncio
import dataclasses
import pickle
from collections.abc import AsyncGenerator, Sequence
from types import SimpleNamespace
from typing import Annotated, Any, TypeVar, cast

import pytest
from pydantic import ValidationError
from taskiq_dependencies import DependencyGraph, Depends

from taskiq.abc.broker import AsyncBroker
from taskiq.abc.result_backend import AsyncResultBackend
from taskiq.acks import AckController
from taskiq.batch import FlushReason
from taskiq.context import BatchContext, Context
from taskiq.depends.progress_tracker import ProgressTracker, TaskProgress, TaskState
from taskiq.message import BrokerMessage, TaskiqMessage
from taskiq.result import TaskiqResult

_T = TypeVar("_T")


class Backend(AsyncResultBackend[Any]):
    """Keeps progress, and counts how many reports it is given at once."""

    def __init__(self) -> None:
        self.progress: dict[str, TaskProgress[Any]] = {}
        self.refused: set[str] = set()
        self.running = 0
        self.most_running = 0

    async def set_result(self, task_id: str, result: TaskiqResult[Any]) -> None:
        raise NotImplementedError

    async def is_result_ready(self, task_id: str) -> bool:
        raise NotImplementedError

    async def get_result(
        self,
        task_id: str,
        with_logs: bool = False,
    ) -> TaskiqResult[Any]:
        raise NotImplementedError

    async def set_progress(self, task_id: str, progress: TaskProgress[Any]) -> None:
        if task_id in self.refused:
            raise OSError(f"{task_id} refused")
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        await asyncio.sleep(0)
        self.running -= 1
        self.progress[task_id] = progress

    async def get_progress(self, task_id: str) -> TaskProgress[Any] | None:
        return self.progress.get(task_id)


class Broker(AsyncBroker):
    """Sends nothing."""

    async def kick(self, message: BrokerMessage) -> None:
        raise NotImplementedError

    def listen(self) -> AsyncGenerator[bytes, None]:
        raise NotImplementedError


@pytest.fixture
def backend() -> Backend:
    return Backend()


@pytest.fixture
def broker(backend: Backend) -> Broker:
    return Broker().with_result_backend(backend)


def message(task_id: str) -> TaskiqMessage:
    return TaskiqMessage(task_id=task_id, task_name="f", labels={}, args=[], kwargs={})


@dataclasses.dataclass
class Received:
    message: TaskiqMessage
    controller: AckController
    twins: "Sequence[Received]" = ()


def batch_tracker(broker: Broker, size: int) -> ProgressTracker[Any]:
    received = [
        Received(message(str(number)), AckController(None)) for number in range(size)
    ]
    return ProgressTracker(BatchContext(received, broker, "batch", FlushReason.SIZE))


@pytest.fixture
def tracker(broker: Broker) -> ProgressTracker[Any]:
    return ProgressTracker(Context(message("id"), broker))


async def test_progress_is_stored_under_the_id_of_the_running_task(
    tracker: ProgressTracker[Any],
    backend: Backend,
) -> None:
    assert await tracker.get_progress() is None
    await tracker.set_progress(TaskState.STARTED, {"done": 1})
    assert backend.progress == {
        "id": TaskProgress(state=TaskState.STARTED, meta={"done": 1}),
    }
    assert await tracker.get_progress() == backend.progress["id"]


async def test_what_was_told_before_is_kept_when_only_the_state_changes(
    tracker: ProgressTracker[Any],
    backend: Backend,
) -> None:
    await tracker.set_progress("first")
    assert backend.progress["id"].meta is None
    await tracker.set_progress("second", 0)
    await tracker.set_progress("third")
    assert backend.progress["id"] == TaskProgress(state="third", meta=0)


async def test_a_state_that_is_no_text_is_an_error_and_nothing_is_stored(
    tracker: ProgressTracker[Any],
    backend: Backend,
) -> None:
    with pytest.raises(ValidationError, match="state"):
        await tracker.set_progress(3)  # type: ignore[arg-type]
    assert backend.progress == {}


async def test_a_batch_reports_for_every_message(
    broker: Broker,
    backend: Backend,
) -> None:
    tracker = batch_tracker(broker, 3)
    await tracker.set_progress(TaskState.STARTED, 50)
    expected = TaskProgress(state=TaskState.STARTED, meta=50)
    assert backend.progress == {"0": expected, "1": expected, "2": expected}
    assert await tracker.get_progress() == expected


async def test_every_message_of_a_batch_keeps_what_was_told_of_it_before(
    broker: Broker,
    backend: Backend,
) -> None:
    backend.progress["1"] = TaskProgress(state="sent again", meta="its own")
    await batch_tracker(broker, 2).set_progress("started")
    assert backend.progress == {
        "0": TaskProgress(state="started", meta=None),
        "1": TaskProgress(state="started", meta="its own"),
    }


async def test_the_progress_of_a_batch_is_read_from_its_first_message(
    broker: Broker,
    backend: Backend,
) -> None:
    backend.progress["1"] = TaskProgress(state="second", meta=None)
    assert await batch_tracker(broker, 2).get_progress() is None


async def test_a_message_that_cannot_be_reported_does_not_silence_its_neighbours(
    broker: Broker,
    backend: Backend,
) -> None:
    backend.refused = {"0"}
    with pytest.raises(OSError, match="0 refused"):
        await batch_tracker(broker, 120).set_progress("started")
    assert set(backend.progress) == {str(number) for number in range(1, 120)}


async def test_reports_of_a_batch_run_together_but_not_all_at_once(
    broker: Broker,
    backend: Backend,
) -> None:
    await batch_tracker(broker, 120).set_progress("started", 1)
    assert len(backend.progress) == 120
    assert backend.most_running == 50


async def test_a_stand_in_for_the_context_needs_only_one_message(
    broker: Broker,
    backend: Backend,
) -> None:
    stand_in = cast(Context, SimpleNamespace(message=message("id"), broker=broker))
    await ProgressTracker[int](stand_in).set_progress("started", 1)
    assert set(backend.progress) == {"id"}


async def test_the_tracker_is_a_dependency_that_takes_the_current_context(
    broker: Broker,
) -> None:
    def task(tracker: Annotated[ProgressTracker[int], Depends()]) -> None: ...

    context = Context(message("id"), broker)
    resolving = DependencyGraph(task).async_ctx({Context: context})
    kwargs = await resolving.resolve_kwargs()
    await resolving.close(None, None, None)
    assert kwargs["tracker"].context is context


def test_progress_is_stored_as_state_and_meta() -> None:
    progress: TaskProgress[Any] = TaskProgress(state=TaskState.STARTED, meta=[1])
    stored = progress.model_dump(mode="json")
    assert stored == {"state": "STARTED", "meta": [1]}
    assert TaskProgress[Any].model_validate(stored) == TaskProgress[Any](
        state="STARTED",
        meta=[1],
    )


def test_a_state_given_as_text_stays_text() -> None:
    assert type(TaskProgress[Any](state="STARTED", meta=None).state) is str


@pytest.mark.parametrize("missing", ["state", "meta"])
def test_progress_has_both_its_fields(missing: str) -> None:
    stored = {"state": "STARTED", "meta": 1}
    del stored[missing]
    with pytest.raises(ValidationError, match=missing):
        TaskProgress[Any].model_validate(stored)


def test_the_type_parameter_checks_meta() -> None:
    assert TaskProgress[int].model_validate({"state": "s", "meta": "1"}).meta == 1
    unchecked = TaskProgress[_T].model_validate(  # type: ignore[valid-type]
        {"state": "s", "meta": "1"},
    )
    assert unchecked.meta == "1"


def test_pickled_progress_can_be_read_by_every_version() -> None:
    # taskiq 0.13.0 has these classes in this module, and knows no other.
    progress: TaskProgress[Any] = TaskProgress(state=TaskState.STARTED, meta=None)
    pickled = pickle.dumps(progress)
    assert b"taskiq.depends.progress_tracker" in pickled
    assert b"taskiq.progress" not in pickled
