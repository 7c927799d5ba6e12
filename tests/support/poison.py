"""Functions that fail for some of their items."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


class PoisonError(Exception):
    """What an item makes its call fail with."""


def poisoned_by(*poison: Any) -> Callable[[list[Any]], list[Any]]:
    """Make a function that doubles its items, and fails where one is poison."""

    def body(items: list[Any]) -> list[Any]:
        for item in items:
            if item in poison:
                raise PoisonError(item)
        return [item * 2 for item in items]

    return body
