"""Limits of time, as the receiver sets them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from taskiq.outcome import Failed
from taskiq.receiver.containment import contain

if TYPE_CHECKING:
    from collections.abc import Coroutine

_T = TypeVar("_T")


async def within(seconds: float, work: Coroutine[Any, Any, _T]) -> _T:
    """Await `work`, but not for longer than this; raise what comes of it."""
    outcome = await contain(lambda: work, seconds=seconds)
    if isinstance(outcome, Failed):
        raise outcome.error
    return outcome
