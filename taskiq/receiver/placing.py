"""Which messages of a batch task may share a call, and with what arguments.

The messages of one group have the same arguments beside their item, and the same
`timeout` label. Everything here is plain synchronous code over one message.
"""

from __future__ import annotations

import collections
import copy
import dataclasses
import datetime as dt
import decimal
import inspect
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pydantic import BaseModel

from taskiq.batch import item_type
from taskiq.receiver.params_parser import cast_for

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Sequence

    from taskiq.batch import BatchConfig


@dataclass(frozen=True, slots=True)
class Rest:
    """What a call is given beside its items.

    :ivar args: positional arguments after the list of items.
    :ivar kwargs: keyword arguments; dependencies are added by the call.
    :ivar key: equal for equal arguments, whatever their types.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    key: Hashable

    def copied(self) -> Rest:
        """Give the same for one more call: what a function does to it stays there.

        :raises Exception: what its values raise when they are copied.
        """
        args, kwargs = copy.deepcopy((self.args, self.kwargs))
        return Rest(args, kwargs, self.key)


@dataclass(frozen=True, slots=True)
class Same:
    """What is equal for items that are passed once, hashed where that may fail."""

    value: Any
    hash: int


class BatchPlan:
    """How the messages of one batch task are placed, worked out once per task.

    :param config: the task's batch configuration.
    :param signature: parameters of the function, the list of items first.
    :param type_hints: resolved annotations by name.
    :param dependencies: names of parameters that the worker fills in by itself.
    """

    __slots__ = (
        "_casts",
        "_dependencies",
        "_item_alone",
        "_item_cast",
        "_required",
        "_signature",
        "_variadic",
        "config",
        "is_measured",
        "priority",
    )

    def __init__(
        self,
        config: BatchConfig,
        signature: inspect.Signature,
        type_hints: dict[str, Any],
        dependencies: Iterable[str],
    ) -> None:
        self.config = config
        #: Whether items have to be looked at by functions of the task's own.
        self.is_measured = any(
            function is not None
            for function in (config.key, config.weight, config.coalesce)
        )
        #: That of a message without a label of that name.
        self.priority: float = config.priority or 0
        self._signature = signature
        self._dependencies = frozenset(dependencies)
        items, *others = signature.parameters.values()
        hints = {**type_hints, items.name: item_type(type_hints.get(items.name, Any))}
        self._item_cast = cast_for(items.name, hints)
        self._casts = {
            parameter.name: cast
            for parameter in others
            if (cast := cast_for(parameter.name, hints)) is not None
        }
        # A default of the first one is a list of items; it can stand for no item.
        self._required = [items.name] + [
            parameter.name
            for parameter in others
            if parameter.default is inspect.Parameter.empty
            and parameter.kind not in _VARIADIC
            and parameter.name not in self._dependencies
        ]
        self._variadic = next(
            (each.name for each in others if each.kind is each.VAR_POSITIONAL),
            None,
        )
        # The rest of a message that has its item and nothing else, where that is
        # enough: such messages are placed without binding each.
        self._item_alone: Rest | None = None
        if self._required == [items.name]:
            _, self._item_alone = self._bind((None,), {}, validate=False)

    def place(
        self,
        args: Sequence[Any],
        kwargs: dict[str, Any],
        *,
        validate: bool,
        rest: Rest | None,
    ) -> tuple[Any, Rest]:
        """Say what the arguments of one message bring to a call.

        :param validate: whether to cast them.
        :param rest: those that follow the item, where they were bound before.
        :returns: the item, and what follows it.
        :raises TypeError: when they do not fit the function.
        :raises ValueError: when one cannot be cast.
        """
        if rest is None and len(args) == 1 and not kwargs:
            rest = self._item_alone
        if rest is not None:
            item = args[0]
        else:
            item, rest = self._bind(args, kwargs, validate=validate)
        cast = self._item_cast
        if validate and cast is not None and item.__class__ is not cast.exact_type:
            item = cast(item)
        return item, rest

    def measure(
        self, item: Any, rest: Rest
    ) -> tuple[Hashable, int | decimal.Decimal, Same | None]:
        """Ask the task's own functions about an item.

        :returns: the key it is grouped by, its exact weight, and the key of equal
            items.
        :raises Exception: what one of the functions raises, or `TypeError` or
            `ValueError` for what it returns.
        """
        config = self.config
        key, same = None, None
        weight: int | decimal.Decimal = 0
        if config.key is not None:
            key = config.key(item, *rest.args, **rest.kwargs)
            _check_key("batch_key", key)
        if config.weight is not None:
            weight = exact_weight(config.weight(item))
        if config.coalesce is not None:
            value = config.coalesce(item)
            _check_key("batch_coalesce", value)
            same = Same(value, hash(value))
        return key, weight, same

    def _bind(
        self,
        args: Iterable[Any],
        kwargs: dict[str, Any],
        *,
        validate: bool,
    ) -> tuple[Any, Rest]:
        """Bind arguments to the signature, so that every spelling is one group."""
        bound = self._signature.bind_partial(*args, **kwargs)
        given = bound.arguments
        missing = [name for name in self._required if name not in given]
        if missing:
            raise TypeError(f"missing required arguments: {', '.join(missing)}")
        if validate:
            self._cast_rest(given)
        left_out = self._dependencies - given.keys()
        bound.apply_defaults()
        for name in left_out:
            bound.arguments.pop(name, None)
        _, *others = bound.arguments.items()
        key = tuple((name, freeze(value)) for name, value in others)
        by_name = self._take_dependencies(bound.arguments)
        item, *rest = bound.args
        return item, Rest(tuple(rest), {**bound.kwargs, **by_name}, key)

    def _take_dependencies(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Take out what was sent in place of a dependency: it is passed by name.

        Only by name it wins over what the call resolves, and only without it the
        parameters after one that was not sent are passed by name as well. Where values
        of ``*args`` follow, everything has its position.
        """
        if self._variadic is not None:
            if arguments[self._variadic]:
                return {}
            del arguments[self._variadic]
        sent = self._dependencies & arguments.keys()
        return {name: arguments.pop(name) for name in sent}

    def _cast_rest(self, arguments: dict[str, Any]) -> None:
        for name, value in arguments.items():
            cast = self._casts.get(name)
            if cast is None:
                continue
            kind = self._signature.parameters[name].kind
            if kind is inspect.Parameter.VAR_POSITIONAL:
                arguments[name] = tuple(cast(each) for each in value)
            elif kind is inspect.Parameter.VAR_KEYWORD:
                arguments[name] = {key: cast(each) for key, each in value.items()}
            else:
                arguments[name] = cast(value)


_VARIADIC: Final = (
    inspect.Parameter.VAR_POSITIONAL,
    inspect.Parameter.VAR_KEYWORD,
)


def _check_key(argument: str, value: object) -> None:
    if inspect.iscoroutine(value):
        # It can be hashed, but never equals another.
        value.close()
        raise TypeError(f"{argument} must return a plain value, not a coroutine")
    try:
        hash(value)
    except TypeError as exc:
        raise TypeError(f"{argument} must return something hashable: {exc}") from exc
    # Raises here, for its own message, what it would raise for one it is compared with.
    bool(value == value)  # noqa: PLR0124


def read_timeout(label: Any) -> float | None:
    """Read a `timeout` label: the seconds a call may take.

    :returns: `None` for no limit.
    :raises ValueError: when it is no number.
    :raises TypeError: when it is nothing that a number can be made of.
    """
    if label is None:
        return None
    seconds = float(label)
    if math.isnan(seconds):
        raise ValueError(f"timeout must be a number of seconds, got {label!r}")
    return seconds


def read_priority(label: Any, default: float) -> float:
    """Read a `priority` label: of batches that are due, the highest starts first.

    :param default: that of a message whose label is no finite number. It may mean
        something to others, and keeps no message from being run.
    """
    try:
        priority = float(label)
    except (TypeError, ValueError, OverflowError):
        return default
    return priority if math.isfinite(priority) else default


def exact_weight(value: Any) -> int | decimal.Decimal:
    """Give a weight as its author wrote it, so that sums of many do not drift.

    Three times 0.1 is 0.3 then, and a batch of ten holds as much as its first one did.

    :raises TypeError: when it is no number.
    :raises ValueError: when it is negative or not finite.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"batch_weight must return a number, got {value!r}")
    if not math.isfinite(value) or value < 0:
        raise ValueError(
            f"batch_weight must return a finite number, 0 or more, got {value!r}",
        )
    if isinstance(value, int):
        return int(value)
    # The shortest text that gives this float, and not its 55 binary digits.
    return decimal.Decimal(float.__repr__(value))


class _ByValue:
    """Makes any value the key of a dict: equal by value, and by its fields' types."""

    __slots__ = ("_hash", "_key", "_value")

    def __init__(self, value: Any) -> None:
        # Raises here, for its own message, if the value cannot be compared at all.
        bool(value == value)  # noqa: PLR0124
        self._value = value
        self._key = (value.__class__, _fields_key(value))
        self._hash = hash(self._key)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, _ByValue)
            and self._key == other._key
            and bool(self._value == other._value)
        )


def _fields_key(value: Any) -> Hashable:
    """Give the key of the fields of what is compared by its fields."""
    if isinstance(value, BaseModel) and type(value).__eq__ is BaseModel.__eq__:
        return freeze((value.__dict__, value.__pydantic_extra__))
    if dataclasses.is_dataclass(value):
        return tuple(
            freeze(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if field.compare
        )
    return None


def freeze(value: Any) -> Hashable:
    """Make a hashable key that is equal for the same values, and not only equal ones.

    `1`, `1.0`, `True` and `Decimal("1.00")` are equal to Python, and so are `0.0` and
    `-0.0`, or one instant in two time zones; but a function may tell them apart, and a
    message must not be called with its neighbour's argument.
    """
    kind: Any = value.__class__
    if kind is str:
        return value  # type: ignore[no-any-return] # narrowed by its exact type
    contents = _contents(value)
    if contents is not None:
        return (kind, contents)
    if isinstance(value, _WRITTEN):
        # What it is written as tells apart what is only equal.
        return (kind, repr(value))
    is_plain = _is_hashable(value) and not _has_fields(value)
    return (kind, value) if is_plain else _ByValue(value)


def _contents(value: Any) -> Hashable:
    """Give the key of what a collection holds; `None` for what is none."""
    kind: Any = value.__class__
    if issubclass(kind, _SEQUENCES):
        return tuple(freeze(each) for each in value)
    if issubclass(kind, dict):
        return frozenset((freeze(key), freeze(each)) for key, each in value.items())
    if issubclass(kind, (set, frozenset)):
        return frozenset(freeze(each) for each in value)
    return None


#: Compared by what is in them, named tuples and subclasses included.
_SEQUENCES: Final = (list, tuple, collections.deque)

#: Equal for values that differ: in sign, in digits, in their time zone.
_WRITTEN: Final = (float, complex, decimal.Decimal, dt.datetime, dt.time)


def _has_fields(value: object) -> bool:
    return isinstance(value, BaseModel) or dataclasses.is_dataclass(value)


def _is_hashable(value: object) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True
