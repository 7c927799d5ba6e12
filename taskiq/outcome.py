"""What became of one message: a value or an error, and how a batch hands them out."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from taskiq.exceptions import TaskiqBatchResultError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from taskiq.batch import BatchResults


# Not frozen: that takes four times as long to make, for each message.
@dataclass(slots=True)
class Succeeded:
    """The task gave a value."""

    value: Any


@dataclass(slots=True)
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


def own_copy(value: Any) -> Any:
    """Copy what several messages were given, so that each may change its own.

    :returns: the value itself where it cannot be changed, or not be copied.
    """
    try:
        if isinstance(value, BaseException):
            return _copy_of_error(value)
        return copy.deepcopy(value)
    except Exception:  # noqa: BLE001 - of a class of somebody's: shared as it is, then
        return value


def _copy_of_error(error: BaseException) -> BaseException:
    """Copy an error without calling its constructor, which may want other arguments."""
    kind = type(error)
    copied: BaseException = kind.__new__(kind, *error.args)
    copied.args = error.args
    attributes = vars(error).copy()
    if "__notes__" in attributes:
        attributes["__notes__"] = list(attributes["__notes__"])
    vars(copied).update(attributes)
    copied.__cause__ = error.__cause__
    copied.__context__ = error.__context__
    copied.__suppress_context__ = error.__suppress_context__
    return copied.with_traceback(error.__traceback__)
