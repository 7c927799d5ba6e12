"""What is said to who sends or calls a task in a way that cannot work."""

from __future__ import annotations

import inspect
import math
from typing import TYPE_CHECKING, Any, Final, TypeAlias, get_args, get_origin

from pydantic import TypeAdapter, ValidationError
from taskiq_dependencies.dependency import Dependency

from taskiq.batch import item_type
from taskiq.callables import (
    BY_POSITION,
    ORIGINAL_SUFFIX,
    function_name,
    resolved_hints,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

#: What a call or a message is made of.
_Args: TypeAlias = tuple[Any, ...]
_Kwargs: TypeAlias = dict[str, Any]

#: How an unresolved dependency is seen by a function that uses it.
_UNRESOLVED: Final = "'Dependency' object"


class SendCheck:
    """Refuses messages of one batch task that no worker could run.

    :param function: the function of the task, which takes the list.
    :param hints: its type hints.
    """

    def __init__(self, function: Callable[..., Any], hints: Mapping[str, Any]) -> None:
        self._name = function_name(function)
        self._signature = inspect.signature(function)
        self._first = next(iter(self._signature.parameters))
        self._most_by_position = _most_by_position(self._signature)
        self._element = item_type(hints.get(self._first, Any))
        self._adapter: TypeAdapter[Any] | None = None

    def __call__(self, args: _Args, kwargs: _Kwargs) -> None:
        """Look at the arguments of one message.

        :raises TypeError: when they do not fit the function, have no item, or are a
            list of items in the place of one.
        """
        # Binding costs as much as all else that is done to send a message.
        if not kwargs and 0 < len(args) <= self._most_by_position:
            item: Any = args[0]
        else:
            item = self._bound_item(args, kwargs)
        # Any other value is cast by the worker, as it says.
        if _is_list(item) and self._is_many(item):
            raise TypeError(
                f"{self._name}.kiq() takes one item of {self._first!r}, of type "
                f"{_text_of(self._element)}, and was given a list of {len(item)}: the "
                "worker makes the list. Send each item by itself, or all with "
                f"{self._name}.kiq_many(items)",
            )

    def _bound_item(self, args: _Args, kwargs: _Kwargs) -> Any:
        try:
            bound = self._signature.bind_partial(*args, **kwargs).arguments
        except TypeError as exc:
            raise self._misfit(str(exc)) from None
        # A default is that of the whole list, which the worker makes of items.
        if self._first not in bound:
            raise self._misfit("the item is missing")
        return bound[self._first]

    def check_items(self, items: list[Any], args: _Args, kwargs: _Kwargs) -> None:
        """Look at the arguments of one message with many items.

        :param args: what follows each item.
        :raises TypeError: when they do not fit the function, or one of the items is a
            list of items.
        """
        for index, item in enumerate(items):
            if _is_list(item) and self._is_many(item):
                raise TypeError(
                    f"items[{index}] of {self._name}.kiq_chunk() is a list of "
                    f"{len(item)}; an item is of type {_text_of(self._element)}",
                )
        # Whatever the items are, the others fit or not; without items, too.
        self((items[0] if items else None, *args), kwargs)

    def _misfit(self, reason: str) -> TypeError:
        return TypeError(
            f"{self._name}.kiq() takes one item and the arguments after it, of "
            f"{self._name}{self._signature}: {reason}. "
            f"For many items, use {self._name}.kiq_many(items)",
        )

    def _is_many(self, given: list[Any]) -> bool:
        """Tell whether a list is no item, and all that is in it would be one."""
        if not given or self._element is Any:
            return False
        try:
            if self._adapter is None:
                self._adapter = TypeAdapter(self._element)
            return not self._fits(given) and all(map(self._fits, given))
        except Exception:  # noqa: BLE001 - types of users: the worker has a say
            return False

    def _fits(self, item: Any) -> bool:
        assert self._adapter is not None  # noqa: S101
        try:
            self._adapter.validate_python(item)
        except ValidationError:
            return False
        return True


def _most_by_position(signature: inspect.Signature) -> float:
    """Count the arguments that a function takes by position."""
    kinds = [parameter.kind for parameter in signature.parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        return math.inf
    return sum(kind in BY_POSITION for kind in kinds)


def call_here(
    function: Callable[..., Any],
    args: _Args,
    kwargs: _Kwargs,
) -> Any:
    """Call the function of a task where nobody resolves its dependencies.

    :raises TypeError: when that fails for one of them, or for the arguments: with the
        name that its author gave it.
    :raises Exception: whatever else the function raises.
    """
    try:
        returned = function(*args, **kwargs)
    except (AttributeError, TypeError) as exc:
        raise _explained(exc, function, args, kwargs) or exc from None
    if inspect.iscoroutine(returned) and any(_missing(function, args, kwargs)):
        return _awaited(returned, function, args, kwargs)
    return returned


async def _awaited(
    coroutine: Coroutine[Any, Any, Any],
    function: Callable[..., Any],
    args: _Args,
    kwargs: _Kwargs,
) -> Any:
    try:
        return await coroutine
    except (AttributeError, TypeError) as exc:
        explained = _explained(exc, function, args, kwargs)
        if explained is None:
            raise
        raise explained from exc


def with_public_names(error: BaseException) -> None:
    """Let an error of calling a function name it as its author did."""
    if isinstance(error, TypeError) and error.args:
        text = error.args[0]
        if isinstance(text, str) and ORIGINAL_SUFFIX in text:
            error.args = (text.replace(ORIGINAL_SUFFIX, ""), *error.args[1:])


def _explained(
    error: AttributeError | TypeError,
    function: Callable[..., Any],
    args: _Args,
    kwargs: _Kwargs,
) -> TypeError | None:
    """Say what is missing, if an error comes of a dependency that nobody resolved."""
    text = str(error)
    with_public_names(error)
    missing = _missing(function, args, kwargs)
    is_ours = ORIGINAL_SUFFIX in text and "missing" in text
    if not missing or not (is_ours or _UNRESOLVED in text):
        return None
    name = function_name(function)
    given = ", ".join(f"{each}={_example(each, kind, name)}" for each, kind in missing)
    return TypeError(
        f"{name}() is called here, where nobody resolves its dependencies: "
        f"pass {', '.join(repr(each) for each, _ in missing)} yourself, as in "
        f"{name}(..., {given}), or send it with {name}.kiq(...)",
    )


def _missing(
    function: Callable[..., Any],
    args: _Args,
    kwargs: _Kwargs,
) -> list[tuple[str, Any]]:
    """List the dependencies of a function that are not among its arguments."""
    try:
        signature = inspect.signature(function)
        bound = signature.bind_partial(*args, **kwargs).arguments
        hints = resolved_hints(function)
    except Exception:  # noqa: BLE001 - then there is nothing to explain
        return []
    return [
        (name, hints.get(name))
        for name, parameter in signature.parameters.items()
        if name not in bound
        and any(
            isinstance(each, Dependency)
            for each in (parameter.default, *get_args(hints.get(name)))
        )
    ]


def _example(name: str, kind: Any, task: str) -> str:
    kind = get_args(kind)[0] if get_origin(kind) is not None else kind
    if getattr(kind, "__name__", "") in {"Context", "BatchContext"}:
        return f"taskiq.testing.context_for({task}, ...)"
    return f"my_{name}"


def _is_list(item: object) -> bool:
    """Look without asking the item: a proxy of nothing raises."""
    return type(item) is list


def _text_of(hint: Any) -> str:
    return hint.__name__ if type(hint) is type else str(hint).replace("typing.", "")
