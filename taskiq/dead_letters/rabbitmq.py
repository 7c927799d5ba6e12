"""Dead letters in RabbitMQ: a durable queue of their own.

It is not the plugin's own dead-letter queue, where the server puts what is rejected.
"""

# pyright: reportMissingImports=false, reportMissingTypeStubs=false
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
# The client belongs to the plugin, which may not be installed where types are checked.

from __future__ import annotations

from collections import deque
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

from taskiq.bulk import run_bounded
from taskiq.dead_letters._shared import SharedDeadLetters
from taskiq.dead_letters.letter import letter_of
from taskiq.dead_letters.sweep import first, in_groups, raise_first
from taskiq.exceptions import DeadLetterNotFoundError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Collection, Sequence

    from taskiq.dead_letters.letter import DeadLetter
    from taskiq.dead_letters.sweep import Wanted, Work

#: Letters that the server sends at once.
_WINDOW: Final = 500


class RabbitMQDeadLetters(SharedDeadLetters):
    """Keeps dead letters in a queue: the bytes as the body, labels as headers.

    AMQP knows no reading without taking. So letters are taken without acknowledgement,
    and are back in their places in the end, or when the connection breaks; nobody else
    sees them for as long.

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

    async def _put_all(self, letters: Sequence[DeadLetter]) -> list[str | Exception]:
        import aio_pika  # noqa: PLC0415 - of the plugin

        async with self._open() as (channel, _):

            async def publish(letter: DeadLetter) -> str:
                message = aio_pika.Message(
                    letter.data,
                    headers=dict(letter.labels),
                    message_id=letter.id,
                    delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
                )
                await channel.default_exchange.publish(
                    message, routing_key=self.queue, mandatory=True
                )
                return letter.id

            return await run_bounded(publish, letters, 100)

    @asynccontextmanager
    async def _take(
        self,
    ) -> AsyncGenerator[AsyncGenerator[tuple[DeadLetter, Any], None]]:
        """Take the letters that are there, and give back what is not acknowledged."""
        async with self._open() as (channel, queue):
            await channel.set_qos(prefetch_count=_WINDOW)
            taken = _taken(queue)
            try:
                yield taken
            finally:
                await taken.aclose()
                if not channel.is_closed:
                    client = await channel.get_underlay_channel()
                    await client.basic_nack(0, multiple=True, requeue=True)

    async def read(self, after: str = "") -> AsyncGenerator[DeadLetter, None]:
        """Give the letters, the oldest first."""
        is_behind = not after
        async with self._take() as taken:
            async for letter, _ in taken:
                if is_behind:
                    yield letter
                is_behind = is_behind or letter.id == after
        if not is_behind:
            raise DeadLetterNotFoundError(letter_id=after, queue=self.queue)

    async def remove(self, ids: Collection[str]) -> int:
        """Take letters out."""

        async def nothing(letters: Sequence[DeadLetter]) -> Sequence[None]:
            return [None] * len(letters)

        chosen = frozenset(ids)
        return await self.sweep(lambda each: each.id in chosen, nothing, len(chosen))

    async def sweep(self, wanted: Wanted, work: Work, most: int | None) -> int:
        """Do something with the letters that are meant, and take them out.

        It is one pass, and each is acknowledged where it was taken: who reads has the
        letters, and nobody else could take them out.
        """
        count = 0
        async with self._take() as taken:
            chosen = first(taken, lambda each: wanted(each[0]), most)
            async for group in in_groups(chosen):
                errors = await work([letter for letter, _ in group])
                for (_, message), error in zip(group, errors, strict=True):
                    if error is None:
                        await message.ack()
                        count += 1
                raise_first(errors)
        return count


async def _taken(queue: Any) -> AsyncGenerator[tuple[DeadLetter, Any], None]:
    """Give the letters that are there with their messages, in one pass.

    The server remembers those that were given and not acknowledged; here none is kept.
    """
    # The server counts at once, but gives behind what was given back before.
    arrived: deque[Any] = deque(await _next(queue))
    left = len(arrived) and 1 + (await queue.declare()).message_count

    async def arrive(message: Any) -> None:
        arrived.append(message)

    while left > 0:
        if not arrived:
            # A consumer is sent so many that it does not acknowledge, and no more: so
            # each window has one of its own. Its end is confirmed behind what was sent.
            await queue.cancel(await queue.consume(arrive))
        if not arrived:
            arrived += await _next(queue)
        if not arrived:
            return
        message = arrived.popleft()
        own_id = message.message_id or ""
        yield letter_of(message.body, message.headers, own_id), message
        left -= 1


async def _next(queue: Any) -> list[Any]:
    """Take the message that is next, if there is one."""
    message = await queue.get(no_ack=False, fail=False)
    return [] if message is None else [message]
