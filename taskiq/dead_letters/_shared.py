"""What the stores of dead letters on servers have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from taskiq.bulk import GroupCommit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from taskiq.dead_letters.letter import DeadLetter


class SharedDeadLetters(ABC):
    """Keeps letters on the server of a broker, those that come together at once.

    :param broker: whose server and settings are used.
    :param queue: names what the letters are in.
    """

    is_shared = True

    def __init__(self, broker: Any, queue: str) -> None:
        self._broker = broker
        self.queue = queue
        self._puts = GroupCommit(self._put_all)

    async def put(self, letter: DeadLetter) -> str:
        """Keep one more letter, with others that come meanwhile; gives its id here."""
        return await self._puts.submit(letter)

    @abstractmethod
    async def _put_all(self, letters: Sequence[DeadLetter]) -> list[str | Exception]:
        """Keep letters; gives the id of each, or why it is not known to be kept."""
