"""What `taskiq dead` does with letters: choosing, paging, sending again, dropping."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from taskiq.dead_letters.retry import restored

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Sequence

    from taskiq.abc.broker import AsyncBroker
    from taskiq.dead_letters import DeadLetter, DeadLetterStore

#: Letters of one round trip.
_AT_ONCE: Final = 1000


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

    def has(self, letter: DeadLetter) -> bool:
        """Whether a letter is meant."""
        return (
            (not self.ids or letter.id in self.ids)
            and self.task in {None, letter.task_name}
            and self.reason in {None, letter.reason}
        )


@dataclass(frozen=True, slots=True)
class Page:
    """Some letters, and the id to go on after; `None` when these are the last."""

    letters: list[DeadLetter]
    following: str | None


async def page_of(
    store: DeadLetterStore,
    choice: Choice,
    limit: int,
    after: str = "",
) -> Page:
    """Read so many of the letters that are meant.

    :param after: the id of a letter, to begin behind it.
    """
    letters: list[DeadLetter] = []
    reading = store.read(after)
    try:
        async for letter in reading:
            if not choice.has(letter):
                continue
            if len(letters) == limit:
                return Page(letters, letters[-1].id)
            letters.append(letter)
    finally:
        await reading.aclose()
    return Page(letters, None)


async def drop(store: DeadLetterStore, choice: Choice) -> int:
    """Take the letters out that are meant.

    :returns: how many there were.
    """

    async def nothing(letters: Sequence[DeadLetter]) -> Collection[str]:
        return [letter.id for letter in letters]

    return await _take_out(store, choice, nothing)


async def retry(broker: AsyncBroker, store: DeadLetterStore, choice: Choice) -> int:
    """Send the letters again that are meant, and take them out after that.

    :param broker: it is started.
    :returns: how many there were.
    :raises Exception: when one cannot be sent; it stays, with those behind it.
    """

    async def send(letters: Sequence[DeadLetter]) -> Collection[str]:
        messages = [restored(broker.formatter, letter) for letter in letters]
        outcomes = await broker.kick_many(messages)
        sent = [
            letter.id
            for letter, error in zip(letters, outcomes, strict=True)
            if error is None
        ]
        errors = [error for error in outcomes if error is not None]
        if errors:
            await store.remove(sent)
            raise errors[0]
        return sent

    return await _take_out(store, choice, send)


async def _take_out(
    store: DeadLetterStore,
    choice: Choice,
    work: Callable[[Sequence[DeadLetter]], Awaitable[Collection[str]]],
) -> int:
    """Do something with the letters that are meant, page by page, and take them out.

    What comes meanwhile is left: it may have come of this.
    """
    count = 0
    whole = [letter async for letter in store.read() if choice.has(letter)]
    for begin in range(0, len(whole), _AT_ONCE):
        count += await store.remove(await work(whole[begin : begin + _AT_ONCE]))
    return count
