"""What `taskiq dead` does with letters: choosing, paging, sending again, dropping."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from taskiq.dead_letters.retry import restored
from taskiq.dead_letters.sweep import sweep

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from taskiq.abc.broker import AsyncBroker
    from taskiq.dead_letters import DeadLetter, DeadLetterStore


@dataclass(frozen=True, slots=True)
class Choice:
    """Which letters are meant: those for which all is true that is said.

    :ivar ids: their ids; empty for any.
    :ivar task: the name of their task.
    :ivar reason: why they are dead.
    """

    ids: frozenset[str] = frozenset()
    task: str | None = None
    reason: str | None = None

    @property
    def most(self) -> int | None:
        """How many letters there can be at most; `None` if nobody knows."""
        return len(self.ids) or None

    def has(self, letter: DeadLetter) -> bool:
        """Whether a letter is meant."""
        return (
            (not self.ids or letter.id in self.ids)
            and self.task in {None, letter.task_name}
            and self.reason in {None, letter.reason}
        )


@dataclass(frozen=True, slots=True)
class Page:
    """Some letters as they are shown, and the id to go on after.

    :ivar following: `None` when these are the last.
    """

    records: list[dict[str, Any]]
    following: str | None


async def page_of(
    store: DeadLetterStore,
    choice: Choice,
    limit: int,
    after: str = "",
    view: Callable[[DeadLetter], dict[str, Any]] | None = None,
) -> Page:
    """Read so many of the letters that are meant.

    :param after: the id of a letter, to begin behind it.
    :param view: makes of a letter what is shown; the letter itself is not kept. By
        default `as_json`.
    """
    records: list[dict[str, Any]] = []
    last = ""
    async with aclosing(store.read(after)) as letters:
        async for letter in letters:
            if not choice.has(letter):
                continue
            if len(records) == limit:
                return Page(records, last)
            records.append(letter.as_json() if view is None else view(letter))
            last = letter.id
            if len(records) == choice.most:
                break
    return Page(records, None)


async def drop(store: DeadLetterStore, choice: Choice) -> int:
    """Take the letters out that are meant.

    :returns: how many there were.
    """

    async def nothing(letters: Sequence[DeadLetter]) -> Sequence[None]:
        return [None] * len(letters)

    return await sweep(store, choice.has, nothing, choice.most)


async def retry(broker: AsyncBroker, store: DeadLetterStore, choice: Choice) -> int:
    """Send the letters again that are meant, and take them out after that.

    :param broker: it is started.
    :returns: how many there were.
    :raises Exception: when one cannot be sent; it stays, with those behind it.
    """

    async def send(letters: Sequence[DeadLetter]) -> Sequence[Exception | None]:
        messages = [restored(broker.formatter, letter) for letter in letters]
        return await broker.kick_many(messages)

    return await sweep(store, choice.has, send, choice.most)
