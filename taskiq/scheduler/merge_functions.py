"""Ways to combine the schedules known so far with newly fetched ones."""

from __future__ import annotations

from typing import TypeVar

_T = TypeVar("_T")


def preserve_all(old_tasks: list[_T], new_tasks: list[_T]) -> list[_T]:
    """Return the old schedules followed by the new ones."""
    return old_tasks + new_tasks


def only_unique(old_tasks: list[_T], new_tasks: list[_T]) -> list[_T]:
    """Return the old schedules and those new ones that equal none before them."""
    merged = old_tasks.copy()
    for task in new_tasks:
        if task not in merged:
            merged.append(task)
    return merged


def only_new(_old_tasks: list[_T], new_tasks: list[_T]) -> list[_T]:
    """Return the new schedules, dropping the old ones."""
    return new_tasks
