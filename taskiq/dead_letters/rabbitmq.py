"""Dead letters in RabbitMQ: a durable queue of their own.

It is not the plugin's own dead-letter queue, where the server puts what is rejected.
"""

# pyright: reportMissingImports=false, reportMissingTypeStubs=false
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
# The client belongs to the plugin, which may not be installed where types are checked.

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from taskiq.bulk import run_bounded
from taskiq.dead_letters._shared import SharedDeadLetters
from taskiq.dead_letters.letter import letter_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Collection, Sequence

    from taskiq.dead_letters.letter import DeadLetter


class RabbitMQDeadLetters(SharedDeadLetters):
    """Keeps dead letters in a queue: the bytes as the body, labels as headers.

    AMQP knows no reading without taking. So letters are taken without acknowledgement,
    and are back in their places when the connection closes; nobody else sees them for
    as long.

    :param broker: whose server and settings are used.
    :param queue: name of the queue; by default that of the first queue and `.dead`.
    """

    def __init__(self, broker: Any, queue: str | None) -> None:
        named = [each.name for each in broker._task_queues]  # noqa: SLF001
        super().__init__(broker, queue or f"{named[0] if named else 'taskiq'}.dead")

    @asynccontextmanager
    async def _open(self) -> AsyncGenerator[tuple[Any, Any]]:
        import aio_pika  # noqa: PLC0415 - of the plugin

        broker = self._broker
        connection = await aio_pika.connect(broker.url, **broker._conn_kwargs)  # noqa: SLF001
        async with connection:
            # It confirms what is published, by default.
            channel = await connection.channel()
            # Classic: a quorum queue drops what was taken and put back often enough.
            arguments = {"x-queue-type": "classic"}
            queue = await channel.declare_queue(
                self.queue, durable=True, arguments=arguments
            )
            yield channel, queue

    async def _put_all(self, letters: Sequence[DeadLetter]) -> list[Any]:
        import aio_pika  # noqa: PLC0415 - of the plugin

        async with self._open() as (channel, _):

            async def publish(letter: DeadLetter) -> None:
                message = aio_pika.Message(
                    letter.data,
                    headers=dict(letter.labels),
                    message_id=letter.id,
                    delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
                )
                await channel.default_exchange.publish(
                    message, routing_key=self.queue, mandatory=True
                )

            return await run_bounded(publish, letters, 100)

    async def _take(self) -> AsyncGenerator[Any, None]:
        async with self._open() as (_, queue):
            # Some at once: one after the other each waits for a round trip.
            while True:
                count = min(queue.declaration_result.message_count or 1, 100)
                gets = [queue.get(no_ack=False, fail=False) for _ in range(count)]
                taken = await asyncio.gather(*gets)
                for message in taken:
                    if message is not None:
                        yield message
                if None in taken:
                    return

    async def read(self, after: str = "") -> AsyncGenerator[DeadLetter, None]:
        """Give the letters, the oldest first."""
        is_behind = not after
        async for message in self._take():
            letter = letter_of(message.body, message.headers, message.message_id or "")
            if is_behind:
                yield letter
            is_behind = is_behind or letter.id == after

    async def remove(self, ids: Collection[str]) -> int:
        """Take letters out."""
        wanted = set(ids)
        removed = 0
        taking = self._take()
        try:
            async for message in taking:
                if message.message_id in wanted:
                    await message.ack()
                    removed += 1
                    if removed == len(wanted):
                        break
        finally:
            await taking.aclose()
        return removed
