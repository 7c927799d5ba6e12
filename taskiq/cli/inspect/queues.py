"""`taskiq inspect queues`: how much waits in the queues of a broker."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from taskiq.cli.inspect.table import UNKNOWN, number, seconds, table
from taskiq.queues import TASKS, QueueDepth, queue_depths

if TYPE_CHECKING:
    from taskiq.abc.broker import AsyncBroker

#: Seconds a server has to answer.
_PATIENCE: Final = 5.0


class Seen(NamedTuple):
    """What a server said, and in words why it did not."""

    queues: list[QueueDepth]
    error: str | None


class Queues:
    """Asks the server of a broker, each time in the same event loop.

    :param broker: it is not started.
    """

    def __init__(self, broker: AsyncBroker) -> None:
        self._broker = broker
        # Clients keep connections, and those belong to a loop.
        self._loop = asyncio.new_event_loop()

    def look(self) -> Seen:
        """Ask how much waits now."""
        return self._loop.run_until_complete(self._ask())

    async def _ask(self) -> Seen:
        try:
            found = await asyncio.wait_for(queue_depths(self._broker), _PATIENCE)
        except asyncio.TimeoutError:
            return Seen([], f"The broker did not answer within {_PATIENCE:g} s.")
        except Exception as exc:  # noqa: BLE001 - whatever its client makes of it
            text = f"The broker cannot be asked: {type(exc).__name__}: {exc}"
            return Seen([], text)
        return Seen(found, None)

    def close(self) -> None:
        """Let go of the event loop."""
        self._loop.close()


def as_json(seen: Seen) -> dict[str, Any]:
    """Give what was seen as what `json` writes.

    `total` is what an autoscaler asks for: all messages to be run that are not
    acknowledged yet, as far as that is known.
    """
    return {
        "queues": [asdict(each) for each in seen.queues],
        "total": total(seen),
        "error": seen.error,
    }


def total(seen: Seen) -> int | None:
    """Count the messages to be run; `None` if not even those that wait are known."""
    to_run = [each for each in seen.queues if each.role == TASKS]
    depths = [each.depth for each in to_run if each.depth is not None]
    if len(depths) < len(to_run) or not to_run:
        return None
    return sum(depths) + sum(each.unacknowledged or 0 for each in to_run)


def lines(seen: Seen, width: int | None) -> list[str]:
    """Show what was seen to people."""
    told: list[str] = []
    if seen.queues:
        titles = ("QUEUE", "MESSAGES", "WAITING", "UNACKNOWLEDGED", "OLDEST")
        told += table(titles, [_row(each) for each in seen.queues], width)
    if seen.error is not None:
        told.append(seen.error)
    return told


def _row(queue: QueueDepth) -> tuple[str, ...]:
    is_empty = queue.depth == 0 and not queue.unacknowledged
    oldest = seconds(queue.oldest_age, "-" if is_empty else UNKNOWN)
    return (
        queue.name,
        queue.role,
        number(queue.depth),
        number(queue.unacknowledged),
        oldest,
    )
