"""Where dead letters go: a queue of the same broker, if it has one.

A broker of one's own says it with `dead_letter_store`. Those of the known plugins are
recognised by their classes; nothing of a plugin is imported before it is needed.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, Protocol

from taskiq.exceptions import DeadLetterNotFoundError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Collection

    from taskiq.abc.broker import AsyncBroker
    from taskiq.dead_letters.letter import DeadLetter


class DeadLetterStore(Protocol):
    """Keeps dead letters, the oldest first."""

    @property
    def queue(self) -> str:
        """Name what they are in."""
        ...

    @property
    def is_shared(self) -> bool:
        """Whether other processes see the same letters."""
        ...

    async def put(self, letter: DeadLetter) -> str | None:
        """Keep one more letter.

        :returns: the id that it is read by here; `None` if that is its own.
        :raises Exception: when it is not known to be kept.
        """
        ...

    def read(self, after: str = "") -> AsyncGenerator[DeadLetter, None]:
        """Give the letters that are there, the oldest first, without taking them out.

        What is put meanwhile is not given: it may have come of what was. Letters that
        were given may be removed meanwhile, or the store has a `sweep` of its own, as
        `taskiq.dead_letters.sweep.SweptStore`.

        :param after: the id of a letter, to begin behind it; from the first if empty.
        :raises DeadLetterNotFoundError: there is no such letter, and its id does not
            say where it was.
        """
        ...

    async def remove(self, ids: Collection[str]) -> int:
        """Take letters out.

        :param ids: of letters; one that is not there is left out.
        :returns: how many were there.
        """
        ...


class InMemoryDeadLetters:
    """Keeps dead letters in this process: for tests, and for small programs.

    :ivar letters: all of them, the oldest first.
    """

    queue = "memory"
    is_shared = False

    def __init__(self) -> None:
        self.letters: list[DeadLetter] = []

    async def put(self, letter: DeadLetter) -> str | None:
        """Keep one more letter."""
        self.letters.append(letter)
        return letter.id

    async def read(self, after: str = "") -> AsyncGenerator[DeadLetter, None]:
        """Give the letters, the oldest first."""
        ids = ["", *(letter.id for letter in self.letters)]
        if after not in ids:
            raise DeadLetterNotFoundError(letter_id=after, queue=self.queue)
        begin = ids.index(after)
        for letter in self.letters[begin:]:
            yield letter

    async def remove(self, ids: Collection[str]) -> int:
        """Take letters out."""
        wanted = set(ids)
        kept = [each for each in self.letters if each.id not in wanted]
        removed = len(self.letters) - len(kept)
        self.letters[:] = kept
        return removed


#: The module and the class that keep the letters of a broker, by the package and name
#: of its class; adapters are subclasses of it.
_KNOWN: Final = {
    **dict.fromkeys(
        (
            "taskiq_redis.ListQueueBroker",
            "taskiq_redis.ListQueueClusterBroker",
            "taskiq_redis.ListQueueSentinelBroker",
            "taskiq_redis.PubSubBroker",
            "taskiq_redis.PubSubSentinelBroker",
            "taskiq_redis.RedisStreamBroker",
            "taskiq_redis.RedisStreamClusterBroker",
            "taskiq_redis.RedisStreamSentinelBroker",
        ),
        ("taskiq.dead_letters.redis", "RedisDeadLetters"),
    ),
    "taskiq_aio_pika.AioPikaBroker": (
        "taskiq.dead_letters.rabbitmq",
        "RabbitMQDeadLetters",
    ),
    **dict.fromkeys(
        (
            "taskiq_nats.PullBasedJetStreamBroker",
            "taskiq_nats.PushBasedJetStreamBroker",
        ),
        ("taskiq.dead_letters.jetstream", "JetStreamDeadLetters"),
    ),
}


def store_of(broker: AsyncBroker) -> DeadLetterStore | None:
    """Give what keeps the dead letters of a broker, `None` if there is no such place.

    The same one is given each time.
    """
    known_store = broker.dead_letter_store or broker.found_dead_letter_store
    if known_store is not None:
        return known_store
    for kind in type(broker).__mro__:
        known = _KNOWN.get(f"{kind.__module__.partition('.')[0]}.{kind.__name__}")
        if known is not None:
            module, name = known
            make: Any = getattr(import_module(module), name)
            broker.found_dead_letter_store = make(broker, broker.dead_letter_queue)
            return broker.found_dead_letter_store
    return None
