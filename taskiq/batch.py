"""What a batch task promises: its configuration, read once at registration.

A batch task is an ordinary task whose function takes a list. Everything that follows
from the decorator's arguments and from the function's signature is worked out here,
and every mistake in them is reported here, at the decorator.
"""

from __future__ import annotations

import asyncio
import collections.abc
import enum
import inspect
import logging
import math
import types
import typing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from pydantic import ValidationError, ValidatorFunctionWrapHandler, WrapValidator

from taskiq.callables import (
    BY_POSITION,
    function_name,
    is_coroutine_function,
    underlying_function,
)
from taskiq.exceptions import (
    NoResultError,
    TaskiqBatchConfigError,
    TaskRejectedError,
)
from taskiq.rates import read_interval

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence

    from taskiq.message import TaskiqMessage

logger = logging.getLogger("taskiq")

#: Whether a return value belongs to the whole batch or is a list of one per item.
BatchResults: TypeAlias = Literal["shared", "each"]


class FlushReason(str, enum.Enum):
    """Why a batch stopped waiting for more items."""

    SIZE = "size"
    WEIGHT = "weight"
    TIMEOUT = "timeout"
    IDLE = "idle"
    PRESSURE = "pressure"
    SHUTDOWN = "shutdown"
    MANUAL = "manual"


@dataclass(frozen=True, slots=True)
class BatchConfig:
    """How the messages of one task are gathered. Readable as ``task.batch``.

    :ivar size: most items in one call.
    :ivar timeout: longest wait of a batch's first item, in seconds; 0 takes what is
        there.
    :ivar idle_timeout: a batch leaves when no item joined for this many seconds.
    :ivar concurrency: most calls at once in one worker process; `None` is unlimited.
    :ivar rate: how often a call may start in one worker process, such as "2/s"; `None`
        is unlimited.
    :ivar priority: of batches that are due, the one with the highest starts first;
        `None` is 0. A message may have another one as its label `priority`.
    :ivar results: whether the function returns one value for all items (``shared``)
        or a list with one entry per item (``each``).
    :ivar max_buffered: most messages waiting or running in one worker process.
    :ivar key: splits messages into groups, by the item and the other arguments.
    :ivar weight: what an item adds to its call, in the unit of `max_weight`.
    :ivar max_weight: most weight in one call; `None` is unlimited.
    :ivar coalesce: items of a batch for which it is equal are passed once.
    :ivar isolate_errors: the errors after which parts of a batch are called again, so
        that only the culprits fail; `True` is every `Exception` but timeouts, `False`
        is none. `NoResultError` and `TaskRejectedError` are never among them.
    """

    size: int = 100
    timeout: float = 1.0
    idle_timeout: float | None = None
    concurrency: int | None = None
    rate: str | None = None
    priority: float | None = None
    results: BatchResults = "shared"
    max_buffered: int = 1000
    key: Callable[..., Hashable] | None = None
    weight: Callable[[Any], float] | None = None
    max_weight: float | None = None
    coalesce: Callable[[Any], Hashable] | None = None
    isolate_errors: bool | tuple[type[Exception], ...] = False

    def isolates(self, error: BaseException) -> bool:
        """Whether the culprits of an error are looked for."""
        if self.isolate_errors is False or isinstance(error, _DELIBERATE):
            return False
        if self.isolate_errors is True:
            return isinstance(error, Exception) and not isinstance(error, _TIMEOUTS)
        return isinstance(error, self.isolate_errors)

    def __str__(self) -> str:
        """Name the decorator's arguments that are in effect, with their values."""
        values = {
            name: getattr(self, name.removeprefix("batch_")) for name in BATCH_ARGUMENTS
        }
        return ", ".join(
            f"{name}={_readable(value)}"
            for name, value in values.items()
            if value is not None and value is not False
        )


#: What a function raises to say what is to become of every message of its call.
_DELIBERATE: Final = (NoResultError, TaskRejectedError)

#: Parts of a call that took too long would take long again, one after the other.
_TIMEOUTS: Final = (TimeoutError, asyncio.TimeoutError)


@dataclass(frozen=True, slots=True)
class BatchInfo:
    """One batch call, as hooks and logs see it.

    :ivar batch_id: unique id of the call.
    :ivar task_name: the task that is called.
    :ivar messages: the messages of the batch, in the order of its items.
    :ivar flush_reason: why the batch left.
    :ivar waited: seconds its first message waited for company and for a free slot.
    :ivar isolation_calls: how many calls more than one it took to find what made the
        first one fail; known when the batch has ended.
    """

    batch_id: str
    task_name: str
    messages: Sequence[TaskiqMessage]
    flush_reason: FlushReason
    waited: float
    isolation_calls: int = 0


@dataclass(frozen=True, slots=True)
class BatcherStatistics:
    """What is held of batch tasks at one moment.

    :ivar open_groups: batches that take more messages.
    :ivar due_batches: batches that start as soon as they can.
    :ivar running_calls: batches whose call has not ended.
    :ivar buffered: messages that wait in a batch, run, or are being settled.
    :ivar waiting: messages beyond `max_buffered`, not yet in a batch.
    :ivar armed_alarms: timers of open batches, of messages that wait for room, and of
        tasks with a due batch that wait for their rate.
    """

    open_groups: int = 0
    due_batches: int = 0
    running_calls: int = 0
    buffered: int = 0
    waiting: int = 0
    armed_alarms: int = 0

    @property
    def is_idle(self) -> bool:
        """Whether nothing is held, running or armed."""
        return self == BatcherStatistics()

    def __add__(self, other: BatcherStatistics) -> BatcherStatistics:
        """Count what is held in two places."""
        return BatcherStatistics(
            self.open_groups + other.open_groups,
            self.due_batches + other.due_batches,
            self.running_calls + other.running_calls,
            self.buffered + other.buffered,
            self.waiting + other.waiting,
            self.armed_alarms + other.armed_alarms,
        )


#: The arguments a batch task may be given; each has its place in `BatchConfig`.
BATCH_ARGUMENTS: Final = (
    "batch_size",
    "batch_timeout",
    "batch_idle_timeout",
    "batch_key",
    "batch_weight",
    "batch_max_weight",
    "batch_coalesce",
    "batch_concurrency",
    "batch_rate",
    "batch_priority",
    "batch_results",
    "batch_isolate_errors",
    "batch_max_buffered",
)


def _readable(value: Any) -> str:
    """Show an argument as its author wrote it: functions and classes by their names."""
    if isinstance(value, tuple):
        kinds = typing.cast("tuple[type[Exception], ...]", value)
        return f"({', '.join(map(function_name, kinds))})"
    return function_name(value) if callable(value) else str(value)


def split_batch_arguments(
    keywords: Mapping[str, Any],
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Tell the batch arguments of a task from its labels.

    They are read only with ``batch=True``; without it decorators refuse them, and a
    message or a task that has them all the same has them as labels.

    :returns: the labels, and the batch arguments, or `None` for a plain task.
    """
    labels = dict(keywords)
    batch = labels.get("batch")
    if batch is not True:
        # Any other value than these was a label before there were batches.
        if batch is None or batch is False:
            labels.pop("batch", None)
        return labels, None
    del labels["batch"]
    arguments = {
        name: labels.pop(name) for name in keywords if name.startswith("batch_")
    }
    return labels, arguments


def read_batch_config(
    function: Callable[..., Any],
    task_name: str,
    hints: Mapping[str, Any],
    arguments: Mapping[str, Any],
) -> BatchConfig:
    """Check the arguments of a batch task against each other and its function.

    :param hints: the resolved type hints of the function.
    :param arguments: the ``batch_*`` arguments; `None` means the default.
    :raises TaskiqBatchConfigError: naming the argument, its value and what is allowed.
    """
    reader = _Reader(task_name, arguments)
    _check_function(function, task_name, hints)
    return reader.config(hints.get("return", inspect.Parameter.empty))


class _Reader:
    """Reads one task's arguments, each by its name."""

    def __init__(self, task_name: str, arguments: Mapping[str, Any]) -> None:
        self._task_name = task_name
        self._arguments = {k: v for k, v in arguments.items() if v is not None}
        for name in arguments:
            if name not in BATCH_ARGUMENTS:
                raise self._error(name, arguments[name], _nearest_argument(name))

    def config(self, return_hint: Any) -> BatchConfig:
        size = self._count("batch_size", 100)
        return BatchConfig(
            size=size,
            timeout=self._seconds("batch_timeout", 1.0),
            idle_timeout=self._seconds("batch_idle_timeout", None),
            concurrency=self._count("batch_concurrency", None),
            rate=self._rate(),
            priority=self._priority(),
            results=self._results(return_hint),
            max_buffered=self._max_buffered(size),
            key=self._function("batch_key"),
            weight=self._function("batch_weight"),
            max_weight=self._max_weight(),
            coalesce=self._coalesce(size),
            isolate_errors=self._isolate_errors(size),
        )

    @typing.overload
    def _count(self, name: str, default: int) -> int: ...
    @typing.overload
    def _count(self, name: str, default: None) -> int | None: ...
    def _count(self, name: str, default: int | None) -> int | None:
        value = self._arguments.get(name, default)
        if value is None:
            return None
        # A bool is an int to Python, but not a number of messages to anybody.
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self._error(name, value, "it must be an int of at least 1")
        return value

    @typing.overload
    def _seconds(self, name: str, default: float) -> float: ...
    @typing.overload
    def _seconds(self, name: str, default: None) -> float | None: ...
    def _seconds(self, name: str, default: float | None) -> float | None:
        value = self._arguments.get(name, default)
        if value is None:
            return None
        allowed = "it must be a finite number of seconds, 0 or more"
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self._error(name, value, allowed)
        if not math.isfinite(value) or value < 0:
            raise self._error(name, value, allowed)
        return float(value)

    def _rate(self) -> str | None:
        value: str | None = self._arguments.get("batch_rate")
        if value is not None:
            try:
                read_interval(value)
            except ValueError as exc:
                raise self._error("batch_rate", value, str(exc)) from None
        return value

    def _priority(self) -> float | None:
        value = self._arguments.get("batch_priority")
        if value is None:
            return None
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not math.isfinite(value)
        ):
            allowed = "it must be a finite number; the highest starts first"
            raise self._error("batch_priority", value, allowed)
        return value

    def _max_buffered(self, size: int) -> int:
        value = self._count("batch_max_buffered", max(10 * size, 1000))
        if value < size:
            raise self._error(
                "batch_max_buffered",
                value,
                f"it must be at least batch_size ({size}), or no batch could fill",
            )
        return value

    def _function(self, name: str) -> Callable[..., Any] | None:
        value = self._arguments.get(name)
        if value is None:
            return None
        if not callable(value):
            raise self._error(name, value, "it must be callable with an item")
        if is_coroutine_function(value) or _is_generator_function(value):
            raise self._error(
                name,
                value,
                "it must be a plain function: items are sorted without waiting",
            )
        if not _takes_item(value, with_rest=name == "batch_key"):
            allowed = "it must take an item as its only argument"
            if name == "batch_key":
                allowed = "it must take an item, and the task's other arguments"
            raise self._error(name, value, allowed)
        function: Callable[..., Any] = value
        return function

    def _coalesce(self, size: int) -> Callable[[Any], Hashable] | None:
        function = self._function("batch_coalesce")
        if function is not None and size == 1:
            raise self._error(
                "batch_coalesce",
                function,
                "with batch_size=1 no batch has two items that could be equal",
            )
        return function

    def _max_weight(self) -> float | None:
        value = self._arguments.get("batch_max_weight")
        weight = self._arguments.get("batch_weight")
        if value is None and weight is None:
            return None
        if value is None:
            raise self._error(
                "batch_weight",
                weight,
                "it needs batch_max_weight, the most weight of one call",
            )
        if weight is None:
            raise self._error(
                "batch_max_weight",
                value,
                "it needs batch_weight, a function that weighs an item",
            )
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not math.isfinite(value)
            or value <= 0
        ):
            allowed = "it must be a finite number above 0"
            raise self._error("batch_max_weight", value, allowed)
        return float(value)

    def _isolate_errors(self, size: int) -> bool | tuple[type[Exception], ...]:
        value = self._arguments.get("batch_isolate_errors", False)
        isolated = value if isinstance(value, bool) else self._error_classes(value)
        if isolated and size == 1:
            allowed = "with batch_size=1 there is nothing to isolate a culprit from"
            raise self._error("batch_isolate_errors", value, allowed)
        return isolated

    def _error_classes(self, value: Any) -> tuple[type[Exception], ...]:
        kinds: tuple[Any, ...] = ()
        if isinstance(value, tuple):
            kinds = value  # pyright: ignore[reportUnknownVariableType] - checked below
        if not kinds or not all(
            isinstance(kind, type) and issubclass(kind, Exception) for kind in kinds
        ):
            allowed = "it must be True, False or a tuple of Exception classes"
            raise self._error("batch_isolate_errors", value, allowed)
        for kind in kinds:
            if issubclass(kind, _DELIBERATE):
                allowed = (
                    f"{kind.__name__} says what is to become of every message of its "
                    "call, so there are no culprits to look for"
                )
                raise self._error("batch_isolate_errors", value, allowed)
        return kinds

    def _results(self, return_hint: Any) -> BatchResults:
        annotated_each = is_list(return_hint)
        value = self._arguments.get("batch_results")
        if value is None:
            if return_hint is inspect.Parameter.empty:
                self._warn_of_sharing()
            return "each" if annotated_each else "shared"
        if value == "shared":
            return "shared"
        if value != "each":
            raise self._error("batch_results", value, "it must be 'shared' or 'each'")
        if not annotated_each and not _list_fits(return_hint):
            raise self._error(
                "batch_results",
                value,
                f"the function is annotated to return {_name_of(return_hint)}; "
                "with 'each' it must return a list with one entry per item",
            )
        return "each"

    def _warn_of_sharing(self) -> None:
        logger.warning(
            "Batch task %s has no return annotation, so every item of a call gets as "
            "its result all that is returned. For a result of its own for each, "
            "annotate a list, as in `-> list[int]`; otherwise set "
            'batch_results="shared", or annotate what is returned.',
            self._task_name,
        )

    def _error(self, name: str, value: Any, allowed: str) -> TaskiqBatchConfigError:
        return TaskiqBatchConfigError(
            task_name=self._task_name,
            argument=name,
            value=value,
            allowed=allowed,
        )


def _nearest_argument(name: str) -> str:
    """Say what a user who wrote an unknown name may have meant."""
    import difflib  # noqa: PLC0415 - for this message only

    # The prefix they share would make any two names look alike.
    known = {each.removeprefix("batch_"): each for each in BATCH_ARGUMENTS}
    near = difflib.get_close_matches(name.removeprefix("batch_"), known, n=1)
    guess = f"did you mean {known[near[0]]}? " if near else ""
    return f"there is no such argument; {guess}known are {', '.join(BATCH_ARGUMENTS)}"


def _check_function(
    function: Callable[..., Any],
    task_name: str,
    hints: Mapping[str, Any],
) -> None:
    """Refuse a function that cannot be called with a list of items."""
    described = function_name(function)

    def error(allowed: str) -> TaskiqBatchConfigError:
        return TaskiqBatchConfigError(
            task_name=task_name,
            argument="function",
            value=described,
            allowed=allowed,
        )

    try:
        signature = inspect.signature(function)
    except ValueError as exc:
        raise error("its parameters must be known, wrap it in a function") from exc
    described += str(signature)

    if _is_generator_function(function):
        raise error("a generator function cannot be a task; return a list instead")
    parameter = next(iter(signature.parameters.values()), None)
    wanted = "its first parameter must take the list of items, e.g. items: list[int]"
    if parameter is None:
        raise error(f"it has no parameter; {wanted}")
    if parameter.kind not in BY_POSITION:
        raise error(f"{parameter} is {parameter.kind.description}; {wanted}")
    hint = hints.get(parameter.name, inspect.Parameter.empty)
    if not _list_fits(hint):
        raise error(
            f"no list fits the annotation of {parameter.name!r}, {_name_of(hint)}; "
            f"{wanted}",
        )


def _is_generator_function(function: Callable[..., Any]) -> bool:
    code = underlying_function(function)
    return inspect.isgeneratorfunction(code) or inspect.isasyncgenfunction(code)


def _takes_item(function: Callable[..., Any], *, with_rest: bool) -> bool:
    """Whether a function can be called with an item.

    :param with_rest: whether further arguments may follow it.
    """
    try:
        signature = inspect.signature(function)
    except ValueError:
        return True  # a builtin that does not say: its first call will tell
    try:
        if with_rest:
            signature.bind_partial(None)
        else:
            signature.bind(None)
    except TypeError:
        return False
    return True


def item_type(hint: Any) -> Any:
    """Take the element type out of the annotation of a list of items.

    :returns: the type of one item, `Any` when the annotation does not say.
    """
    for arm in _arms(hint):
        if _list_fits(arm):
            arguments = typing.get_args(arm)
            return arguments[0] if len(arguments) == 1 else Any
    return Any


def item_return_type(config: BatchConfig, hints: Mapping[str, Any]) -> Any:
    """Say what the handle of one message gets from a batch function.

    A function that is given the context may set the value of any message to something
    else than it returns: where its type does not fit, the value is right as it is.

    :param hints: the resolved type hints of the function.
    """
    item = _returned_for_item(config, hints.get("return"))
    # By name: the module of the class imports this one.
    names = {getattr(hint, "__qualname__", None) for hint in hints.values()}
    if item in (None, type(None)) or "BatchContext" not in names:
        return item
    return typing.Annotated[item, WrapValidator(_converted_or_itself)]


def _converted_or_itself(value: Any, convert: ValidatorFunctionWrapHandler) -> Any:
    try:
        return convert(value)
    except ValidationError:
        return value


def _returned_for_item(config: BatchConfig, hint: Any) -> Any:
    if config.results == "shared":
        return hint
    arguments = typing.get_args(_strip(hint))
    if not arguments:
        return None
    values = [arm for arm in _arms(arguments[0]) if not _is_exception(arm)]
    return typing.Union[tuple(values)] if values else None  # noqa: UP007 - built here


def is_list(hint: Any) -> bool:
    """Whether an annotation promises a list, also one that is awaited first."""
    stripped = _strip(hint)
    origin = typing.get_origin(stripped) or stripped
    return isinstance(origin, type) and issubclass(origin, list)


def _list_fits(hint: Any) -> bool:
    """Whether a list may be passed where `hint` is asked for."""
    return any(_list_fits_arm(arm) for arm in _arms(hint))


def _list_fits_arm(arm: Any) -> bool:
    if arm is Any or arm is inspect.Parameter.empty or isinstance(arm, typing.TypeVar):
        return True
    origin = typing.get_origin(arm) or arm
    try:
        return isinstance(origin, type) and issubclass(list, origin)
    except TypeError:
        # A protocol that cannot be checked at run time: the type checker has a say.
        return not typing.is_typeddict(origin)


def _arms(hint: Any) -> Iterator[Any]:
    """Walk the members of a union, or the one type that `hint` is."""
    stripped = _strip(hint)
    if typing.get_origin(stripped) in (typing.Union, types.UnionType):
        for arm in typing.get_args(stripped):
            yield from _arms(arm)
    else:
        yield stripped


def _strip(hint: Any) -> Any:
    """Take off what says nothing about the shape: aliases, metadata, awaitables."""
    while True:
        origin = typing.get_origin(hint)
        if origin is typing.Annotated:
            hint = typing.get_args(hint)[0]
        elif hasattr(hint, "__supertype__"):
            hint = hint.__supertype__
        elif _is_type_alias(hint):
            hint = hint.__value__
        elif _is_type_alias(origin):
            hint = _fill_in(origin, typing.get_args(hint))
        elif origin in _AWAITABLES:
            hint = typing.get_args(hint)[-1]
        else:
            return hint


def _is_type_alias(hint: Any) -> bool:
    # By name: the class is in `typing` from Python 3.12 on, a backport elsewhere.
    return type(hint).__name__ == "TypeAliasType"


def _fill_in(alias: Any, arguments: tuple[Any, ...]) -> Any:
    """Give what a generic alias stands for with these type arguments."""
    value = alias.__value__
    given = dict(zip(alias.__type_params__, arguments, strict=False))
    parameters = getattr(value, "__parameters__", ())
    return value[tuple(given[each] for each in parameters)] if parameters else value


_AWAITABLES: Final = (
    collections.abc.Awaitable,
    collections.abc.Coroutine,
    types.CoroutineType,
)


def _is_exception(arm: Any) -> bool:
    return isinstance(arm, type) and issubclass(arm, BaseException)


def _name_of(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint)
