"""Placing: which messages may share a call, and which cannot be in one."""

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import pytest
from pydantic import BaseModel, ValidationError

from taskiq import (
    AcknowledgeType,
    AsyncTaskiqTask,
    BatchContext,
    InMemoryBroker,
    TaskiqDepends,
    TaskiqMessage,
    TaskiqMiddleware,
    TaskiqResult,
)
from taskiq.batch import FlushReason
from taskiq.exceptions import TaskiqBatchResultError
from taskiq.kicker import AsyncKicker
from tests.support.poison import poisoned_by
from tests.support.recorders import alike
from tests.support.virtual_time import run_virtual, virtual
from tests.support.worker import BatchWorker, Worker, outcomes, results_of, run

# -- What cannot join a batch fails alone ----------------------------------------------


class Doc(BaseModel):
    title: str
    pages: int = 1


@pytest.mark.parametrize("ack_type", [*AcknowledgeType])
def test_a_message_that_cannot_be_cast_fails_alone(ack_type: AcknowledgeType) -> None:
    worker = Worker(ack_type=ack_type)
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
        await worker.run()

    run_virtual(main())
    assert calls == [([1, 2], "a")]
    errors = worker.errors
    assert set(worker.values) == {"first", "last"}
    for task_id in ("item", "item is none", "item is a list", "rest", "rest by name"):
        assert isinstance(errors[task_id], ValidationError), task_id
    for task_id in ("missing", "no item", "extra", "unknown name", "twice"):
        assert isinstance(errors[task_id], TypeError), task_id
    assert isinstance(errors["timeout"], ValueError)
    assert set(worker.ids("on_error")) == {*wrong, "timeout"}
    assert set(worker.ids("post_save")) == {"first", "last", *errors}
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


# -- Who may share a call --------------------------------------------------------------


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

    async def main() -> list[TaskiqResult[Any]]:
        handles = [await task.kiq(1, "a"), await task.kiq(2, "incomparable")]
        await broker.wait_all()
        return [await handle.get_result() for handle in handles]

    good, bad = outcomes(run_virtual(main()))
    assert good == [1]
    assert isinstance(bad, ArithmeticError)


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


# -- Keys ------------------------------------------------------------------------------


def test_items_share_a_call_only_with_those_of_their_tenant() -> None:
    worker = run(
        BatchWorker(batch_key=lambda item, _: item["tenant"]),
        *({"tenant": "ab"[n % 2], "n": n} for n in range(6)),
    )
    assert [[item["n"] for item in call] for call in worker.calls] == [
        [0, 2, 4],
        [1, 3, 5],
    ]
    worker.assert_settled_once(6)


def test_each_tenant_fills_a_batch_of_its_own() -> None:
    worker = run(
        BatchWorker(batch_key=lambda item, _: item[0], batch_size=2),
        "a1", "b1", "a2", "b2", "a3",
    )  # fmt: skip
    assert sorted(worker.calls) == [["a1", "a2"], ["a3"], ["b1", "b2"]]
    assert worker.reasons == [FlushReason.SIZE, FlushReason.SIZE, FlushReason.SHUTDOWN]


def test_a_key_sees_the_other_arguments_as_the_function_does() -> None:
    seen: list[tuple[Any, ...]] = []
    broker = InMemoryBroker()

    def key(item: int, *rest: Any, **named: Any) -> None:
        seen.append((item, rest, named))

    @broker.task(batch=True, batch_key=key)
    async def work(
        items: list[int],
        text: str,
        context: Annotated[BatchContext, TaskiqDepends()],
        *,
        urgent: bool = False,
    ) -> None: ...

    async def main() -> None:
        await work.kiq(1, "hello")
        await work.kiq(2, text="hello", urgent=True)  # type: ignore[call-overload] # so
        await broker.wait_all()

    run_virtual(main())
    assert seen == [
        (1, ("hello",), {"urgent": False}),
        (2, ("hello",), {"urgent": True}),
    ]


def test_a_key_is_of_the_item_as_it_was_cast() -> None:
    broker = InMemoryBroker()
    calls: list[list[int]] = []

    @broker.task(batch=True, batch_key=lambda item: item % 2)
    async def work(items: list[int]) -> None:
        calls.append(items)

    async def main() -> None:
        for item in (1, "2", 3, "4"):
            await work.kiq(item)  # type: ignore[arg-type] # as an old client sends it
        await broker.wait_all()

    run_virtual(main())
    assert calls == [[1, 3], [2, 4]]


def test_equal_arguments_are_still_asked_for_beside_equal_keys() -> None:
    worker = BatchWorker(batch_key=lambda *_: "same")

    async def main() -> None:
        await worker.send(1, 2, rest="x")
        await worker.send(3, rest="y")
        await worker.send(4, rest="x", timeout=5)
        await worker.run()

    run_virtual(main())
    assert worker.calls == [[1, 2], [3], [4]]


def test_a_key_of_none_is_a_key_like_any_other() -> None:
    worker = run(BatchWorker(batch_key=lambda item, _: item or None), 0, 1, 0, 1)
    assert worker.calls == [[0, 0], [1, 1]]


# -- Weights ---------------------------------------------------------------------------


def tokens(**limits: Any) -> BatchWorker:
    return BatchWorker(batch_weight=len, batch_max_weight=10, **limits)


def test_size_bounds_a_batch_of_light_items() -> None:
    worker = run(tokens(batch_size=2), "", "", "")
    assert worker.calls == [["", ""], [""]]


def test_each_key_has_its_own_weight() -> None:
    worker = run(
        tokens(batch_key=lambda item, _: item[0]),
        "a" * 6, "b" * 6, "a" * 4, "b" * 4,
    )  # fmt: skip
    assert worker.calls == [["a" * 6, "a" * 4], ["b" * 6, "b" * 4]]


# -- What the task's own functions may do wrong ----------------------------------------


async def coroutine() -> int:
    return 1


def raising(item: Any, *rest: Any) -> Any:
    if item == "bad":
        raise KeyError("tenant")
    return 1


def returning(value: object) -> Callable[..., Any]:
    """Make a function that gives `value` for the bad item."""

    def function(item: Any, *rest: Any) -> Any:
        return value if item == "bad" else 1

    return function


_HASHABLE = [
    (raising, KeyError, "'tenant'"),
    (
        returning([1]),
        TypeError,
        "{name} must return something hashable: unhashable type: 'list'",
    ),
    (
        lambda item, *_: coroutine() if item == "bad" else 1,
        TypeError,
        "{name} must return a plain value, not a coroutine",
    ),
]


_WEIGHING = [
    (raising, KeyError, "'tenant'"),
    (returning(None), TypeError, "batch_weight must return a number, got None"),
    (returning("3"), TypeError, "batch_weight must return a number, got '3'"),
    (returning(True), TypeError, "batch_weight must return a number, got True"),
    *(
        (
            returning(weight),
            ValueError,
            f"batch_weight must return a finite number, 0 or more, got {weight}",
        )
        for weight in (-1, float("nan"), float("inf"))
    ),
]


def _of_item(function: Callable[..., Any], item: Any) -> Any:
    return function(item)


@pytest.mark.parametrize(
    ("argument", "function", "kind", "text"),
    [
        *(("batch_key", *each) for each in _HASHABLE),
        *(("batch_coalesce", *each) for each in _HASHABLE),
        *(("batch_weight", *each) for each in _WEIGHING),
    ],
)
def test_an_item_that_cannot_be_placed_fails_alone(
    argument: str,
    function: Callable[..., Any],
    kind: type[Exception],
    text: str,
) -> None:
    limits: dict[str, Any] = {argument: function}
    if argument != "batch_key":
        limits[argument] = functools.partial(_of_item, function)
    if argument == "batch_weight":
        limits["batch_max_weight"] = 10
    retried: list[str] = []

    class OnError(TaskiqMiddleware):
        def on_error(self, message: TaskiqMessage, *_: Any) -> None:
            retried.append(message.task_id)

    worker = run(
        BatchWorker(len, OnError(), batch_size=5, **limits),
        1, "bad", 3,
    )  # fmt: skip
    # Coalescing passes the equal good ones once.
    assert len(worker.calls) == 1
    assert "bad" not in worker.calls[0]
    assert list(worker.errors) == ["1"]
    assert type(worker.errors["1"]) is kind
    assert str(worker.errors["1"]) == text.format(name=argument)
    assert retried == ["1"]
    assert list(worker.values) == ["0", "2"]
    worker.assert_settled_once(3)


# -- Duplicates ------------------------------------------------------------------------


def test_equal_items_run_once_and_each_message_has_its_result_and_its_ack() -> None:
    worker = run(
        BatchWorker(poisoned_by(), batch_coalesce=str, batch_results="each"),
        "a", "b", "a", "c", "a",
    )  # fmt: skip
    assert worker.calls == [["a", "b", "c"]]
    assert worker.values == {"0": "aa", "1": "bb", "2": "aa", "3": "cc", "4": "aa"}
    worker.assert_settled_once(5)
    assert sorted(worker.ids("post_save")) == ["0", "1", "2", "3", "4"]
    [info] = worker.seen.ended
    assert [message.task_id for message in info.messages] == ["0", "1", "2", "3", "4"]


def test_every_duplicate_has_a_result_object_of_its_own() -> None:
    worker = run(BatchWorker(batch_coalesce=str), "a", "a")
    first, second = worker.seen.results[0]
    assert first is not second
    assert first.labels is not second.labels


def test_the_first_of_equal_items_stands_for_them() -> None:
    worker = run(
        BatchWorker(batch_coalesce=lambda item: item["id"]),
        {"id": 1, "n": 0}, {"id": 2, "n": 1}, {"id": 1, "n": 2},
    )  # fmt: skip
    assert [[item["n"] for item in call] for call in worker.calls] == [[0, 1]]


def test_an_entry_that_is_an_error_fails_all_duplicates_and_nobody_else() -> None:
    error = ValueError("no")
    worker = run(
        BatchWorker(
            lambda items: [error if item == "a" else item for item in items],
            batch_coalesce=str,
            batch_results="each",
        ),
        "a", "b", "a",
    )  # fmt: skip
    assert alike(worker.errors, {"0": error, "2": error})
    assert worker.values == {"1": "b"}
    assert sorted(worker.ids("on_error")) == ["0", "2"]


def test_the_entries_of_a_list_are_counted_by_items_not_by_messages() -> None:
    worker = run(
        BatchWorker(lambda _: [1, 2, 3], batch_coalesce=str, batch_results="each"),
        "a", "b", "a",
    )  # fmt: skip
    assert len(worker.errors) == 3
    assert all(
        isinstance(e, TaskiqBatchResultError) and e.expected == 2
        for e in worker.errors.values()
    )


def test_batch_size_counts_messages_duplicates_included() -> None:
    worker = run(BatchWorker(batch_coalesce=str, batch_size=2), "a", "a", "a")
    assert worker.calls == [["a"], ["a"]]


def test_items_of_one_hash_are_told_apart() -> None:
    assert hash(-1) == hash(-2)
    worker = run(BatchWorker(batch_coalesce=int), -1, -2, -1, -2)
    assert worker.calls == [[-1, -2]]
    worker.assert_settled_once(4)


class Loner(str):
    """Is equal to itself, and cannot be compared with any other."""

    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        raise OverflowError(str(self))


def test_an_item_that_cannot_be_compared_with_another_fails_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    worker = run(BatchWorker(batch_coalesce=Loner), "a", "a", "b")
    assert worker.calls == [["a", "b"]]
    assert alike(worker.errors, {"1": OverflowError("a")})
    assert list(worker.values) == ["0", "2"]
    worker.assert_settled_once(3)
    assert "Cannot compare the item of task work with ID 1" in caplog.text


def test_equal_items_of_different_groups_are_not_equal() -> None:
    worker = BatchWorker(batch_coalesce=str)

    async def main() -> None:
        await worker.send("a", rest="x")
        await worker.send("a", rest="y")
        await worker.run()

    run_virtual(main())
    assert worker.calls == [["a"], ["a"]]
