"""Helpers that have no better home."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Coroutine

_T = TypeVar("_T")


async def maybe_awaitable(
    possible_coroutine: Coroutine[Any, Any, _T] | Awaitable[_T] | _T,
) -> _T:
    """Return the value, or what awaiting it gives.

    Lets callers treat synchronous and asynchronous hooks alike. Errors of the
    awaitable propagate.
    """
    if inspect.isawaitable(possible_coroutine):
        return await possible_coroutine
    return possible_coroutine
