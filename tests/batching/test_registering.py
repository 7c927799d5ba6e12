"""Registering: what makes a batch task, and what a mistake in it is answered with."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import math
import typing
from collections.abc import (
    Awaitable,
    Callable,
    Collection,
    Coroutine,
    Hashable,
    Iterable,
    Iterator,
    MutableSequence,
    Sequence,
)
from operator import attrgetter, itemgetter
from typing import (  # noqa: UP035 - what applications still write
    Annotated,
    Any,
    List,
    NewType,
    Optional,
    Protocol,
    TypedDict,
    TypeVar,
    Union,
)

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typing_extensions import TypeAliasType

from taskiq import BatchConfig, InMemoryBroker, TaskiqMiddleware
from taskiq.abc.broker import AsyncBroker
from taskiq.batch import item_type
from taskiq.exceptions import (
    NoResultError,
    TaskiqBatchConfigError,
    TaskiqError,
    TaskiqLabelError,
    TaskRejectedError,
)
from taskiq.kicker import AsyncKicker
from taskiq.message import TaskiqMessage

_T = TypeVar("_T")


KNOWN = (
    "batch_size, batch_timeout, batch_idle_timeout, batch_key, batch_weight, "
    "batch_max_weight, batch_coalesce, batch_concurrency, batch_rate, "
    "batch_priority, batch_results, batch_isolate_errors, batch_max_buffered"
)


async def to_each(items: list[int]) -> list[int]:
    return [2 * item for item in items]


async def to_one(items: list[int]) -> int:
    return sum(items)


def error_of(
    broker: AsyncBroker,
    function: Callable[..., Any] = to_each,
    /,
    **arguments: Any,
) -> TaskiqBatchConfigError:
    """What registering `function` as the batch task "mail:send" fails with."""
    with pytest.raises(TaskiqBatchConfigError) as caught:
        broker.register_task(function, "mail:send", batch=True, **arguments)
    assert broker.find_task("mail:send") is None
    return caught.value


def config_of(
    broker: AsyncBroker,
    function: Callable[..., Any] = to_each,
    /,
    **arguments: Any,
) -> BatchConfig:
    config = broker.register_task(function, batch=True, **arguments).batch
    assert config is not None
    return config


# -- Errors: each names the task, the argument, its value and what is allowed ----------


@pytest.mark.parametrize("argument", ["batch_size", "batch_concurrency"])
@pytest.mark.parametrize("value", [0, -1, True, False, 1.0, "1", [1]])
def test_a_number_of_messages_is_an_int_of_at_least_1_and_a_bool_is_none(
    broker: InMemoryBroker,
    argument: str,
    value: object,
) -> None:
    assert str(error_of(broker, **{argument: value})) == (
        f"Cannot register batch task mail:send: {argument}={value!r} is not allowed: "
        "it must be an int of at least 1"
    )


@pytest.mark.parametrize("argument", ["batch_timeout", "batch_idle_timeout"])
@pytest.mark.parametrize(
    "value",
    [-1, -0.001, math.nan, math.inf, -math.inf, "3", True, [1]],
)
def test_a_time_is_a_finite_number_of_seconds_and_not_negative(
    broker: InMemoryBroker,
    argument: str,
    value: object,
) -> None:
    assert str(error_of(broker, **{argument: value})) == (
        f"Cannot register batch task mail:send: {argument}={value!r} is not allowed: "
        "it must be a finite number of seconds, 0 or more"
    )


@pytest.mark.parametrize("value", ["2", "0/s", "2/d", 2, True, ["2/s"]])
def test_a_rate_is_calls_per_second_minute_or_hour(
    broker: InMemoryBroker,
    value: object,
) -> None:
    assert str(error_of(broker, batch_rate=value)) == (
        f"Cannot register batch task mail:send: batch_rate={value!r} is not "
        "allowed: it must be text: so many calls per second, minute or hour, as in "
        '"2/s", "100/m" or "10/h"'
    )


@pytest.mark.parametrize("value", ["high", "1", True, math.nan, math.inf, [1]])
def test_a_priority_is_a_finite_number(broker: InMemoryBroker, value: object) -> None:
    assert str(error_of(broker, batch_priority=value)) == (
        f"Cannot register batch task mail:send: batch_priority={value!r} is not "
        "allowed: it must be a finite number; the highest starts first"
    )


@pytest.mark.parametrize("value", ["all", "EACH", "", True, 1, ["each"]])
def test_results_are_shared_or_each(broker: InMemoryBroker, value: object) -> None:
    assert str(error_of(broker, batch_results=value)) == (
        f"Cannot register batch task mail:send: batch_results={value!r} is not "
        "allowed: it must be 'shared' or 'each'"
    )


def test_a_function_that_promises_no_list_cannot_give_each_item_its_own_result(
    broker: InMemoryBroker,
) -> None:
    assert str(error_of(broker, to_one, batch_results="each")) == (
        "Cannot register batch task mail:send: batch_results='each' is not allowed: "
        "the function is annotated to return int; "
        "with 'each' it must return a list with one entry per item"
    )


@pytest.mark.parametrize("value", [0, -1, True, 1.0, "1"])
def test_the_most_buffered_messages_are_an_int_of_at_least_1(
    broker: InMemoryBroker,
    value: object,
) -> None:
    assert str(error_of(broker, batch_max_buffered=value)) == (
        f"Cannot register batch task mail:send: batch_max_buffered={value!r} is not "
        "allowed: it must be an int of at least 1"
    )


@pytest.mark.parametrize(("size", "buffered"), [(None, 99), (10, 9), (2000, 1999)])
def test_a_buffer_holds_at_least_one_full_batch(
    broker: InMemoryBroker,
    size: int | None,
    buffered: int,
) -> None:
    error = error_of(broker, batch_size=size, batch_max_buffered=buffered)
    assert str(error) == (
        f"Cannot register batch task mail:send: batch_max_buffered={buffered} is not "
        f"allowed: it must be at least batch_size ({buffered + 1}), "
        "or no batch could fill"
    )
    assert config_of(
        broker,
        batch_size=size,
        batch_max_buffered=buffered + 1,
    ) == BatchConfig(size=buffered + 1, results="each", max_buffered=buffered + 1)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("batch_sise", "batch_size"),
        ("batch_siz", "batch_size"),
        ("batch_time_out", "batch_timeout"),
        ("batch_idletimeout", "batch_idle_timeout"),
        ("batch_concurency", "batch_concurrency"),
        ("batch_result", "batch_results"),
        ("batch_max_buffer", "batch_max_buffered"),
        ("batch_keys", "batch_key"),
        ("batch_max_wieght", "batch_max_weight"),
        ("batch_coalesced", "batch_coalesce"),
        ("batch_isolate_error", "batch_isolate_errors"),
    ],
)
def test_a_typing_error_is_answered_with_the_name_that_was_meant(
    broker: InMemoryBroker,
    typed: str,
    meant: str,
) -> None:
    assert str(error_of(broker, **{typed: 10})) == (
        f"Cannot register batch task mail:send: {typed}=10 is not allowed: "
        f"there is no such argument; did you mean {meant}? known are {KNOWN}"
    )


def test_an_unknown_name_like_no_other_is_answered_with_those_there_are(
    broker: InMemoryBroker,
) -> None:
    assert str(error_of(broker, batch_zzz=None)) == (
        "Cannot register batch task mail:send: batch_zzz=None is not allowed: "
        f"there is no such argument; known are {KNOWN}"
    )


def without_parameter() -> None: ...


def keyword_only(*, items: list[int]) -> None: ...


def any_number(*items: list[int]) -> None: ...


def any_keyword(**items: list[int]) -> None: ...


def of_str(items: str) -> None: ...


def of_one_item(item: int) -> None: ...


def of_dict(items: dict[str, int]) -> None: ...


def of_tuple(items: tuple[int, ...]) -> None: ...


def of_none(items: None) -> None: ...


def of_str_or_bytes(items: str | bytes) -> None: ...


class Ids(list[int]):
    """A list is none of these."""


def of_a_special_list(items: Ids) -> None: ...


class Options(TypedDict):
    """A list is none of these either."""

    key: str


def of_typed_dict(items: Options) -> None: ...


_FITTING = "its first parameter must take the list of items, e.g. items: list[int]"


@pytest.mark.parametrize(
    ("function", "value", "allowed"),
    [
        (
            without_parameter,
            "without_parameter() -> 'None'",
            f"it has no parameter; {_FITTING}",
        ),
        (
            keyword_only,
            "keyword_only(*, items: 'list[int]') -> 'None'",
            f"items: 'list[int]' is keyword-only; {_FITTING}",
        ),
        (
            any_number,
            "any_number(*items: 'list[int]') -> 'None'",
            f"*items: 'list[int]' is variadic positional; {_FITTING}",
        ),
        (
            any_keyword,
            "any_keyword(**items: 'list[int]') -> 'None'",
            f"**items: 'list[int]' is variadic keyword; {_FITTING}",
        ),
        (
            of_str,
            "of_str(items: 'str') -> 'None'",
            f"no list fits the annotation of 'items', str; {_FITTING}",
        ),
    ],
)
def test_the_first_parameter_of_a_batch_function_takes_a_list(
    broker: InMemoryBroker,
    function: Callable[..., Any],
    value: str,
    allowed: str,
) -> None:
    error = error_of(broker, function)
    assert (error.argument, error.value) == ("function", value)
    assert str(error) == (
        f"Cannot register batch task mail:send: function={value!r} is not allowed: "
        f"{allowed}"
    )


@pytest.mark.parametrize(
    "function",
    [
        of_one_item,
        of_dict,
        of_tuple,
        of_none,
        of_str_or_bytes,
        of_a_special_list,
        of_typed_dict,
    ],
)
def test_an_annotation_no_list_fits_is_an_error(
    broker: InMemoryBroker,
    function: Callable[..., Any],
) -> None:
    assert "no list fits the annotation of 'item" in str(error_of(broker, function))


def generator(items: list[int]) -> Iterable[int]:
    yield from items


async def async_generator(items: list[int]) -> typing.AsyncIterator[int]:
    for item in items:
        yield item


class GeneratorObject:
    def __call__(self, items: list[int]) -> Iterable[int]:
        yield from items


@pytest.mark.parametrize(
    "function",
    [
        generator,
        async_generator,
        functools.partial(generator),
        GeneratorObject(),
        GeneratorObject().__call__,
    ],
)
def test_a_generator_function_cannot_be_a_batch_task(
    broker: InMemoryBroker,
    function: Callable[..., Any],
) -> None:
    assert str(error_of(broker, function)).endswith(
        "is not allowed: a generator function cannot be a task; return a list instead",
    )


def test_a_function_whose_parameters_cannot_be_known_is_an_error(
    broker: InMemoryBroker,
) -> None:
    assert str(error_of(broker, max)) == (
        "Cannot register batch task mail:send: function='max' is not allowed: "
        "its parameters must be known, wrap it in a function"
    )


@pytest.mark.parametrize("keywords", [{}, {"batch": True}])
def test_what_cannot_be_called_cannot_be_a_task(
    broker: InMemoryBroker,
    keywords: dict[str, Any],
) -> None:
    with pytest.raises(TypeError, match="a task must be callable, got 3"):
        broker.task(**keywords)(3)


def test_the_decorator_raises_under_the_name_the_task_would_have_had(
    broker: InMemoryBroker,
) -> None:
    decorator = broker.task(batch=True, batch_size=0)
    with pytest.raises(TaskiqError) as caught:
        decorator(to_each)
    assert isinstance(caught.value, TaskiqBatchConfigError)
    assert caught.value.task_name == f"{__name__}:to_each"
    assert caught.value.argument == "batch_size"
    assert caught.value.value == 0


# -- What arguments become -------------------------------------------------------------


def test_the_defaults_are_those_of_the_table(broker: InMemoryBroker) -> None:
    assert config_of(broker, to_one) == BatchConfig(
        size=100,
        timeout=1.0,
        idle_timeout=None,
        concurrency=None,
        results="shared",
        max_buffered=1000,
        key=None,
        weight=None,
        max_weight=None,
        coalesce=None,
        isolate_errors=False,
    )


def test_none_means_the_default(broker: InMemoryBroker) -> None:
    nothing = dict.fromkeys(KNOWN.split(", "))
    assert config_of(broker, **nothing) == config_of(broker)


def test_every_argument_has_its_place(broker: InMemoryBroker) -> None:
    config = config_of(
        broker,
        batch_size=1,
        batch_timeout=0,
        batch_idle_timeout=0.5,
        batch_concurrency=1,
        batch_rate="3/m",
        batch_priority=-2.5,
        batch_results="shared",
        batch_max_buffered=1,
    )
    assert config == BatchConfig(
        size=1,
        timeout=0.0,
        idle_timeout=0.5,
        concurrency=1,
        rate="3/m",
        priority=-2.5,
        results="shared",
        max_buffered=1,
    )


@given(size=st.integers(1, 10**6))
def test_ten_batches_are_buffered_and_at_least_a_thousand_messages(size: int) -> None:
    config = config_of(InMemoryBroker(sync_tasks_pool_size=1), batch_size=size)
    assert config.max_buffered == max(10 * size, 1000)


def test_the_configuration_is_frozen_and_readable_on_the_task(
    broker: InMemoryBroker,
) -> None:
    task = broker.task(batch=True, batch_size=7)(to_each)
    assert task.batch is not None
    assert task.batch.size == 7
    with pytest.raises(dataclasses.FrozenInstanceError):
        task.batch.size = 8  # type: ignore[misc] # the point of this test


def test_a_plain_task_has_no_batch_configuration(broker: InMemoryBroker) -> None:
    assert broker.task(to_each).batch is None
    assert broker.task(batch=False)(to_each).batch is None


class SentMessages(TaskiqMiddleware):
    def __init__(self) -> None:
        super().__init__()
        self.messages: list[TaskiqMessage] = []

    def pre_send(self, message: TaskiqMessage) -> TaskiqMessage:
        self.messages.append(message)
        return message


@pytest.mark.parametrize("batch", [{}, {"batch": False}, {"batch": "nightly"}])
@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("batch_size", "did you forget batch=True?"),
        ("batch_sizes", "did you forget batch_size= and batch=True?"),
        ("batch_zzz", "did you forget batch=True?"),
    ],
)
def test_a_batch_name_without_batch_true_is_refused(
    broker: InMemoryBroker,
    batch: dict[str, Any],
    name: str,
    advice: str,
) -> None:
    register: Any = broker.register_task
    with pytest.raises(TaskiqLabelError, match=f" {name}= would") as caught:
        register(to_each, "mine", **batch, **{name: 3})
    assert caught.value.task_name == "mine"
    assert caught.value.advice == advice
    assert broker.get_all_tasks() == {}


@pytest.mark.parametrize(
    ("typo", "meant"),
    [
        ("batchsize", "batch_size"),
        ("bacth_size", "batch_size"),
        ("timout", "timeout"),
        ("btch", "batch"),
        ("rte", "rate"),
        ("uniqe", "unique"),
        ("pirority", "priority"),
        ("timeouts", "timeout"),
        ("max_retires", "max_retries"),
        ("ack_typ", "ack_type"),
        ("queue_nane", "queue_name"),
    ],
)
@pytest.mark.parametrize("batch", [{}, {"batch": True}])
def test_a_label_one_edit_away_from_an_option_is_refused(
    broker: InMemoryBroker,
    batch: dict[str, Any],
    typo: str,
    meant: str,
) -> None:
    decorate: Any = broker.task
    with pytest.raises(TaskiqLabelError, match=f" {typo}= .*did you mean {meant}="):
        decorate(**batch, **{typo: 3})(to_each)


async def test_an_item_of_another_type_is_told_in_one_line(
    broker: InMemoryBroker,
    caplog: pytest.LogCaptureFixture,
) -> None:
    task: Any = broker.task("mine", batch=True)(to_each)
    await task.kiq("x")
    await broker.wait_all()
    [told] = [each for each in caplog.records if each.levelname == "ERROR"]
    assert ": ValidationError: 1 validation error for int Input" in told.getMessage()
    assert "\n" not in told.getMessage()


async def test_labels_of_ones_own_stay_labels(broker: InMemoryBroker) -> None:
    sent = SentMessages()
    labels = {"patch": "many", "relay": 1, "batched": 2.5, "queue": "fast", "b": "c"}
    register: Any = broker.with_middlewares(sent).register_task
    task = register(to_each, **labels)
    assert task.labels == labels
    await task.kiq([1])
    await broker.wait_all()
    message = sent.messages[0]
    message.parse_labels()
    assert message.labels == labels


def to_all(items: list[int]):  # type: ignore[no-untyped-def]  # the point of a test
    return len(items)


@pytest.mark.parametrize(
    ("function", "arguments", "is_told"),
    [
        (to_all, {}, True),
        (to_all, {"batch_results": "shared"}, False),
        (to_all, {"batch_results": "each"}, False),
        (to_each, {}, False),
    ],
)
def test_a_function_that_does_not_say_what_it_returns_is_told_of(
    broker: InMemoryBroker,
    function: Any,
    arguments: dict[str, Any],
    is_told: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    register: Any = broker.register_task
    register(function, "mine", batch=True, **arguments)
    told = "Batch task mine has no return annotation" in caplog.text
    assert told is is_told


def test_any_other_value_of_batch_is_the_label_it_was_before_batches(
    broker: InMemoryBroker,
) -> None:
    decorate: Any = broker.task
    task = decorate(batch="nightly")(to_each)
    assert task.labels == {"batch": "nightly"}
    assert task.batch is None


async def test_a_batch_task_sends_the_message_a_plain_task_sends() -> None:
    plain, batching = InMemoryBroker(), InMemoryBroker()
    messages = []
    for broker, batch in ((plain, {}), (batching, {"batch": True, "batch_size": 3})):
        sent = SentMessages()
        broker.with_middlewares(sent).with_id_generator(lambda: "id")
        register: Any = broker.register_task
        task = register(to_each, "name", **batch, queue="fast", priority=3)
        assert task.labels == {"queue": "fast", "priority": 3}
        await task.kiq(1)
        await broker.wait_all()
        messages.append(broker.formatter.dumps(sent.messages[0]))
    assert messages[0] == messages[1]


# -- Whether results are shared or each ------------------------------------------------


Rows = list[int]


NewRows = NewType("NewRows", list[int])


AliasedRows = TypeAliasType("AliasedRows", list[int])


GenericRows = TypeAliasType("GenericRows", list[_T], type_params=(_T,))


@pytest.mark.parametrize(
    ("annotation", "item"),
    [
        (list[int], int),
        (List[int], int),  # noqa: UP006 - what applications still write
        (list[int | None], int | None),
        (list[int | Exception], int),
        (list[int | ValueError | KeyError], int),
        (list[int | BaseException | None], int | None),
        (list[list[int]], list[int]),
        (Annotated[list[int], "rows"], int),
        (Coroutine[Any, Any, list[int]], int),
        (Awaitable[list[int]], int),
        (Rows, int),
        (NewRows, int),
        (AliasedRows, int),
        (GenericRows[int], int),
        (Ids, None),
        (list, None),
        (List, None),  # noqa: UP006 - what applications still write
        (list[Exception], None),
    ],
)
def test_a_list_that_is_returned_has_an_entry_for_each_item(
    broker: InMemoryBroker,
    annotation: Any,
    item: Any,
) -> None:
    def function(items: list[int]) -> Any: ...

    function.__annotations__["return"] = annotation
    task: Any = broker.task(batch=True)(function)
    assert task.batch.results == "each"
    assert task.return_type == item


@pytest.mark.parametrize(
    "annotation",
    [
        int,
        None,
        Any,
        list[int] | None,
        Optional[list[int]],  # noqa: UP045 - what applications still write
        Union[list[int], int],  # noqa: UP007 - what applications still write
        Sequence[int],
        Iterable[int],
        tuple[int, ...],
        dict[str, list[int]],
        NewType("Row", int),
        Coroutine[Any, Any, int],
    ],
)
def test_anything_else_that_is_returned_is_shared(
    broker: InMemoryBroker,
    annotation: Any,
) -> None:
    def function(items: list[int]) -> Any: ...

    function.__annotations__["return"] = annotation
    task: Any = broker.task(batch=True)(function)
    assert task.batch.results == "shared"
    assert task.return_type == (type(None) if annotation is None else annotation)


def test_without_a_return_annotation_results_are_shared(broker: InMemoryBroker) -> None:
    task: Any = broker.task(batch=True)(lambda items: items)
    assert task.batch.results == "shared"
    assert task.return_type is None


def test_the_argument_wins_over_the_return_annotation(broker: InMemoryBroker) -> None:
    task: Any = broker.task(batch=True, batch_results="shared")(to_each)
    assert task.batch.results == "shared"
    assert task.return_type == list[int]


@pytest.mark.parametrize(
    ("annotation", "item"),
    [(Any, None), (Sequence[int], int), (object, None), (list[int], int)],
)
def test_what_may_be_a_list_can_be_told_to_have_an_entry_for_each(
    broker: InMemoryBroker,
    annotation: Any,
    item: Any,
) -> None:
    def function(items: list[int]) -> Any: ...

    function.__annotations__["return"] = annotation
    task: Any = broker.task(batch=True, batch_results="each")(function)
    assert task.batch.results == "each"
    assert task.return_type == item


# -- The type of one item --------------------------------------------------------------


class Walkable(Protocol):
    def __iter__(self) -> Any: ...


@pytest.mark.parametrize(
    ("annotation", "item"),
    [
        (list[int], int),
        (List[int], int),  # noqa: UP006 - what applications still write
        (Sequence[int], int),
        (MutableSequence[int], int),
        (Collection[int], int),
        (Iterable[int], int),
        (typing.Sequence[int], int),
        (list[int] | None, int),
        (Optional[list[int]], int),  # noqa: UP045 - what applications still write
        (str | list[str], str),
        (list[int | str], int | str),
        (list[list[int]], list[int]),
        (list[Annotated[int, "positive"]], Annotated[int, "positive"]),
        (Annotated[list[int], "rows"], int),
        (Annotated[list[int] | None, "rows"], int),
        (Rows, int),
        (NewRows, int),
        (AliasedRows, int),
        (GenericRows[str], str),
        (list[_T], _T),  # type: ignore[valid-type] # of a generic function
        (_T, Any),
        (list, Any),
        (list[Any], Any),
        (Any, Any),
        (object, Any),
        (typing.Sized, Any),
        (Walkable, Any),
    ],
)
def test_one_item_has_the_element_type_of_the_first_parameter(
    broker: InMemoryBroker,
    annotation: Any,
    item: Any,
) -> None:
    assert item_type(annotation) == item

    def function(items: Any) -> None: ...

    function.__annotations__["items"] = annotation
    assert config_of(broker, function) == BatchConfig()


# -- Kinds of callables ----------------------------------------------------------------


class Doubler:
    def __call__(self, items: list[int]) -> list[int]:
        return [2 * item for item in items]

    def method(self, items: list[int]) -> list[int]:
        return self(items)

    async def async_method(self, items: list[int]) -> list[int]:
        return self(items)

    @classmethod
    def class_method(cls, items: list[int]) -> list[int]:
        return cls()(items)

    @staticmethod
    def static_method(items: list[int]) -> list[int]:
        return Doubler()(items)


class AsyncDoubler:
    async def __call__(self, items: list[int]) -> list[int]:
        return [2 * item for item in items]


def times(items: list[int], factor: int) -> list[int]:
    return [factor * item for item in items]


async def async_times(items: list[int], *, factor: int) -> list[int]:
    return times(items, factor)


def times_items(factor: int, items: list[int]) -> list[int]:
    return times(items, factor)


def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


def wrapped_async(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        return await function(*args, **kwargs)

    return wrapper


def sync_to_each(items: list[int]) -> list[int]:
    return [2 * item for item in items]


def positional_only(items: list[int], /) -> list[int]:
    return [2 * item for item in items]


CALLABLES: dict[str, Callable[..., Any]] = {
    "async function": to_each,
    "sync function": sync_to_each,
    "positional-only parameter": positional_only,
    "object": Doubler(),
    "async object": AsyncDoubler(),
    "bound method": Doubler().method,
    "async bound method": Doubler().async_method,
    "class method": Doubler.class_method,
    "static method": Doubler.static_method,
    "partial by keyword": functools.partial(times, factor=2),
    "partial by position": functools.partial(times_items, 2),
    "partial of a partial": functools.partial(functools.partial(times), factor=2),
    "async partial": functools.partial(async_times, factor=2),
    "partial of an object": functools.partial(Doubler()),
    "wrapper": wrapped(sync_to_each),
    "async wrapper": wrapped_async(to_each),
    "sync wrapper of an async function": wrapped(to_each),
    "wrapper of a wrapper": wrapped(wrapped(sync_to_each)),
    "partial of a wrapper": functools.partial(wrapped(times), factor=2),
}


@pytest.mark.parametrize("function", CALLABLES.values(), ids=CALLABLES.keys())
async def test_every_kind_of_callable_can_be_a_batch_task(
    broker: InMemoryBroker,
    function: Callable[..., Any],
) -> None:
    task: Any = broker.register_task(function, "double", batch=True)
    assert task.batch == BatchConfig(results="each")
    handles = [await task.kiq(number) for number in range(3)]
    await broker.wait_all()
    results = [await handle.get_result() for handle in handles]
    assert [result.return_value for result in results] == [0, 2, 4]
    assert [result.error for result in results] == [None, None, None]


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("async function", "to_each"),
        ("object", "Doubler"),
        ("bound method", "method"),
        ("partial by keyword", "times"),
        ("partial of a partial", "times"),
        ("partial of an object", "Doubler"),
        ("async wrapper", "to_each"),
        ("partial of a wrapper", "times"),
    ],
)
def test_a_batch_task_is_named_as_a_plain_one_after_what_is_called(
    broker: InMemoryBroker,
    kind: str,
    name: str,
) -> None:
    plain: Any = broker.register_task(CALLABLES[kind])
    task: Any = broker.register_task(CALLABLES[kind], batch=True)
    assert task.task_name == plain.task_name == f"{__name__}:{name}"


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_lambda_can_be_a_batch_task(
    broker: InMemoryBroker,
    is_async: bool,
) -> None:
    if is_async:
        task: Any = broker.task(batch=True)(lambda items: asyncio.sleep(0, sum(items)))
    else:
        task = broker.task(batch=True)(lambda items: 1 * sum(items))
    assert task.task_name.startswith(f"{__name__}:lambda_")
    handles = [await task.kiq(number) for number in range(3)]
    await broker.wait_all()
    assert [(await each.get_result()).return_value for each in handles] == [3, 3, 3]


async def test_a_message_without_its_item_fails_though_the_list_has_a_default(
    broker: InMemoryBroker,
) -> None:
    calls: list[list[int]] = []

    async def function(items: list[int] = []) -> None:  # noqa: B006 - never changed
        calls.append(items)

    task: Any = broker.task(batch=True)(function)
    elsewhere: AsyncKicker[[], None] = AsyncKicker(task.task_name, broker, {})
    with_item, without = await task.kiq(1), await elsewhere.kiq()
    await broker.wait_all()
    assert calls == [[1]]
    assert (await with_item.get_result()).error is None
    error = (await without.get_result()).error
    assert isinstance(error, TypeError)
    assert str(error) == "missing required arguments: items"


# -- Keys, weights, equal items and isolation -----------------------------------------


async def send(items: list[int], text: str = "", *, urgent: bool = False) -> None: ...


def refusal(broker: InMemoryBroker, argument: str, **arguments: Any) -> str:
    """What is said to be wrong with one argument, after the parts all errors share."""
    error = error_of(broker, send, **arguments)
    assert (error.task_name, error.argument) == ("mail:send", argument)
    start = (
        f"Cannot register batch task mail:send: "
        f"{argument}={arguments[argument]!r} is not allowed: "
    )
    assert str(error).startswith(start)
    return str(error).removeprefix(start)


async def coroutine_function(item: object) -> int:
    return 1


def generator_function(item: object) -> Iterator[int]:
    yield 1


class AsyncCallable:
    async def __call__(self, item: object) -> int:
        return 1


class Tenants:
    """Callable instances and bound methods are functions, too."""

    def __call__(self, item: object) -> Hashable:
        return 1

    def of(self, item: object, *rest: object, **named: object) -> Hashable:
        return 1


FUNCTIONS = ["batch_key", "batch_weight", "batch_coalesce"]


def with_its_limit(argument: str, function: object) -> dict[str, Any]:
    """The argument, with what it cannot be without."""
    limit = {"batch_max_weight": 10} if argument == "batch_weight" else {}
    return {argument: function, **limit}


@pytest.mark.parametrize("argument", FUNCTIONS)
@pytest.mark.parametrize("value", [3, "tenant", ["tenant"], False])
def test_what_cannot_be_called_is_refused(
    broker: InMemoryBroker,
    argument: str,
    value: object,
) -> None:
    said = refusal(broker, argument, **with_its_limit(argument, value))
    assert said == "it must be callable with an item"


@pytest.mark.parametrize("argument", FUNCTIONS)
@pytest.mark.parametrize(
    "value",
    [
        coroutine_function,
        AsyncCallable(),
        functools.partial(coroutine_function),
        generator_function,
    ],
)
def test_a_function_that_would_have_to_be_awaited_is_refused(
    broker: InMemoryBroker,
    argument: str,
    value: object,
) -> None:
    said = refusal(broker, argument, **with_its_limit(argument, value))
    assert said == "it must be a plain function: items are sorted without waiting"


@pytest.mark.parametrize("argument", ["batch_weight", "batch_coalesce"])
@pytest.mark.parametrize("value", [lambda: 1, lambda item, text: (item, text)])
def test_a_function_of_an_item_must_take_that_and_nothing_else(
    broker: InMemoryBroker,
    argument: str,
    value: object,
) -> None:
    said = refusal(broker, argument, **with_its_limit(argument, value))
    assert said == "it must take an item as its only argument"


def test_a_key_must_take_an_item(broker: InMemoryBroker) -> None:
    said = refusal(broker, "batch_key", batch_key=lambda: 1)
    assert said == "it must take an item, and the task's other arguments"


@pytest.mark.parametrize("argument", FUNCTIONS)
@pytest.mark.parametrize(
    "value",
    [
        lambda item: item,
        lambda item, extra=None: (item, extra),
        lambda *items: items,
        Tenants(),
        Tenants().of,
        functools.partial(Tenants().of, 1),
        attrgetter("tenant"),
        itemgetter("tenant"),
        len,
        str,
        int,
    ],
)
def test_whatever_can_be_called_with_an_item_will_do(
    broker: InMemoryBroker,
    argument: str,
    value: Callable[..., Any],
) -> None:
    found = config_of(broker, send, **with_its_limit(argument, value))
    assert getattr(found, argument.removeprefix("batch_")) is value


def test_a_key_may_take_the_other_arguments(broker: InMemoryBroker) -> None:
    def key(item: int, text: str, *, urgent: bool) -> Hashable:
        return text, urgent

    assert config_of(broker, send, batch_key=key).key is key


def test_a_weight_needs_a_limit(broker: InMemoryBroker) -> None:
    said = refusal(broker, "batch_weight", batch_weight=len)
    assert said == "it needs batch_max_weight, the most weight of one call"


def test_a_limit_needs_a_weight(broker: InMemoryBroker) -> None:
    said = refusal(broker, "batch_max_weight", batch_max_weight=10)
    assert said == "it needs batch_weight, a function that weighs an item"


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, -math.inf, True, "10"])
def test_the_most_weight_is_a_finite_number_above_0(
    broker: InMemoryBroker,
    value: object,
) -> None:
    said = refusal(
        broker,
        "batch_max_weight",
        batch_weight=len,
        batch_max_weight=value,
    )
    assert said == "it must be a finite number above 0"


@pytest.mark.parametrize("value", [10, 0.5])
def test_the_most_weight_may_be_an_int_or_a_float(
    broker: InMemoryBroker,
    value: float,
) -> None:
    found = config_of(broker, send, batch_weight=len, batch_max_weight=value)
    assert found.max_weight == value


@pytest.mark.parametrize(
    "value",
    [
        (),
        ValueError,
        [ValueError],
        (ValueError, "KeyError"),
        (ValueError(),),
        (KeyboardInterrupt,),
        (asyncio.CancelledError,),
        (int,),
        "all",
        1,
        0,
    ],
)
def test_what_is_isolated_is_a_tuple_of_exception_classes_if_it_is_no_bool(
    broker: InMemoryBroker,
    value: object,
) -> None:
    said = refusal(broker, "batch_isolate_errors", batch_isolate_errors=value)
    assert said == "it must be True, False or a tuple of Exception classes"


@pytest.mark.parametrize("kind", [NoResultError, TaskRejectedError])
def test_an_error_that_is_meant_for_the_whole_call_cannot_be_isolated(
    broker: InMemoryBroker,
    kind: type[Exception],
) -> None:
    value = (ValueError, kind)
    said = refusal(broker, "batch_isolate_errors", batch_isolate_errors=value)
    assert said == (
        f"{kind.__name__} says what is to become of every message of its call, so "
        "there are no culprits to look for"
    )


@pytest.mark.parametrize("value", [True, False, (ValueError,), (KeyError, OSError)])
def test_what_is_isolated_is_kept_as_it_was_given(
    broker: InMemoryBroker,
    value: object,
) -> None:
    assert config_of(broker, send, batch_isolate_errors=value).isolate_errors == value


@pytest.mark.parametrize("value", [True, (ValueError,)])
def test_culprits_cannot_be_isolated_in_batches_of_one(
    broker: InMemoryBroker,
    value: object,
) -> None:
    said = refusal(
        broker,
        "batch_isolate_errors",
        batch_size=1,
        batch_isolate_errors=value,
    )
    assert said == "with batch_size=1 there is nothing to isolate a culprit from"


def test_batches_of_one_have_no_equal_items(broker: InMemoryBroker) -> None:
    said = refusal(broker, "batch_coalesce", batch_size=1, batch_coalesce=str)
    assert said == "with batch_size=1 no batch has two items that could be equal"


def test_keys_and_weights_hold_for_batches_of_one_as_for_others(
    broker: InMemoryBroker,
) -> None:
    found = config_of(
        broker,
        send,
        batch_size=1,
        batch_key=str,
        batch_weight=int,
        batch_max_weight=1,
        batch_isolate_errors=False,
    )
    assert (found.key, found.weight, found.size) == (str, int, 1)
