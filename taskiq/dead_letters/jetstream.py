"""Dead letters in NATS JetStream: a stream of their own."""

# pyright: reportMissingImports=false, reportMissingTypeStubs=false
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
# The client belongs to the plugin, which may not be installed where types are checked.

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

from taskiq.bulk import run_bounded
from taskiq.dead_letters._shared import SharedDeadLetters
from taskiq.dead_letters.letter import letter_of
from taskiq.exceptions import DeadLetterNotFoundError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Collection, Sequence

    from taskiq.dead_letters.letter import DeadLetter

#: Letters that are fetched at once.
_PAGE: Final = 500
#: Seconds to wait for letters that the server has said are there.
_PATIENCE: Final = 5.0
#: What names of streams must not have.
_NOT_IN_NAMES: Final = str.maketrans(dict.fromkeys(".*> /\\", "_"))


class JetStreamDeadLetters(SharedDeadLetters):
    """Keeps dead letters in a stream: the bytes as they were, labels as headers.

    :param broker: whose servers and settings are used.
    :param queue: name of the stream and of its subject; by default that of the stream
        of the broker and `_dead`.
    """

    def __init__(self, broker: Any, queue: str | None) -> None:
        name = queue or f"{broker.stream_name}_dead"
        super().__init__(broker, name.translate(_NOT_IN_NAMES))

    @asynccontextmanager
    async def _open(self) -> AsyncGenerator[Any]:
        import nats  # noqa: PLC0415 - of the plugin

        broker = self._broker
        client = await nats.connect(broker.servers, **broker.connection_kwargs)
        try:
            context = client.jetstream()
            await context.add_stream(name=self.queue, subjects=[self.queue])
            yield context
        finally:
            await client.close()

    async def _put_all(self, letters: Sequence[DeadLetter]) -> list[str | Exception]:
        async with self._open() as context:

            async def publish(letter: DeadLetter) -> str:
                kept = await context.publish(
                    self.queue, letter.data, headers=letter.labels
                )
                return str(kept.seq)

            return await run_bounded(publish, letters, 100)

    async def read(self, after: str = "") -> AsyncGenerator[DeadLetter, None]:
        """Give the letters, the oldest first."""
        from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy  # noqa: PLC0415

        if after and not after.isdecimal():
            raise DeadLetterNotFoundError(letter_id=after, queue=self.queue)
        begin = int(after or 0) + 1
        async with self._open() as context:
            state = (await context.stream_info(self.queue)).state
            begin = max(begin, state.first_seq)
            if state.messages == 0 or begin > state.last_seq:
                return
            subscription = await context.pull_subscribe(
                self.queue,
                stream=self.queue,
                config=ConsumerConfig(
                    ack_policy=AckPolicy.NONE,
                    deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
                    opt_start_seq=begin,
                ),
            )
            left = (await subscription.consumer_info()).num_pending
            while left > 0:
                fetched = await subscription.fetch(min(left, _PAGE), timeout=_PATIENCE)
                left -= len(fetched)
                for message in fetched:
                    sequence = str(message.metadata.sequence.stream)
                    yield letter_of(message.data, message.headers or {}, sequence)

    async def remove(self, ids: Collection[str]) -> int:
        """Take letters out."""
        from nats.js.errors import APIError  # noqa: PLC0415 - of the plugin

        numbers = [int(each) for each in ids if each.isdecimal()]
        async with self._open() as context:
            deletions = [context.delete_msg(self.queue, each) for each in numbers]
            outcomes = await asyncio.gather(*deletions, return_exceptions=True)
        for each in outcomes:
            if isinstance(each, BaseException) and not isinstance(each, APIError):
                raise each
        return sum(each is True for each in outcomes)
