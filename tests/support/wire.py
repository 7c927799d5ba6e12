"""Messages made from plain descriptions, by this package or by another taskiq.

Run as a script it reads one description a line and writes what became of it. Another
interpreter may run it, so it imports nothing else of the tests.
"""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
import decimal
import enum
import json
import sys
import uuid
from typing import TYPE_CHECKING, Any, TypedDict

from pydantic import BaseModel

import taskiq
from taskiq import AsyncBroker, BrokerMessage
from taskiq.formatters.json_formatter import JSONFormatter
from taskiq.kicker import AsyncKicker

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable


class Case(TypedDict):
    """One sending: names as they are, values as `value_of` reads them."""

    task_name: str
    task_id: str
    labels: dict[str, Any]
    args: list[Any]
    kwargs: dict[str, Any]
    json_formatter: bool


@dataclasses.dataclass
class Point:
    """A dataclass among the arguments."""

    x: Any
    y: Any


class Document(BaseModel):
    """A model among the arguments."""

    title: str
    body: Any = None


class Level(enum.IntEnum):
    """An int that is none exactly."""

    LOW = 1
    HIGH = 2


class Colour(str, enum.Enum):
    """A string that is none exactly."""

    RED = "red"


MAKERS: dict[str, Callable[[Any], Any]] = {
    "list": lambda parts: [value_of(part) for part in parts],
    "tuple": lambda parts: tuple(value_of(part) for part in parts),
    "set": set,
    "dict": lambda pairs: {value_of(key): value_of(value) for key, value in pairs},
    "bytes": bytes.fromhex,
    "datetime": dt.datetime.fromisoformat,
    "date": dt.date.fromisoformat,
    "timedelta": lambda seconds: dt.timedelta(seconds=seconds),
    "uuid": uuid.UUID,
    "decimal": decimal.Decimal,
    "point": lambda parts: Point(value_of(parts[0]), value_of(parts[1])),
    "document": lambda body: Document(title="title", body=value_of(body)),
    "level": Level,
    "colour": Colour,
    "type": {"point": Point, "document": Document, "object": object}.__getitem__,
}


def value_of(described: Any) -> Any:
    """Make a value from JSON: a scalar is itself, ``[kind, content]`` is made."""
    if not isinstance(described, list):
        return described
    kind, content = described
    return MAKERS[kind](content)


class WireBroker(AsyncBroker):
    """Keeps the last message it was given."""

    last: BrokerMessage

    async def kick(self, message: BrokerMessage) -> None:
        self.last = message

    def listen(self) -> AsyncGenerator[bytes, None]:
        raise NotImplementedError


async def outcome_of(case: Case) -> dict[str, Any]:
    """Send what a case describes, and tell what the broker was given."""
    broker = WireBroker()
    if case["json_formatter"]:
        broker.with_formatter(JSONFormatter())
    labels = {name: value_of(each) for name, each in case["labels"].items()}
    kicker: AsyncKicker[..., Any] = AsyncKicker(case["task_name"], broker, labels)
    kicker.with_task_id(case["task_id"])
    args = [value_of(each) for each in case["args"]]
    kwargs = {name: value_of(each) for name, each in case["kwargs"].items()}
    try:
        await kicker.kiq(*args, **kwargs)
    except Exception:  # noqa: BLE001 - the refusal is the outcome, not its words
        return {"is_refused": True}
    sent = broker.last
    return {
        "task_id": sent.task_id,
        "task_name": sent.task_name,
        "labels": sent.labels,
        "message": sent.message.decode("latin-1"),
    }


def main() -> None:
    """Answer with the version of taskiq first, then each line of input."""
    say(taskiq.__version__)
    for line in sys.stdin:
        say(asyncio.run(outcome_of(json.loads(line))))


def say(answer: Any) -> None:
    """Write one line that the other side gets at once."""
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
