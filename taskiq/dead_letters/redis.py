"""Dead letters in Redis: a stream beside the queue, of whatever kind that is."""

# pyright: reportMissingImports=false, reportMissingTypeStubs=false
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
# The client belongs to the plugin, which may not be installed where types are checked.

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from taskiq.dead_letters._shared import SharedDeadLetters
from taskiq.dead_letters.letter import letter_of
from taskiq.exceptions import DeadLetterNotFoundError
from taskiq.queues import redis_client

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Collection, Sequence

    from taskiq.dead_letters.letter import DeadLetter

#: The field that has the bytes of the message, as in the streams of the plugin.
_DATA: Final = "data"
#: The ids of a stream say where an entry is, also when it is gone.
_ID: Final = re.compile(r"\d{1,20}-\d{1,20}", re.ASCII)
#: Letters of one round trip.
_PAGE: Final = 500


class RedisDeadLetters(SharedDeadLetters):
    """Keeps dead letters in a stream: the bytes in one field, each label in another.

    :param broker: whose server and settings are used.
    :param queue: key of the stream; by default that of the queue and `.dead`.
    """

    def __init__(self, broker: Any, queue: str | None) -> None:
        super().__init__(broker, queue or f"{broker.queue_name}.dead")

    async def _put_all(self, letters: Sequence[DeadLetter]) -> list[str | Exception]:
        async with redis_client(self._broker) as client:
            pipeline = client.pipeline(transaction=False)
            for letter in letters:
                pipeline.xadd(self.queue, {**letter.labels, _DATA: letter.data})
            replies: list[Any] = await pipeline.execute(raise_on_error=False)
        return [
            each if isinstance(each, Exception) else each.decode() for each in replies
        ]

    async def read(self, after: str = "") -> AsyncGenerator[DeadLetter, None]:
        """Give the letters, the oldest first."""
        if after and not _ID.fullmatch(after):
            raise DeadLetterNotFoundError(letter_id=after, queue=self.queue)
        async with redis_client(self._broker) as client:
            newest = await client.xrevrange(self.queue, count=1)
            end = newest[0][0] if newest else "-"
            while True:
                begin = f"({after}" if after else "-"
                entries = await client.xrange(self.queue, begin, end, count=_PAGE)
                for entry_id, fields in entries:
                    after = entry_id.decode()
                    data = fields.pop(_DATA.encode(), b"")
                    yield letter_of(data, fields, after)
                if len(entries) < _PAGE:
                    return

    async def remove(self, ids: Collection[str]) -> int:
        """Take letters out."""
        removed, left = 0, list(ids)
        async with redis_client(self._broker) as client:
            for begin in range(0, len(left), _PAGE):
                removed += await client.xdel(self.queue, *left[begin : begin + _PAGE])
        return removed
