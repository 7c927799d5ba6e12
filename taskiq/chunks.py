"""One message with many items: how it is written and read, and its handle.

The items are a keyword argument whose name no parameter can have, and nothing is
positional. So whoever does not know of chunks, taskiq 0.13.0 included, cannot call a
function with it by mistake: it fails with a `TypeError` that names the argument.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from taskiq.message import TaskiqMessage
from taskiq.models import maker_of
from taskiq.result import TaskiqResult
from taskiq.task import AsyncTaskiqTask

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from taskiq.abc.result_backend import AsyncResultBackend

_ReturnType = TypeVar("_ReturnType")

logger = logging.getLogger("taskiq.task")

#: A label of a chunk: how many items it was sent with.
CHUNK_LABEL: Final = "batch_chunk"
#: A label that the message of one item has on a worker: its place in the chunk.
INDEX_LABEL: Final = "batch_chunk_index"
#: Keyword arguments of a chunk: its items, and the positional arguments after each.
ITEMS: Final = "batch_chunk.items"
ARGS: Final = "batch_chunk.args"

#: Items of one chunk at most: they are decoded and placed at one go, and their results
#: are one value in the result backend.
MOST_ITEMS: Final = 10_000

_message_of: Final[Callable[[dict[str, Any]], TaskiqMessage]] = maker_of(TaskiqMessage)


def items_of(task_name: str, given: Iterable[Any]) -> list[Any]:
    """List the items of one chunk.

    :raises TypeError: when they are not many.
    :raises ValueError: when they are too many.
    """
    try:
        items = list(given)
    except TypeError:
        raise TypeError(
            f"kiq_chunk() takes an iterable of items, and was given {given!r} of type "
            f"{type(given).__name__}: for one item, use kiq(item)",
        ) from None
    if len(items) > MOST_ITEMS:
        raise ValueError(
            f"A chunk of {task_name} has {MOST_ITEMS} items at most, not {len(items)}: "
            "send several, or a message for each item with kiq_many(items)",
        )
    return items


def chunk_kwargs(
    items: list[Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> dict[str, Any]:
    """Give the arguments of a message with many items.

    :param args: what follows each item.
    """
    return {ITEMS: items, **({ARGS: list(args)} if args else {}), **kwargs}


def is_chunk(message: TaskiqMessage) -> bool:
    """Whether a message has many items. The label alone may be somebody else's."""
    return CHUNK_LABEL in message.labels and ITEMS in message.kwargs


def sent_id(message: TaskiqMessage) -> str:
    """Give the id that a message was sent under; of an item that of its chunk."""
    task_id, index = message.task_id, message.labels.get(INDEX_LABEL)
    return task_id if index is None else task_id.removesuffix(f":{index}")


def messages_of(chunk: TaskiqMessage) -> list[TaskiqMessage]:
    """Give, for each item of a chunk, the message that `kiq` would have sent.

    Its id is that of the chunk with its place in it: functions that tell messages, or
    requests, apart by the id do so with items. A label says the place, too.

    :raises TypeError: when a hook, or a sender of another kind, has put something else
        in the place of its lists.
    """
    kwargs = dict(chunk.kwargs)
    items, args = kwargs.pop(ITEMS), kwargs.pop(ARGS, [])
    for name, value in ((ITEMS, items), (ARGS, args)):
        if not isinstance(value, list):
            raise TypeError(f"{name} must be a list, got {value!r}")
    return [
        _message_of(
            {
                "task_id": f"{chunk.task_id}:{index}",
                "task_name": chunk.task_name,
                "labels": {**chunk.labels, INDEX_LABEL: index},
                "labels_types": chunk.labels_types,
                "args": [item, *args],
                "kwargs": dict(kwargs),
            },
        )
        for index, item in enumerate(items)
    ]


class AsyncTaskiqChunk(
    AsyncTaskiqTask[list[TaskiqResult[_ReturnType]]],
    Generic[_ReturnType],
):
    """The handle of a chunk: its return value is a result for each item, in order.

    :param task_id: id of the chunk's message.
    :param result_backend: where the worker stores the result.
    :param item_type: what to convert the return value of each item to; `None` leaves
        it as it is.
    """

    def __init__(
        self,
        task_id: str,
        result_backend: AsyncResultBackend[Any],
        item_type: type[_ReturnType] | None = None,
    ) -> None:
        super().__init__(task_id, result_backend)
        self.item_type = item_type

    def converted(
        self,
        result: TaskiqResult[list[TaskiqResult[_ReturnType]]],
    ) -> TaskiqResult[list[TaskiqResult[_ReturnType]]]:
        """Turn what was stored for each item into its result.

        :param result: the result of the chunk; changed in place.
        :returns: this result. What is not as a worker stores it is kept, with a
            warning.
        """
        stored: Any = result.return_value
        if result.is_err:
            return result
        backend: Any = self.result_backend
        one: AsyncTaskiqTask[Any] = AsyncTaskiqTask(
            self.task_id, backend, self.item_type
        )
        try:
            result.return_value = [
                one.converted(TaskiqResult[Any].model_validate(each))
                if isinstance(each, dict)
                else one.converted(_checked(each))
                for each in stored
            ]
        except (TypeError, ValueError) as exc:
            logger.warning(
                "The return value of chunk %s is kept as it was stored, "
                "it is no list of results: %s",
                self.task_id,
                exc,
            )
        return result


def _checked(value: Any) -> TaskiqResult[Any]:
    if not isinstance(value, TaskiqResult):
        raise TypeError(f"{value!r} is no result")
    return value  # pyright: ignore[reportUnknownVariableType]
