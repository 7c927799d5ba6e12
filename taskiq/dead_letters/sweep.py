"""One pass through dead letters, of which some are taken out: sent again, or dropped.

A few letters are held at a time, however many there are. A letter is taken out after
the work on it is done: whoever is killed half way has lost none of them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import (
    TYPE_CHECKING,
    Any,
    Final,
    Protocol,
    TypeAlias,
    TypeVar,
    runtime_checkable,
)

from taskiq.dead_letters.letter import DeadLetter

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from taskiq.dead_letters.store import DeadLetterStore

_Item = TypeVar("_Item")

#: Letters that are worked on at once.
AT_ONCE: Final = 500

#: Says which letters are meant.
Wanted: TypeAlias = Callable[[DeadLetter], bool]
#: Does something with letters; gives the error of each with which it is not done.
Work: TypeAlias = Callable[
    [Sequence[DeadLetter]], Awaitable[Sequence[Exception | None]]
]


@runtime_checkable
class SweptStore(Protocol):
    """A store whose letters cannot be taken out while it is read."""

    async def sweep(self, wanted: Wanted, work: Work, most: int | None) -> int:
        """Do as the function of this name."""
        ...


async def sweep(
    store: DeadLetterStore,
    wanted: Wanted,
    work: Work,
    most: int | None = None,
) -> int:
    """Do something with the letters that are meant, the oldest first; take them out.

    Those that come meanwhile are left: they may have come of this.

    :param most: how many of them there can be at most; `None` if that is not known.
    :returns: how many were taken out.
    :raises Exception: the first error of the work. Letters that it is not done with
        stay, with those behind them.
    """
    if isinstance(store, SweptStore):
        return await store.sweep(wanted, work, most)
    count = 0
    async with aclosing(first(store.read(), wanted, most)) as chosen:
        async for letters in in_groups(chosen):
            errors = await work(letters)
            pairs = zip(letters, errors, strict=True)
            done = [letter.id for letter, error in pairs if error is None]
            count += await store.remove(done)
            raise_first(errors)
    return count


async def first(
    items: AsyncGenerator[_Item, None],
    wanted: Callable[[_Item], bool],
    most: int | None,
) -> AsyncGenerator[_Item, None]:
    """Give the items that are meant, and end with the last that there can be."""
    count = 0
    async with aclosing(items):
        async for item in items:
            if wanted(item):
                yield item
                count += 1
                if count == most:
                    return


async def in_groups(
    items: AsyncGenerator[_Item, None],
    size: int = AT_ONCE,
) -> AsyncGenerator[list[_Item], None]:
    """Give items together, so many at most."""
    group: list[_Item] = []
    async for item in items:
        group.append(item)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def raise_first(errors: Sequence[Any]) -> None:
    """Raise the first error there is."""
    for error in errors:
        if error is not None:
            raise error
