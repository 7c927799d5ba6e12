"""What becomes of each message of a batch, whatever becomes of its neighbours."""

import asyncio
import contextvars
import copy
import dataclasses
import json
import logging
import os
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from typing import Annotated, Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from taskiq import (
    AcknowledgeType,
    AsyncTaskiqTask,
    BatchContext,
    BatchInfo,
    Context,
    InMemoryBroker,
    NoResultError,
    TaskiqDepends,
    TaskiqMessage,
    TaskiqMiddleware,
    TaskiqResult,
)
from taskiq.batch import FlushReason
from taskiq.depends.progress_tracker import ProgressTracker, TaskProgress, TaskState
from taskiq.exceptions import TaskiqBatchResultError, TaskRejectedError
from taskiq.kicker import AsyncKicker
from taskiq.receiver import Receiver
from taskiq.receiver.batching import SETTLED_AT_ONCE
from taskiq.receiver.grouping import freeze
from tests import process_batch_tasks
from tests.support.brokers import QueueBroker
from tests.support.recorders import RecordingBackend, RecordingMiddleware
from tests.support.virtual_time import run_virtual, virtual

CurrentBatch = Annotated[BatchContext, TaskiqDepends()]
CurrentContext = Annotated[Context, TaskiqDepends()]
Result = TaskiqResult[Any]


@pytest.fixture
def broker() -> Iterator[InMemoryBroker]:
    broker = InMemoryBroker()
    yield broker
    broker.executor.shutdown()


class Worker:
    """A broker whose messages are acknowledged, and what a worker did with them."""

    def __init__(self, *middlewares: TaskiqMiddleware) -> None:
        self.recorder = RecordingMiddleware()
        self.backend = RecordingBackend()
        self.broker = QueueBroker().with_result_backend(self.backend)
        self.broker.add_middlewares(self.recorder, *middlewares)

    async def run(
        self,
        ack_type: AcknowledgeType | None = None,
        executor: Executor | None = None,
    ) -> None:
        """Run what was sent to its end."""
        self.broker.end()
        receiver = Receiver(
            self.broker,
            executor=executor,
            max_async_tasks=10,
            ack_type=ack_type,
            run_startup=False,
        )
        await receiver.listen(asyncio.Event())

    def ids(self, hook: str) -> list[str]:
        """For which messages a hook ran."""
        return [task_id for name, task_id in self.recorder.events if name == hook]

    @property
    def errors(self) -> dict[str, BaseException | None]:
        return {name: each.error for name, each in self.backend.results.items()}


async def send(task: Any, *items: Any) -> None:
    """Send each item under its text as id."""
    for item in items:
        await task.kicker().with_task_id(str(item)).kiq(item)


async def results_of(
    broker: InMemoryBroker,
    task: Any,
    items: Sequence[Any],
) -> list[Result]:
    handles = [await task.kiq(item) for item in items]
    await broker.wait_all()
    return [await handle.get_result() for handle in handles]


def outcomes(results: Sequence[Result]) -> list[Any]:
    """The value of each that succeeded, the error of each that failed."""
    assert all(result.is_err == (result.error is not None) for result in results)
    return [each.return_value if each.error is None else each.error for each in results]


# -- Shared, each, raise --------------------------------------------------------------


@virtual
async def test_a_shared_value_is_the_result_of_every_message(
    broker: InMemoryBroker,
) -> None:
    value = {"rows": [1, 2, 3]}

    @broker.task(batch=True)
    async def insert(items: list[int]) -> dict[str, list[int]]:
        return value

    results = await results_of(broker, insert, range(3))
    assert outcomes(results) == [value] * 3
    assert len({id(result) for result in results}) == 3


@virtual
async def test_a_list_gives_each_message_its_entry_in_order(
    broker: InMemoryBroker,
) -> None:
    @broker.task(batch=True)
    async def square(items: list[int]) -> list[int]:
        return [item * item for item in items]

    assert outcomes(await results_of(broker, square, range(100))) == [
        number * number for number in range(100)
    ]


@virtual
async def test_an_exception_in_the_list_fails_its_message_only() -> None:
    worker = Worker()

    @worker.broker.task(batch=True)
    async def halve(items: list[int]) -> list[float | Exception]:
        return [ValueError(item) if item % 2 else item / 2 for item in items]

    await send(halve, 0, 1, 2, 3)
    await worker.run()
    results = worker.backend.results
    assert [results[name].return_value for name in "0123"] == [0, None, 1, None]
    assert [results[name].is_err for name in "0123"] == [False, True, False, True]
    assert repr(results["1"].error) == "ValueError(1)"
    assert repr(results["3"].error) == "ValueError(3)"
    assert worker.ids("on_error") == ["1", "3"]
    assert sorted(worker.broker.acked) == ["0", "1", "2", "3"]


@virtual
async def test_falsy_entries_and_exception_classes_are_values(
    broker: InMemoryBroker,
) -> None:
    values: list[Any] = [None, 0, 0.0, "", [], {}, False, b"", ValueError]

    @broker.task(batch=True)
    async def entries(items: list[int]) -> list[Any]:
        return [values[item] for item in items]

    results = outcomes(await results_of(broker, entries, range(len(values))))
    assert [(type(each), each) for each in results] == [
        (type(each), each) for each in values
    ]


@pytest.mark.parametrize(
    ("returned", "actual"),
    [
        ([1, 2], "a list of 2"),
        ([1, 2, 3, 4], "a list of 4"),
        ([], "a list of 0"),
        (None, "NoneType, which is no list"),
        ((1, 2, 3), "tuple, which is no list"),
        ("abc", "str, which is no list"),
        ({1: 1, 2: 2, 3: 3}, "dict, which is no list"),
        (iter([1, 2, 3]), "list_iterator, which is no list"),
    ],
)
def test_what_fits_no_item_fails_every_message_and_says_what_was_expected(
    broker: InMemoryBroker,
    returned: object,
    actual: str,
) -> None:
    async def wrong(items: list[int]) -> Any:
        return returned

    task: Any = broker.task("wrong", batch=True, batch_results="each")(wrong)
    results = run_virtual(results_of(broker, task, range(3)))
    for error in outcomes(results):
        assert isinstance(error, TaskiqBatchResultError)
        assert str(error) == (
            "Batch task wrong must return a list of 3 results, "
            f"one per item in order; it returned {actual}"
        )


@virtual
async def test_what_a_batch_raises_is_the_error_of_every_message() -> None:
    worker = Worker()
    error = ConnectionError("no database")

    @worker.broker.task(batch=True)
    async def insert(items: list[int]) -> list[int]:
        raise error

    await send(insert, 0, 1, 2)
    await worker.run()
    assert worker.errors == {"0": error, "1": error, "2": error}
    assert sorted(worker.ids("on_error")) == ["0", "1", "2"]
    assert len({id(result) for result in worker.backend.results.values()}) == 3


@virtual
async def test_without_a_result_nothing_is_saved_and_all_is_acknowledged() -> None:
    worker = Worker()

    @worker.broker.task(batch=True)
    async def nothing(items: list[int]) -> None:
        raise NoResultError

    await send(nothing, 0, 1)
    await worker.run()
    assert worker.backend.results == {}
    assert sorted(worker.broker.acked) == ["0", "1"]
    assert sorted(worker.ids("on_error")) == ["0", "1"]
    assert sorted(worker.ids("post_execute")) == ["0", "1"]
    assert worker.ids("post_save") == []


@virtual
async def test_no_result_and_rejection_can_be_the_entry_of_one_message() -> None:
    worker = Worker()

    @worker.broker.task(batch=True)
    async def entries(items: list[int]) -> list[int | Exception]:
        return [1, NoResultError(), TaskRejectedError()]

    await send(entries, 0, 1, 2)
    await worker.run()
    assert set(worker.errors) == {"0", "2"}
    assert worker.errors["0"] is None
    assert isinstance(worker.errors["2"], TaskRejectedError)
    assert sorted(worker.broker.acked) == ["0", "1", "2"]


@virtual
async def test_rejecting_a_batch_is_an_error_of_every_message_without_an_outcome(
    broker: InMemoryBroker,
) -> None:
    @broker.task(batch=True)
    async def rejecting(items: list[int], batch: CurrentBatch) -> None:
        batch.set_result(0, "accepted")
        batch.reject()

    accepted, *rejected = outcomes(await results_of(broker, rejecting, range(3)))
    assert accepted == "accepted"
    for error in rejected:
        assert isinstance(error, TaskRejectedError)


@virtual
async def test_a_timeout_label_limits_the_call_and_its_expiry_fails_every_message(
    broker: InMemoryBroker,
) -> None:
    cancelled: list[list[int]] = []

    @broker.task(batch=True, timeout=2)
    async def slow(items: list[int]) -> None:
        try:
            await asyncio.sleep(3)
        except asyncio.CancelledError:
            cancelled.append(items)
            raise

    for error in outcomes(await results_of(broker, slow, range(3))):
        assert isinstance(error, TimeoutError)
    assert cancelled == [[0, 1, 2]]
    assert asyncio.get_running_loop().time() == 2


@virtual
async def test_a_cancellation_raised_by_the_function_is_the_error_of_every_message(
    broker: InMemoryBroker,
) -> None:
    @broker.task(batch=True)
    async def cancelling(items: list[int]) -> None:
        raise asyncio.CancelledError

    for error in outcomes(await results_of(broker, cancelling, range(3))):
        assert isinstance(error, asyncio.CancelledError)


# -- What cannot join a batch fails alone ---------------------------------------------


class Doc(BaseModel):
    title: str
    pages: int = 1


@pytest.mark.parametrize("ack_type", [*AcknowledgeType])
def test_a_message_that_cannot_be_cast_fails_alone(ack_type: AcknowledgeType) -> None:
    worker = Worker()
    calls: list[tuple[list[int], str]] = []

    @worker.broker.task("task", batch=True)
    async def function(items: list[int], tenant: str, count: int = 1) -> list[int]:
        calls.append((items, tenant))
        return items

    wrong: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
        "item": (("one", "a"), {}),
        "item is none": ((None, "a"), {}),
        "item is a list": (([1], "a"), {}),
        "rest": ((1, "a", "many"), {}),
        "rest by name": ((1, "a"), {"count": "many"}),
        "rest is none": ((1, None), {}),
        "missing": ((1,), {}),
        "no item": ((), {"tenant": "a"}),
        "extra": ((1, "a", 1, 1), {}),
        "unknown name": ((1, "a"), {"color": "red"}),
        "twice": ((1, "a"), {"tenant": "b"}),
    }

    async def main() -> None:
        kicker: AsyncKicker[..., Any] = AsyncKicker("task", worker.broker, {})
        await kicker.with_task_id("first").kiq("1", "a")
        for task_id, (args, kwargs) in wrong.items():
            await kicker.with_task_id(task_id).kiq(*args, **kwargs)
        await kicker.with_task_id("last").kiq(2, tenant="a", count="1")
        timeout = AsyncKicker[..., Any]("task", worker.broker, {"timeout": "soon"})
        await timeout.with_task_id("timeout").kiq(1, "a")
        await worker.run(ack_type)

    run_virtual(main())
    assert calls == [([1, 2], "a")]
    errors = worker.errors
    assert {task_id for task_id, error in errors.items() if error is None} == {
        "first",
        "last",
    }
    for task_id in ("item", "item is none", "item is a list", "rest", "rest by name"):
        assert isinstance(errors[task_id], ValidationError), task_id
    for task_id in ("missing", "no item", "extra", "unknown name", "twice"):
        assert isinstance(errors[task_id], TypeError), task_id
    assert isinstance(errors["timeout"], ValueError)
    assert set(worker.ids("on_error")) == {*wrong, "timeout"}
    assert set(worker.ids("post_save")) == set(errors)
    everything = Counter(["first", *wrong, "last", "timeout"])
    is_manual = ack_type is AcknowledgeType.MANUAL
    assert Counter(worker.broker.acked) == (Counter() if is_manual else everything)


@virtual
async def test_items_are_cast_to_the_element_type_of_the_list(
    broker: InMemoryBroker,
) -> None:
    seen: list[Doc] = []

    @broker.task(batch=True)
    async def index(docs: list[Doc]) -> list[int]:
        seen.extend(docs)
        return [doc.pages for doc in docs]

    docs = [Doc(title="a"), {"title": "b", "pages": "2"}, {"pages": 3}]
    *good, bad = outcomes(await results_of(broker, index, docs))
    assert seen == [Doc(title="a"), Doc(title="b", pages=2)]
    assert good == [1, 2]
    assert isinstance(bad, ValidationError)
    assert "title" in str(bad)


@virtual
async def test_without_casting_items_come_as_they_were_sent() -> None:
    broker = InMemoryBroker(cast_types=False)
    calls: list[list[Any]] = []

    @broker.task(batch=True)
    async def function(items: list[int]) -> None:
        calls.append(items)

    assert outcomes(await results_of(broker, function, [1, "2", None])) == [None] * 3
    assert calls == [[1, "2", None]]


# -- Who may share a call -------------------------------------------------------------


Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def groups_of(function: Callable[..., Any], *sent: Arguments) -> list[list[int]]:
    """Send an item with each of these other arguments; say which items met.

    An item is the index of its other arguments.
    """
    broker = InMemoryBroker()
    met: list[list[int]] = []
    task: Any = broker.register_task(function, "task", batch=True)

    async def main() -> None:
        handles = [
            await task.kiq(index, *args, **kwargs)
            for index, (args, kwargs) in enumerate(sent)
        ]
        await broker.wait_all()
        for handle in handles:
            result = await handle.get_result()
            result.raise_for_error()
            if result.return_value not in met:
                met.append(result.return_value)

    run_virtual(main())
    return met


def call(*args: Any, **kwargs: Any) -> Arguments:
    return args, kwargs


async def of_tenant(
    items: list[int],
    tenant: str = "a",
    *,
    dry: bool = False,
) -> dict[int, int]:
    return items  # type: ignore[return-value] # is shared by this annotation


async def of_anything(items: list[int], rest: Any) -> Any:
    return items


async def of_named(items: list[int], **rest: Any) -> Any:
    return items


async def of_many(items: list[int], *rest: Any) -> Any:
    return items


def test_rest_is_one_group_however_it_is_spelt() -> None:
    assert groups_of(
        of_tenant,
        call("a"),
        call(tenant="a"),
        call(),
        call("a", dry=False),
        call(dry=False),
        call("b"),
        call(tenant="b", dry=False),
        call(dry=True),
        call(dry=1),
    ) == [[0, 1, 2, 3, 4], [5, 6], [7, 8]]


def test_the_item_can_be_given_by_name() -> None:
    broker = InMemoryBroker()
    calls: list[list[int]] = []

    @broker.task(batch=True)
    async def function(items: list[int], tenant: str = "a") -> None:
        calls.append(items)

    async def main() -> None:
        task: Any = function
        await task.kiq(1)
        await task.kiq(items=2)
        await task.kiq(tenant="a", items=3)
        await broker.wait_all()

    run_virtual(main())
    assert calls == [[1, 2, 3]]


def test_rest_is_compared_by_value_whatever_its_type() -> None:
    assert groups_of(
        of_anything,
        call({"a": [1, {"b": None}], "c": 2}),
        call({"c": 2, "a": [1, {"b": None}]}),
        call({"a": [1, {"b": 0}], "c": 2}),
        call([1, 2]),
        call([2, 1]),
        call([1, 2]),
        call("[1, 2]"),
        call(None),
        call(None),
        call([]),
        call({}),
        call(""),
    ) == [[0, 1], [2], [3, 5], [4], [6], [7, 8], [9], [10], [11]]


def test_equal_numbers_of_different_types_are_different_arguments() -> None:
    assert groups_of(
        of_anything,
        call(1),
        call(True),
        call(1.0),
        call("1"),
        call([1]),
        call([True]),
        call([1.0]),
        call({"a": 1}),
        call({"a": 1.0}),
        call(1),
        call([1.0]),
    ) == [[0, 9], [1], [2], [3], [4], [5], [6, 10], [7], [8]]


def test_what_a_cast_makes_equal_is_one_group() -> None:
    async def function(items: list[int], count: int) -> Any:
        return items

    assert groups_of(function, call(1), call("1"), call(count=1.0), call(2)) == [
        [0, 1, 2],
        [3],
    ]


def test_variadic_arguments_belong_to_the_rest() -> None:
    assert groups_of(
        of_named,
        call(a=1, b=2),
        call(b=2, a=1),
        call(a=1),
        call(),
        call(a=1),
    ) == [[0, 1], [2, 4], [3]]
    assert groups_of(of_many, call(1, 2), call(2, 1), call(), call(1, 2)) == [
        [0, 3],
        [1],
        [2],
    ]


class Options(BaseModel):
    tags: list[str] = []
    limits: dict[str, int] = {}


@dataclasses.dataclass
class Place:
    name: str
    position: list[float]


@dataclasses.dataclass(frozen=True)
class FrozenPlace:
    name: str


class Spelling(BaseModel):  # noqa: PLW1641 - it cannot be hashed
    word: str

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Spelling) and self.word.lower() == other.word.lower()


class Loose(BaseModel):
    value: Any


class FrozenLoose(BaseModel, frozen=True):
    value: Any


@dataclasses.dataclass
class LooseDataclass:
    value: Any


@dataclasses.dataclass(frozen=True)
class FrozenLooseDataclass:
    value: Any


class LooseTuple(NamedTuple):
    value: Any


@dataclasses.dataclass
class Noted:
    name: str
    note: str = dataclasses.field(default="", compare=False)


async def of_model(items: list[int], options: Options) -> Any:
    return items


def of_one_more(kind: type[Any]) -> Any:
    """Make a batch function with one more argument, of this type."""

    async def of_kind(items: list[int], more: Any) -> Any:
        return items

    of_kind.__annotations__["more"] = kind
    return of_kind


async def of_model_with_its_own_equality(items: list[int], spelling: Spelling) -> Any:
    return items


async def of_dataclass(items: list[int], place: Place) -> Any:
    return items


async def of_frozen_dataclass(items: list[int], place: FrozenPlace) -> Any:
    return items


async def of_set(items: list[int], tags: set[str]) -> Any:
    return items


def test_objects_that_cannot_be_hashed_are_compared_by_value() -> None:
    limits = {"a": 1, "b": 2}
    assert groups_of(
        of_model,
        call(Options(tags=["x"], limits=limits)),
        call({"limits": {"b": "2", "a": 1}, "tags": ["x"]}),
        call(Options(tags=["y"], limits=limits)),
        call(Options()),
        call({}),
    ) == [[0, 1], [2], [3, 4]]
    assert groups_of(
        of_dataclass,
        call(Place("a", [1, 2])),
        call({"name": "a", "position": ["1", 2.0]}),
        call(Place("a", [2, 1])),
    ) == [[0, 1], [2]]
    assert groups_of(
        of_frozen_dataclass,
        call(FrozenPlace("a")),
        call({"name": "a"}),
        call(FrozenPlace("b")),
    ) == [[0, 1], [2]]
    assert groups_of(of_set, call(["a", "b"]), call(["b", "a", "b"]), call(["a"])) == [
        [0, 1],
        [2],
    ]


@pytest.mark.parametrize(
    "kind",
    [Loose, FrozenLoose, LooseDataclass, FrozenLooseDataclass],
)
def test_fields_are_told_apart_by_their_types_too(kind: type[Any]) -> None:
    values: list[Any] = [1, 1.0, True, [1], [True]]
    assert groups_of(
        of_one_more(kind),
        *(call(kind(value=value)) for value in values),
        *(call({"value": value}) for value in values),
    ) == [[0, 5], [1, 6], [2, 7], [3, 8], [4, 9]]


def test_entries_of_named_tuples_are_told_apart_by_their_types_too() -> None:
    values: list[Any] = [[1], [1.0], [True], [1]]
    assert groups_of(
        of_one_more(LooseTuple),
        *(call(value) for value in values),
    ) == [[0, 3], [1], [2]]


def test_a_field_that_is_not_compared_keeps_nothing_apart() -> None:
    assert groups_of(
        of_one_more(Noted),
        call({"name": "a", "note": "first"}),
        call({"name": "a", "note": "second"}),
        call({"name": "b"}),
    ) == [[0, 1], [2]]


def test_a_model_decides_for_itself_what_equals_it() -> None:
    assert groups_of(
        of_model_with_its_own_equality,
        call(Spelling(word="Same")),
        call({"word": "sAME"}),
        call({"word": "other"}),
    ) == [[0, 1], [2]]


def test_a_value_that_cannot_be_compared_fails_its_message_alone() -> None:
    class Incomparable:
        __hash__ = None  # type: ignore[assignment] # cannot be hashed either

        def __eq__(self, other: object) -> bool:
            raise ArithmeticError("nothing equals this")

    class Unknown(TaskiqMiddleware):
        def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
            if message.args[1] == "incomparable":
                message.args[1] = Incomparable()
            return message

    broker = InMemoryBroker().with_middlewares(Unknown())
    task: Any = broker.register_task(of_anything, "task", batch=True)

    async def main() -> list[Result]:
        handles = [await task.kiq(1, "a"), await task.kiq(2, "incomparable")]
        await broker.wait_all()
        return [await handle.get_result() for handle in handles]

    good, bad = outcomes(run_virtual(main()))
    assert good == [1]
    assert isinstance(bad, ArithmeticError)


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=3)
    # A function can tell 0.0 from -0.0, but nobody means to.
    | st.floats(allow_nan=False).filter(bool),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)
_SIMILAR: st.SearchStrategy[Any] = st.sampled_from(
    [0, 1, True, False, 1.0, None, "", "1", [], {}, [1], [True]]
)


@given(one=_JSON | _SIMILAR, other=_JSON | _SIMILAR)
def test_arguments_share_a_key_exactly_when_they_are_the_same_json(
    one: Any,
    other: Any,
) -> None:
    are_same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (freeze(one) == freeze(other)) == are_same
    again = json.loads(json.dumps(one))
    assert freeze(one) == freeze(again)
    assert hash(freeze(one)) == hash(freeze(again))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": 1}, {"b": 1}),
        ({"a": 1}, {"a": True}),
        ({1}, {True}),
        ({1}, {1.0}),
        (frozenset({1}), frozenset({True})),
        ({1}, frozenset({1})),
        ([1], (1,)),
    ],
    ids=str,
)
def test_arguments_that_a_function_can_tell_apart_share_no_key(
    one: Any,
    other: Any,
) -> None:
    assert freeze(one) != freeze(other)
    assert freeze(one) == freeze(copy.copy(one))


@virtual
async def test_the_time_of_an_isolated_message_is_that_of_all_calls_together(
    broker: InMemoryBroker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = asyncio.get_running_loop().time
    monkeypatch.setattr("taskiq.receiver.execution.time.perf_counter", clock)

    @broker.task(batch=True, batch_isolate_errors=True)
    async def failing(items: list[int]) -> None:
        await asyncio.sleep(1)
        raise ValueError("each of them")

    for result in await results_of(broker, failing, range(2)):
        assert result.execution_time == 3


@virtual
async def test_messages_with_different_timeouts_do_not_share_a_call(
    broker: InMemoryBroker,
) -> None:
    @broker.task(batch=True)
    async def function(items: list[int]) -> Any:
        return items

    timeouts = [None, "1", 1, 1.0, "2", None]
    handles: list[AsyncTaskiqTask[Any]] = []
    for index, timeout in enumerate(timeouts):
        labels = {} if timeout is None else {"timeout": timeout}
        handles.append(await function.kicker().with_labels(**labels).kiq(index))
    await broker.wait_all()
    met = outcomes([await handle.get_result() for handle in handles])
    assert met == [[0, 5], [1, 2, 3], [1, 2, 3], [1, 2, 3], [4], [0, 5]]


# -- The context of a batch -----------------------------------------------------------


@virtual
async def test_the_context_tells_everything_about_the_batch(
    broker: InMemoryBroker,
) -> None:
    contexts: list[BatchContext] = []

    @broker.task(batch=True, batch_size=3, queue="numbers")
    async def function(items: list[int], batch: CurrentBatch) -> None:
        assert [message.args for message in batch.messages] == [
            [each] for each in items
        ]
        contexts.append(batch)

    task: Any = function
    handles = [await task.kiq(number) for number in range(4)]
    await broker.wait_all()
    full, rest = contexts
    assert [message.task_id for message in full.messages] == [
        handle.task_id for handle in handles[:3]
    ]
    assert full.message is full.messages[0]
    assert rest.message.task_id == handles[3].task_id
    assert [(each.size, each.flush_reason) for each in contexts] == [
        (3, FlushReason.SIZE),
        (1, FlushReason.MANUAL),
    ]
    assert full.batch_id != rest.batch_id
    assert len(full.batch_id) == 32
    assert full.broker is broker
    assert full.state is broker.state


@virtual
async def test_a_batch_is_injected_as_a_context_and_as_a_batch_context(
    broker: InMemoryBroker,
) -> None:
    def nested(context: CurrentContext, batch: CurrentBatch) -> tuple[Context, Context]:
        return context, batch

    @broker.task(batch=True)
    async def function(
        items: list[int],
        context: CurrentContext,
        batch: CurrentBatch,
        both: Annotated[tuple[Context, Context], TaskiqDepends(nested)],
    ) -> bool:
        return context is batch is both[0] is both[1]

    assert outcomes(await results_of(broker, function, [1, 2])) == [True, True]


@virtual
async def test_the_context_of_a_plain_task_has_one_message(
    broker: InMemoryBroker,
) -> None:
    @broker.task
    async def function(context: CurrentContext) -> bool:
        assert not isinstance(context, BatchContext)
        return tuple(context.messages) == (context.message,)

    task: Any = function
    handle = await task.kiq()
    await broker.wait_all()
    assert (await handle.get_result()).return_value is True


@pytest.mark.parametrize("end", ["return", "raise", "wrong length"])
def test_outcomes_set_through_the_context_win_over_what_the_function_does(
    broker: InMemoryBroker,
    end: str,
) -> None:
    @broker.task("task", batch=True)
    async def function(items: list[int], batch: CurrentBatch) -> list[str]:
        batch.set_result(0, None)
        batch.fail(1, KeyError("one"))
        batch.reject(2)
        if end == "raise":
            raise ValueError("the others")
        return ["returned"] * (4 if end == "return" else 5)

    none, one, two, three = outcomes(
        run_virtual(results_of(broker, function, range(4))),
    )
    assert none is None
    assert repr(one) == "KeyError('one')"
    assert isinstance(two, TaskRejectedError)
    if end == "return":
        assert three == "returned"
    elif end == "raise":
        assert repr(three) == "ValueError('the others')"
    else:
        assert isinstance(three, TaskiqBatchResultError)


@virtual
async def test_outcomes_can_be_set_for_some_messages_of_a_shared_batch(
    broker: InMemoryBroker,
) -> None:
    @broker.task(batch=True)
    async def function(items: list[int], batch: CurrentBatch) -> str:
        batch.set_result(1, "own")
        return "shared"

    assert outcomes(await results_of(broker, function, range(3))) == [
        "shared",
        "own",
        "shared",
    ]


@virtual
async def test_an_index_outside_the_batch_is_an_error_and_a_negative_one_too(
    broker: InMemoryBroker,
) -> None:
    refused: list[str] = []

    @broker.task(batch=True)
    async def function(items: list[int], batch: CurrentBatch) -> list[int]:
        for index in (2, -1, 100):
            with pytest.raises(IndexError) as caught:
                batch.set_result(index, 1)
            refused.append(str(caught.value).replace(batch.batch_id, "ID"))
            with pytest.raises(IndexError):
                batch.fail(index, ValueError())
            with pytest.raises(IndexError):
                batch.reject(index)
            with pytest.raises(IndexError):
                await batch.requeue(index)
            with pytest.raises(IndexError):
                await batch.ack(index)
        return items

    assert outcomes(await results_of(broker, function, range(2))) == [0, 1]
    assert refused == [
        f"batch ID has items 0 to 1, not {each}" for each in (2, -1, 100)
    ]


@virtual
async def test_an_outcome_is_set_once(broker: InMemoryBroker) -> None:
    @broker.task(batch=True)
    async def function(items: list[int], batch: CurrentBatch) -> list[int]:
        batch.set_result(0, "first")
        already = f"item 0 of batch {batch.batch_id} has an outcome already"
        with pytest.raises(RuntimeError, match=already):
            batch.set_result(0, "second")
        with pytest.raises(RuntimeError, match=already):
            batch.fail(0, ValueError())
        with pytest.raises(RuntimeError, match=already):
            batch.reject(0)
        with pytest.raises(RuntimeError, match=already):
            await batch.requeue(0)
        return items

    assert outcomes(await results_of(broker, function, range(2))) == ["first", 1]


@virtual
async def test_after_the_call_no_outcome_can_be_set(broker: InMemoryBroker) -> None:
    contexts: list[BatchContext] = []

    @broker.task(batch=True)
    async def function(items: list[int], batch: CurrentBatch) -> list[int]:
        contexts.append(batch)
        return items

    results = await results_of(broker, function, range(2))
    (batch,) = contexts
    with pytest.raises(RuntimeError, match="has ended; its outcomes stay"):
        batch.set_result(0, "late")
    with pytest.raises(RuntimeError, match="has ended"):
        batch.fail(0, ValueError())
    with pytest.raises(RuntimeError, match="has ended"):
        await batch.requeue(0)
    assert outcomes(results) == [0, 1]
    assert broker.receiver.batching.is_idle


@virtual
async def test_a_message_fails_with_an_exception_and_nothing_else(
    broker: InMemoryBroker,
) -> None:
    @broker.task(batch=True)
    async def function(items: list[int], batch: CurrentBatch) -> list[int]:
        wrong: Any = "no exception"
        with pytest.raises(TypeError, match="exception instance, got 'no exception'"):
            batch.fail(0, wrong)
        return items

    assert outcomes(await results_of(broker, function, range(1))) == [0]


@virtual
async def test_requeueing_some_messages_sends_them_again_and_settles_the_others() -> (
    None
):
    worker = Worker()

    @worker.broker.task(batch=True, queue="numbers")
    async def function(items: list[int], batch: CurrentBatch) -> list[int]:
        if "X-Taskiq-requeue" not in batch.message.labels:
            await batch.requeue(1)
        return items

    await send(function, 0, 1, 2)
    await worker.run()
    assert worker.backend.saved == ["0", "2"]
    assert sorted(worker.broker.acked) == ["0", "1", "2"]
    assert worker.ids("post_save") == ["0", "2"]
    (again,) = worker.broker.take_all()
    assert again.task_id == "1"
    message = worker.broker.formatter.loads(again.message)
    assert message.args == [1]
    assert message.labels == {"queue": "numbers", "X-Taskiq-requeue": "1"}


@virtual
async def test_requeueing_the_batch_sends_every_message_that_has_no_outcome() -> None:
    worker = Worker()

    @worker.broker.task(batch=True)
    async def function(items: list[int], batch: CurrentBatch) -> list[int]:
        batch.set_result(1, "done")
        await batch.requeue()
        raise AssertionError("the call goes on")

    await send(function, 0, 1, 2)
    await worker.run()
    assert worker.backend.saved == ["1"]
    assert worker.backend.results["1"].return_value == "done"
    assert [each.task_id for each in worker.broker.take_all()] == ["0", "2"]
    assert sorted(worker.broker.acked) == ["0", "1", "2"]


@virtual
async def test_one_message_is_acknowledged_at_once_and_once() -> None:
    worker = Worker()

    @worker.broker.task(batch=True)
    async def function(items: list[int], batch: CurrentBatch) -> None:
        await batch.ack(1)
        await batch.ack(1)
        assert worker.broker.acked == ["1"]
        await asyncio.sleep(1)
        assert worker.broker.acked == ["1"]

    await send(function, 0, 1, 2)
    await worker.run()
    assert worker.broker.acked == ["1", "0", "2"]
    assert set(worker.errors.values()) == {None}


@virtual
async def test_all_messages_are_acknowledged_without_an_index() -> None:
    worker = Worker()

    @worker.broker.task(batch=True)
    async def function(items: list[int], context: CurrentContext) -> None:
        assert context.is_ackable
        assert not context.is_acked
        await context.ack()
        assert context.is_acked
        assert worker.broker.acked == ["0", "1", "2"]

    await send(function, 0, 1, 2)
    await worker.run(AcknowledgeType.MANUAL)
    assert worker.broker.acked == ["0", "1", "2"]
    assert set(worker.errors.values()) == {None}


@virtual
async def test_what_cannot_be_acknowledged_says_so(broker: InMemoryBroker) -> None:
    @broker.task(batch=True)
    async def function(items: list[int], batch: CurrentBatch) -> list[int]:
        assert not batch.is_ackable
        for index in (None, 0):
            with pytest.raises(RuntimeError, match="Current message is not ackable"):
                await batch.ack(index)
        return items

    assert outcomes(await results_of(broker, function, range(2))) == [0, 1]


# -- Dependencies and progress --------------------------------------------------------


@virtual
async def test_dependencies_are_resolved_and_closed_once_per_call() -> None:
    worker = Worker()
    steps: list[str] = []

    async def transaction() -> AsyncIterator[str]:
        steps.append("open")
        yield "transaction"
        steps.append("commit")

    @worker.broker.task(batch=True)
    async def insert(
        items: list[int],
        session: Annotated[str, TaskiqDepends(transaction)],
    ) -> None:
        steps.append(f"{session} {items}")

    await send(insert, 0, 1, 2)
    await worker.run()
    assert steps == ["open", "transaction [0, 1, 2]", "commit"]
    assert set(worker.errors.values()) == {None}


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_dependency_that_fails_fails_every_message(moment: str) -> None:
    worker = Worker()
    error = ConnectionError(moment)
    calls: list[list[int]] = []

    async def transaction() -> AsyncIterator[None]:
        if moment == "before":
            raise error
        yield
        raise error

    @worker.broker.task(batch=True)
    async def insert(
        items: list[int],
        session: Annotated[None, TaskiqDepends(transaction)],
    ) -> list[int]:
        calls.append(items)
        return items

    async def main() -> None:
        await send(insert, 0, 1)
        await worker.run()

    run_virtual(main())
    assert calls == ([] if moment == "before" else [[0, 1]])
    assert worker.errors == {"0": error, "1": error}
    assert sorted(worker.ids("on_error")) == ["0", "1"]


@virtual
async def test_an_argument_sent_by_the_client_wins_over_its_dependency(
    broker: InMemoryBroker,
) -> None:
    @broker.task(batch=True)
    async def function(
        items: list[int],
        tenant: Annotated[str, TaskiqDepends(lambda: "dependency")],
    ) -> Any:
        return tenant, items

    task: Any = function
    handles = [
        await task.kiq(0),
        await task.kiq(1, tenant="sent"),
        await task.kiq(2),
        await task.kiq(3, "sent"),
    ]
    await broker.wait_all()
    assert outcomes([await handle.get_result() for handle in handles]) == [
        ("dependency", [0, 2]),
        ("sent", [1, 3]),
        ("dependency", [0, 2]),
        ("sent", [1, 3]),
    ]


def resolved() -> str:
    return "resolved"


@virtual
async def test_a_dependency_may_stand_anywhere_among_the_arguments(
    broker: InMemoryBroker,
) -> None:
    @broker.task(batch=True)
    async def function(
        items: list[int],
        /,
        first: Annotated[str, TaskiqDepends(resolved)],
        tenant: str = "a",
        second: Annotated[str, TaskiqDepends(resolved)] = "",
        *more: int,
        count: int = 0,
        **names: str,
    ) -> Any:
        return items, first, tenant, second, more, count, names

    task: Any = function
    handles = [
        await task.kiq(0),
        await task.kiq(1, tenant="a", count="0"),
        await task.kiq(2, tenant="b"),
        await task.kiq(3, second="sent"),
        await task.kiq(4, "sent", "c"),
        await task.kiq(5, count=1, name="x"),
        await task.kiq(6, "sent", "a", "sent", 1),
    ]
    await broker.wait_all()
    *good, bad = outcomes([await handle.get_result() for handle in handles])
    assert good == [
        ([0, 1], "resolved", "a", "resolved", (), 0, {}),
        ([0, 1], "resolved", "a", "resolved", (), 0, {}),
        ([2], "resolved", "b", "resolved", (), 0, {}),
        ([3], "resolved", "a", "sent", (), 0, {}),
        ([4], "sent", "c", "resolved", (), 0, {}),
        ([5], "resolved", "a", "resolved", (), 1, {"name": "x"}),
    ]
    # As for a plain task: by position, a dependency is given twice.
    assert isinstance(bad, TypeError)
    assert "multiple values for argument 'first'" in str(bad)


@virtual
async def test_progress_is_reported_for_every_message(broker: InMemoryBroker) -> None:
    seen: list[TaskProgress[Any] | None] = []

    @broker.task(batch=True)
    async def function(
        items: list[int],
        tracker: Annotated[ProgressTracker[int], TaskiqDepends()],
    ) -> None:
        await tracker.set_progress(TaskState.STARTED, len(items))
        seen.append(await tracker.get_progress())
        await tracker.set_progress("nearly done")

    task: Any = function
    handles = [await task.kiq(number) for number in range(70)]
    await broker.wait_all()
    assert seen == [TaskProgress(state=TaskState.STARTED, meta=70)]
    assert [await handle.get_progress() for handle in handles] == [
        TaskProgress(state="nearly done", meta=70),
    ] * 70


# -- Sync functions -------------------------------------------------------------------


@virtual
async def test_a_sync_function_runs_in_a_thread_with_the_context_of_its_call(
    broker: InMemoryBroker,
) -> None:
    variable = contextvars.ContextVar("variable", default="unset")

    class Setting(TaskiqMiddleware):
        def on_batch_start(self, batch: BatchInfo) -> None:
            variable.set(batch.batch_id)

    def function(items: list[int], batch: CurrentBatch) -> list[int | Exception]:
        assert threading.current_thread() is not threading.main_thread()
        assert variable.get() == batch.batch_id
        batch.set_result(0, "set in a thread")
        return [ValueError(item) if item == 1 else item for item in items]

    task: Any = broker.with_middlewares(Setting()).register_task(function, batch=True)
    zero, one, two = outcomes(await results_of(broker, task, range(3)))
    assert (zero, two) == ("set in a thread", 2)
    assert repr(one) == "ValueError(1)"
    assert variable.get() == "unset"


async def test_a_sync_function_runs_in_a_process_that_finds_it_by_name() -> None:
    worker = Worker()
    tasks = process_batch_tasks.broker.local_task_registry
    worker.broker.local_task_registry.update(tasks)
    double: Any = process_batch_tasks.double_in_process
    fail: Any = process_batch_tasks.fail_in_process
    for number in range(3):
        kicker = double.kicker().with_broker(worker.broker)
        await kicker.with_task_id(f"double {number}").kiq(number)
        await kicker.with_task_id(f"triple {number}").kiq(number, factor="3")
        kicker = fail.kicker().with_broker(worker.broker)
        await kicker.with_task_id(f"fail {number}").kiq(number)
    with ProcessPoolExecutor(1) as executor:
        await worker.run(executor=executor)
    results = worker.backend.results
    for number in range(3):
        value, process = results[f"double {number}"].return_value
        assert value == 2 * number
        assert process != os.getpid()
        assert results[f"triple {number}"].return_value[0] == 3 * number
        assert repr(results[f"fail {number}"].error) == "LookupError(3)"
    assert len(worker.recorder.batches) == 3


# -- Middlewares ----------------------------------------------------------------------


@virtual
async def test_a_middleware_may_change_the_result_of_one_message() -> None:
    class Stamp(TaskiqMiddleware):
        def post_execute(self, message: TaskiqMessage, result: Result) -> None:
            result.labels = {**result.labels, "stamp": message.task_id}
            result.return_value = f"{result.return_value} for {message.task_id}"

    worker = Worker(Stamp())

    @worker.broker.task(batch=True)
    async def shared(items: list[int]) -> str:
        return "value"

    await send(shared, 0, 1)
    await worker.run()
    for task_id in "01":
        result = worker.backend.results[task_id]
        assert result.return_value == f"value for {task_id}"
        assert result.labels == {"stamp": task_id}


@virtual
async def test_what_a_middleware_does_to_a_result_does_nothing_to_its_message() -> None:
    stored: list[dict[str, Any]] = []

    class Stamp(TaskiqMiddleware):
        def post_execute(self, message: TaskiqMessage, result: Result) -> None:
            result.labels["stamp"] = "new"

        def post_save(self, message: TaskiqMessage, result: Result) -> None:
            stored.append({"message": message.labels, "result": result.labels})

    worker = Worker(Stamp())

    @worker.broker.task(batch=True, queue="fast")
    async def shared(items: list[int]) -> str:
        return "value"

    await send(shared, 0)
    await worker.run()
    expected = {"queue": "fast"}
    assert stored == [{"message": expected, "result": {**expected, "stamp": "new"}}]


class BatchHooks(TaskiqMiddleware):
    """Writes down the hooks of batches, and raises in those it is told to."""

    def __init__(self, *raising: str) -> None:
        super().__init__()
        self.raising = raising
        self.started: list[BatchInfo] = []
        self.ended: list[tuple[BatchInfo, list[Result]]] = []

    async def on_batch_start(self, batch: BatchInfo) -> None:
        self.started.append(batch)
        if "on_batch_start" in self.raising:
            raise RuntimeError("hook of the start")

    def on_batch_end(self, batch: BatchInfo, results: Sequence[Result]) -> None:
        self.ended.append((batch, list(results)))
        if "on_batch_end" in self.raising:
            raise RuntimeError("hook of the end")


@virtual
async def test_the_hooks_of_a_batch_run_once_with_results_aligned_to_messages() -> None:
    hooks = BatchHooks()
    worker = Worker(hooks)

    @worker.broker.task("halve", batch=True, batch_size=4)
    async def halve(items: list[int]) -> list[float | Exception]:
        assert len(hooks.started) == len(hooks.ended) + 1
        return [ValueError(item) if item % 2 else item / 2 for item in items]

    await send(halve, 0, 1, 2, 3, 4)
    await worker.run()
    assert hooks.started == [batch for batch, _ in hooks.ended]
    assert [len(batch.messages) for batch in hooks.started] == [4, 1]
    assert [batch.flush_reason for batch in hooks.started] == [
        FlushReason.SIZE,
        FlushReason.SHUTDOWN,
    ]
    for batch, results in hooks.ended:
        assert batch.task_name == "halve"
        assert len(batch.batch_id) == 32
        assert batch.waited == 0
        assert len(results) == len(batch.messages)
        for message, result in zip(batch.messages, results, strict=True):
            assert result is worker.backend.results[message.task_id]
    with pytest.raises(dataclasses.FrozenInstanceError):
        hooks.started[0].waited = 1.0  # type: ignore[misc] # the point of this test


@pytest.mark.parametrize("raising", ["on_batch_start", "on_batch_end"])
def test_a_batch_hook_that_raises_is_logged_and_harms_nothing(
    raising: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    after = BatchHooks()
    worker = Worker(BatchHooks(raising), after)

    @worker.broker.task("task", batch=True)
    async def function(items: list[int]) -> list[int]:
        return items

    async def main() -> None:
        await send(function, 0, 1)
        await worker.run()

    run_virtual(main())
    assert [each.return_value for each in worker.backend.results.values()] == [0, 1]
    assert worker.broker.acked == ["0", "1"]
    assert len(after.started) == len(after.ended) == 1
    (record,) = [each for each in caplog.records if each.levelno == logging.ERROR]
    assert f"The {raising} hook of BatchHooks failed for batch" in record.getMessage()
    assert "task (0, 1)" in record.getMessage()


@virtual
async def test_plain_tasks_have_no_batch_hooks() -> None:
    hooks = BatchHooks()
    worker = Worker(hooks)

    @worker.broker.task
    async def function(item: int) -> None: ...

    await send(function, 0)
    await worker.run()
    assert (hooks.started, hooks.ended) == ([], [])
    assert worker.ids("post_save") == ["0"]


class Retry(TaskiqMiddleware):
    """Sends a failed message again under its id, twice at most."""

    async def on_error(
        self,
        message: TaskiqMessage,
        result: Result,
        exception: BaseException,
    ) -> None:
        retries = int(message.labels.get("retries", 0))
        if retries == 2:
            return
        labels = {**message.labels, "retries": retries + 1}
        kicker: AsyncKicker[..., Any]
        kicker = AsyncKicker(message.task_name, self.broker, labels)
        await kicker.with_task_id(message.task_id).kiq(*message.args, **message.kwargs)
        result.error = NoResultError()


@virtual
async def test_a_retry_sends_exactly_the_failed_messages_again(
    broker: InMemoryBroker,
) -> None:
    calls: list[list[int]] = []

    @broker.with_middlewares(Retry()).task(batch=True)
    async def flaky(items: list[int]) -> list[int | Exception]:
        calls.append(items)
        return [
            ValueError(item) if item % 2 and len(calls) < item else item
            for item in items
        ]

    results = outcomes(await results_of(broker, flaky, range(6)))
    assert calls == [[0, 1, 2, 3, 4, 5], [3, 5], [3, 5]]
    assert results[:5] == [0, 1, 2, 3, 4]
    assert repr(results[5]) == "ValueError(5)"


# -- Settling is side by side ---------------------------------------------------------


class GatedBackend(RecordingBackend):
    """Saves when it is let; tells how many it is asked to save at once.

    :ivar hanging: ids whose saving never ends.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.hanging: set[str] = set()
        self.waiting = 0
        self.most_waiting = 0

    async def set_result(self, task_id: str, result: Result) -> None:
        self.waiting += 1
        self.most_waiting = max(self.most_waiting, self.waiting)
        await self.gate.wait()
        self.waiting -= 1
        if task_id in self.hanging:
            await asyncio.Event().wait()
        await super().set_result(task_id, result)


class SlowBackend(RecordingBackend):
    """Takes a second for each result."""

    async def set_result(self, task_id: str, result: Result) -> None:
        await asyncio.sleep(1)
        await super().set_result(task_id, result)


def numbers_task(worker: Worker) -> Any:
    async def function(items: list[int]) -> list[int]:
        return items

    return worker.broker.register_task(function, "numbers", batch=True)


@virtual
async def test_messages_are_settled_side_by_side_and_not_all_at_once() -> None:
    worker = Worker()
    worker.backend = backend = GatedBackend()
    task = numbers_task(worker)
    worker.broker.with_result_backend(backend)
    await send(task, *range(100))
    run = asyncio.create_task(worker.run())
    await asyncio.sleep(10)
    assert backend.waiting == SETTLED_AT_ONCE
    assert backend.most_waiting == SETTLED_AT_ONCE
    assert worker.broker.acked == []
    backend.gate.set()
    await run
    assert sorted(worker.broker.acked) == sorted(backend.saved)
    assert len(backend.saved) == 100
    assert 1 < SETTLED_AT_ONCE < 100


@virtual
async def test_100_messages_do_not_cost_100_round_trips_in_a_row() -> None:
    worker = Worker()
    task = numbers_task(worker)
    worker.broker.with_result_backend(SlowBackend())
    await send(task, *range(100))
    await worker.run()
    assert len(worker.broker.acked) == 100
    rounds = -(-100 // SETTLED_AT_ONCE)
    assert asyncio.get_running_loop().time() == rounds


@virtual
async def test_a_result_that_hangs_delays_no_other() -> None:
    worker = Worker()
    backend = GatedBackend()
    backend.gate.set()
    backend.hanging = {"0", "50"}
    task = numbers_task(worker)
    worker.broker.with_result_backend(backend)
    await send(task, *range(100))
    run = asyncio.create_task(worker.run())
    await asyncio.sleep(10)
    assert len(worker.broker.acked) == 98
    assert {"0", "50"}.isdisjoint(worker.broker.acked)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert len(worker.broker.acked) == 98


@virtual
async def test_a_result_that_cannot_be_saved_harms_no_other() -> None:
    worker = Worker()
    worker.backend.failing = {"0", "7"}
    await send(numbers_task(worker), *range(10))
    await worker.run()
    others = {"1", "2", "3", "4", "5", "6", "8", "9"}
    assert set(worker.backend.results) == others
    assert set(worker.broker.acked) == others
    assert set(worker.ids("post_save")) == others


@virtual
async def test_an_acknowledgement_that_fails_harms_no_other() -> None:
    worker = Worker()
    worker.broker.failing_acks = {"0", "7"}
    await send(numbers_task(worker), *range(10))
    await worker.run()
    assert len(worker.backend.results) == 10
    assert set(worker.broker.acked) == {"1", "2", "3", "4", "5", "6", "8", "9"}


@pytest.mark.parametrize("hook", ["on_error", "post_execute", "post_save"])
def test_a_hook_that_fails_for_one_message_harms_no_other(hook: str) -> None:
    async def failing(
        _: TaskiqMiddleware,
        message: TaskiqMessage,
        *_others: object,
    ) -> None:
        if message.task_id == "0":
            raise RuntimeError(hook)

    middleware: TaskiqMiddleware = type(
        "Failing", (TaskiqMiddleware,), {hook: failing}
    )()
    worker = Worker(middleware)

    @worker.broker.task(batch=True)
    async def function(items: list[int]) -> list[int | Exception]:
        return [KeyError(item) if item < 2 else item for item in items]

    async def main() -> None:
        await send(function, 0, 1, 2)
        await worker.run()

    run_virtual(main())
    assert {name: repr(error) for name, error in worker.errors.items()} == {
        "0": "KeyError(0)",
        "1": "KeyError(1)",
        "2": "None",
    }
    assert worker.ids("on_error") == ["0", "1"]
    assert sorted(worker.ids("post_save")) == ["0", "1", "2"]
    assert sorted(worker.broker.acked) == ["0", "1", "2"]
