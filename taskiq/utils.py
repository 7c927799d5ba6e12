"""Helpers that have no better home."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, TypeVar, overload

if TYPE_CHECKING:
    from collections.abc import Awaitable

_T = TypeVar("_T")


def has_lone_surrogate(text: str) -> bool:
    """Whether a text cannot be encoded, such as the name of a file that is none."""
    return not text.isascii() and any("\ud800" <= each <= "\udfff" for each in text)


def is_odd_text(value: object) -> bool:
    """Whether it is a text that many servers do not take, of keys and names."""
    return isinstance(value, str) and ("\0" in value or has_lone_surrogate(value))


@overload
async def maybe_awaitable(possible_coroutine: Awaitable[_T]) -> _T: ...


@overload
async def maybe_awaitable(possible_coroutine: Awaitable[_T] | _T) -> _T: ...


async def maybe_awaitable(possible_coroutine: Any) -> Any:
    """Return the value, or what awaiting it gives.

    Lets callers treat synchronous and asynchronous hooks alike. Errors of the
    awaitable propagate.
    """
    if inspect.isawaitable(possible_coroutine):
        return await possible_coroutine
    return possible_coroutine
