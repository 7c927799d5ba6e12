"""What a callable is, whatever it is made of.

Tasks are plain functions most of the time, but also partials, bound methods, instances
with ``__call__`` and functions wrapped by decorators; these helpers give the same
answers for all of them.
"""

from __future__ import annotations

import functools
import inspect
import typing
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

#: What the task's own function is renamed with, so that a process pool finds it by
#: name behind the task that took its place in the module.
ORIGINAL_SUFFIX: Final = "__taskiq_original"

#: Parameters that an argument without a name may go to.
BY_POSITION: Final = (
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
)


def underlying_function(function: Callable[..., Any]) -> Callable[..., Any]:
    """Find what runs in the end: through partials and ``__call__``.

    Wrappers made by a decorator are not looked through: the wrapper is what runs.
    """
    while isinstance(function, functools.partial):
        function = function.func
    if inspect.isroutine(function) or inspect.isclass(function):
        return function
    call: Callable[..., Any] = type(function).__call__
    return call


def function_module(function: Callable[..., Any]) -> str:
    """Name the module a callable was written in."""
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__module__", None) or type(function).__module__


def function_name(function: Callable[..., Any]) -> str:
    """Name a callable as its author wrote it."""
    while isinstance(function, functools.partial):
        function = function.func
    name = getattr(function, "__name__", None) or type(function).__name__
    # A wrapper of a renamed function is renamed once more.
    return name.partition(ORIGINAL_SUFFIX)[0]


def is_coroutine_function(function: Callable[..., Any]) -> bool:
    """Whether calling `function` gives a coroutine."""
    return inspect.iscoroutinefunction(underlying_function(function))


def resolved_hints(
    function: Callable[..., Any],
    *,
    with_metadata: bool = True,
) -> dict[str, Any]:
    """Resolve the type hints of a callable.

    :param with_metadata: keep ``Annotated[T, ...]``; otherwise it becomes ``T``.
    :raises NameError: when a forward reference cannot be resolved.
    """
    target = underlying_function(function)
    if inspect.isclass(target):
        target = target.__init__
    try:
        return typing.get_type_hints(target, include_extras=with_metadata)
    except TypeError:
        # Builtins and C functions carry no annotations at all.
        return {}
