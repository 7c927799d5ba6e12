"""What became of one message: a value or an error, and how a batch hands them out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from taskiq.exceptions import TaskiqBatchResultError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from taskiq.batch import BatchResults


@dataclass(frozen=True, slots=True)
class Succeeded:
    """The task gave a value."""

    value: Any


@dataclass(frozen=True, slots=True)
class Failed:
    """The task gave an error. `NoResultError` means: no result, on purpose."""

    error: BaseException


Outcome: TypeAlias = Succeeded | Failed


def outcomes_of_return(
    results: BatchResults,
    returned: object,
    size: int,
    task_name: str,
) -> Sequence[Outcome]:
    """Hand a batch function's return value out to its `size` messages, in order.

    A list that does not fit fails every message with `TaskiqBatchResultError`: nobody
    is given a neighbour's value, and nobody is left without an answer.
    """
    if results == "shared":
        return [Succeeded(returned)] * size
    if not isinstance(returned, list):
        actual = f"{type(returned).__name__}, which is no list"
    else:
        entries: list[Any] = returned  # pyright: ignore[reportUnknownVariableType]
        if len(entries) == size:
            return [_outcome_of_entry(entry) for entry in entries]
        actual = f"a list of {len(entries)}"
    error = TaskiqBatchResultError(task_name=task_name, expected=size, actual=actual)
    return [Failed(error)] * size


def _outcome_of_entry(entry: Any) -> Outcome:
    return Failed(entry) if isinstance(entry, Exception) else Succeeded(entry)
