"""What a decorated function is, and what calling or sending it does."""

from __future__ import annotations

import functools
import inspect
import pickle
import subprocess
import sys
import typing
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from taskiq import AsyncTaskiqDecoratedTask
from taskiq.kicker import AsyncKicker
from tests.support.brokers import QueueBroker
from tests.support.recorders import RecordingSource

if TYPE_CHECKING:
    from collections.abc import Callable

SUFFIX = "__taskiq_original"

broker = QueueBroker()


@broker.task(priority=1)
def documented(x: int, *, y: str = "y") -> tuple[int, str]:
    """Give back what it was given."""
    return x, y


class Owner:
    """Has a task that is no function of the module."""

    @staticmethod
    @broker.task
    def owned() -> None:
        raise NotImplementedError


def nothing() -> None: ...


def traced(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return "traced", function(*args, **kwargs)

    return wrapper


@pytest.fixture
def queue_broker() -> QueueBroker:
    return QueueBroker()


# -- Metadata ----------------------------------------------------------------------


def test_a_task_looks_like_its_function_from_outside() -> None:
    function = documented.original_func
    task: Any = documented

    assert task.__doc__ == "Give back what it was given."
    assert task.__module__ == __name__
    assert task.__wrapped__ is function
    assert inspect.signature(task) == inspect.signature(function)
    assert list(inspect.signature(task).parameters) == ["x", "y"]
    assert task.__annotations__ == function.__annotations__
    assert typing.get_type_hints(task) == typing.get_type_hints(function)


def test_a_task_shows_its_name_whatever_its_class(queue_broker: QueueBroker) -> None:
    class Special(AsyncTaskiqDecoratedTask[..., Any]):
        """Has no `repr` of its own."""

    queue_broker.decorator_class = Special
    special = queue_broker.task("name")(traced(nothing))

    assert type(special) is Special
    assert repr(special) == "AsyncTaskiqDecoratedTask(name)"
    assert repr(documented) == f"AsyncTaskiqDecoratedTask({__name__}:documented)"


def test_a_task_can_be_built_by_hand() -> None:
    def f() -> int: ...  # type: ignore[empty-body]

    labels = {"a": 1}
    task: AsyncTaskiqDecoratedTask[[], int] = AsyncTaskiqDecoratedTask(
        broker=broker,
        task_name="name",
        original_func=f,
        labels=labels,
        return_type=int,
    )

    assert task.broker is broker
    assert task.task_name == "name"
    assert task.original_func is f
    assert task.labels is labels
    assert task.return_type is int
    assert AsyncTaskiqDecoratedTask(broker, "name", f, {}).return_type is None


# -- Where a process pool finds the function ---------------------------------------


def test_the_function_is_kept_in_its_module_under_a_name_of_its_own() -> None:
    function: Any = documented.original_func

    assert function.__name__ == f"documented{SUFFIX}"
    assert function.__qualname__ == f"documented{SUFFIX}"
    assert getattr(sys.modules[__name__], f"documented{SUFFIX}") is function
    assert vars(documented)["__name__"] == f"documented{SUFFIX}"


def test_only_the_last_part_of_a_qualified_name_changes() -> None:
    function: Any = Owner.owned.original_func

    assert function.__qualname__ == f"Owner.owned{SUFFIX}"
    assert getattr(sys.modules[__name__], f"owned{SUFFIX}") is function


def test_the_function_is_pickled_by_that_name() -> None:
    function = documented.original_func

    data = pickle.dumps(function)

    assert f"documented{SUFFIX}".encode() in data
    assert pickle.loads(data) is function  # noqa: S301 - our own


def test_another_process_finds_the_function_by_that_name() -> None:
    data = pickle.dumps(documented.original_func)
    script = f"import pickle; print(pickle.loads({data!r})(7, y='z'))"

    done = subprocess.run(  # noqa: S603 - our own command
        [sys.executable, "-c", script],
        capture_output=True,
        check=True,
        cwd=Path(__file__).parent.parent,
        encoding="utf-8",
    )

    assert done.stdout.strip() == "(7, 'z')"


def test_a_wrapper_of_a_task_s_function_does_not_take_its_place(
    queue_broker: QueueBroker,
) -> None:
    inner = documented.original_func
    outer = queue_broker.task(traced(inner)).original_func

    for function in (inner, outer):
        assert pickle.loads(pickle.dumps(function)) is function  # noqa: S301 - our own


def test_registering_a_function_again_renames_it_no_further(
    queue_broker: QueueBroker,
) -> None:
    again: Any = queue_broker.task(documented.original_func).original_func

    assert again.__name__ == f"documented{SUFFIX}"
    assert pickle.loads(pickle.dumps(again)) is again  # noqa: S301 - our own


def test_what_is_no_function_is_left_alone(queue_broker: QueueBroker) -> None:
    partial = functools.partial(nothing)

    task = queue_broker.task(partial)

    assert task.original_func is partial
    assert not hasattr(partial, "__name__")


# -- Calling -----------------------------------------------------------------------


def test_calling_a_task_calls_its_function() -> None:
    assert documented(1) == (1, "y")
    assert documented(x=1, y="z") == (1, "z")
    assert broker.take_all() == []


async def test_calling_an_async_task_gives_its_coroutine(
    queue_broker: QueueBroker,
) -> None:
    @queue_broker.task
    async def double(x: int) -> int:
        return 2 * x

    assert not inspect.iscoroutinefunction(double)
    running = double(2)
    assert inspect.iscoroutine(running)
    assert await running == 4


def test_what_the_function_raises_comes_out_of_the_call(
    queue_broker: QueueBroker,
) -> None:
    @queue_broker.task
    def fail() -> None:
        raise LookupError("nothing here")

    with pytest.raises(LookupError, match="nothing here"):
        fail()


# -- Sending -----------------------------------------------------------------------


def test_a_kicker_is_made_of_the_task_with_labels_of_its_own() -> None:
    kicker = documented.kicker()

    assert type(kicker) is AsyncKicker
    assert kicker.task_name == f"{__name__}:documented"
    assert kicker.broker is broker
    assert kicker.labels == {"priority": 1}
    assert str(kicker.return_type) == "tuple[int, str]"
    kicker.with_labels(priority=2, more="x")
    assert documented.labels == {"priority": 1}
    assert documented.kicker().labels == {"priority": 1}


async def test_a_task_is_sent_with_its_name_labels_and_arguments(
    queue_broker: QueueBroker,
) -> None:
    @queue_broker.task("name", priority=1)
    def add(a: int, b: int) -> int:
        return a + b

    handle = await add.kiq(1, b=2)

    [message] = queue_broker.take_all()
    loaded = queue_broker.formatter.loads(message.message)
    assert (loaded.task_name, loaded.labels) == ("name", {"priority": "1"})
    assert (loaded.args, loaded.kwargs) == ([1], {"b": 2})
    assert handle.task_id == loaded.task_id
    assert handle.result_backend is queue_broker.result_backend
    assert handle.return_type is int


async def test_a_task_is_scheduled_with_its_name_labels_and_arguments() -> None:
    source = RecordingSource()
    noon = datetime(2030, 1, 1, 12, tzinfo=timezone.utc)

    by_cron = await documented.schedule_by_cron(source, "0 12 * * *", 1, y="a")
    by_interval = await documented.schedule_by_interval(
        source,
        timedelta(hours=1),
        2,
        y="b",
    )
    by_time = await documented.schedule_by_time(source, noon, 3, y="c")

    created = [by_cron, by_interval, by_time]
    assert source.schedules == [each.task for each in created]
    assert [each.task.args for each in created] == [[1], [2], [3]]
    assert [each.task.kwargs["y"] for each in created] == ["a", "b", "c"]
    for each in created:
        assert each.task.task_name == f"{__name__}:documented"
        assert each.task.labels == {"priority": "1"}
    assert by_cron.task.cron == "0 12 * * *"
    assert by_interval.task.interval == timedelta(hours=1)
    assert by_time.task.time == noon


class TaggingTask(AsyncTaskiqDecoratedTask[..., Any]):
    """Overrides the one method that makes senders."""

    def kicker(self) -> AsyncKicker[..., Any]:
        return super().kicker().with_labels(tag="x")


async def test_overriding_the_kicker_is_enough_for_every_way_of_sending(
    queue_broker: QueueBroker,
) -> None:
    queue_broker.decorator_class = TaggingTask
    task = queue_broker.task("name")(traced(nothing))
    source = RecordingSource()

    await task.kiq()
    await task.schedule_by_cron(source, "* * * * *")
    await task.schedule_by_interval(source, 1)
    await task.schedule_by_time(source, datetime(2030, 1, 1, tzinfo=timezone.utc))

    [message] = queue_broker.take_all()
    assert message.labels == {"tag": "x"}
    assert [each.labels for each in source.schedules] == [{"tag": "x"}] * 3
