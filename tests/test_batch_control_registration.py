"""Mistakes in keys, weights, duplicates and isolation, and what they are answered with.

Each error is read as the user reads it: task, argument, value, and what is allowed.
"""

from __future__ import annotations

import asyncio
import functools
import math
from operator import attrgetter, itemgetter
from typing import TYPE_CHECKING, Any

import pytest

from taskiq import InMemoryBroker
from taskiq.exceptions import (
    NoResultError,
    TaskiqBatchConfigError,
    TaskRejectedError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator

    from taskiq import BatchConfig


@pytest.fixture
def broker() -> InMemoryBroker:
    return InMemoryBroker()


async def send(items: list[int], text: str = "", *, urgent: bool = False) -> None: ...


def refusal(broker: InMemoryBroker, argument: str, **arguments: Any) -> str:
    """What is said to be wrong with one argument, after the parts all errors share."""
    with pytest.raises(TaskiqBatchConfigError) as caught:
        broker.register_task(send, "mail:send", batch=True, **arguments)
    assert broker.find_task("mail:send") is None
    error = caught.value
    assert (error.task_name, error.argument) == ("mail:send", argument)
    start = (
        f"Cannot register batch task mail:send: "
        f"{argument}={arguments[argument]!r} is not allowed: "
    )
    assert str(error).startswith(start)
    return str(error).removeprefix(start)


def config(broker: InMemoryBroker, **arguments: Any) -> BatchConfig:
    found = broker.register_task(send, batch=True, **arguments).batch
    assert found is not None
    return found


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


def given(argument: str, function: object) -> dict[str, Any]:
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
    said = refusal(broker, argument, **given(argument, value))
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
    said = refusal(broker, argument, **given(argument, value))
    assert said == "it must be a plain function: items are sorted without waiting"


@pytest.mark.parametrize("argument", ["batch_weight", "batch_coalesce"])
@pytest.mark.parametrize("value", [lambda: 1, lambda item, text: (item, text)])
def test_a_function_of_an_item_must_take_that_and_nothing_else(
    broker: InMemoryBroker,
    argument: str,
    value: object,
) -> None:
    said = refusal(broker, argument, **given(argument, value))
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
    found = config(broker, **given(argument, value))
    assert getattr(found, argument.removeprefix("batch_")) is value


def test_a_key_may_take_the_other_arguments(broker: InMemoryBroker) -> None:
    def key(item: int, text: str, *, urgent: bool) -> Hashable:
        return text, urgent

    assert config(broker, batch_key=key).key is key


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
    found = config(broker, batch_weight=len, batch_max_weight=value)
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
    assert config(broker, batch_isolate_errors=value).isolate_errors == value


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
    found = config(
        broker,
        batch_size=1,
        batch_key=str,
        batch_weight=int,
        batch_max_weight=1,
        batch_isolate_errors=False,
    )
    assert (found.key, found.weight, found.size) == (str, int, 1)


def test_none_means_the_default(broker: InMemoryBroker) -> None:
    found = config(
        broker,
        batch_key=None,
        batch_weight=None,
        batch_max_weight=None,
        batch_coalesce=None,
        batch_isolate_errors=None,
    )
    assert found == config(broker)
    assert (found.key, found.weight, found.max_weight, found.coalesce) == (None,) * 4
    assert found.isolate_errors is False


def test_without_batch_the_names_are_labels(broker: InMemoryBroker) -> None:
    task = broker.register_task(
        send,
        batch_key="tenant",
        batch_max_weight=3,
        batch_isolate_errors="yes",
    )
    assert task.batch is None
    assert task.labels == {
        "batch_key": "tenant",
        "batch_max_weight": 3,
        "batch_isolate_errors": "yes",
    }


@pytest.mark.parametrize(
    ("unknown", "meant"),
    [
        ("batch_keys", "batch_key"),
        ("batch_max_wieght", "batch_max_weight"),
        ("batch_coalesced", "batch_coalesce"),
        ("batch_isolate_error", "batch_isolate_errors"),
    ],
)
def test_a_misspelt_name_is_answered_with_the_one_that_was_meant(
    broker: InMemoryBroker,
    unknown: str,
    meant: str,
) -> None:
    said = refusal(broker, unknown, **{unknown: None})
    assert said.startswith(f"there is no such argument; did you mean {meant}? known")
