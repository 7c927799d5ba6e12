"""One dead letter: a message as it was, and labels that say why it is dead."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

#: What the names of the labels begin with.
PREFIX: Final = "X-Taskiq-dead-"
#: Labels that begin so are written by taskiq, and are taken off for a retry.
OWN_PREFIX: Final = "X-Taskiq-"

_TEXTS: Final = ("reason", "error", "queue", "task", "task-id", "id")
#: Most characters of one label: servers limit their headers.
_MOST: Final = 500


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that was put aside.

    :ivar data: its bytes, as the broker delivered them.
    :ivar reason: one of `taskiq.policies.Reason`.
    :ivar error: what it failed with, in one line.
    :ivar deliveries: how often it was delivered; `None` if that is not known.
    :ivar queue: where it came from; empty if that is not known.
    :ivar time: when it was put aside, in seconds since 1970.
    :ivar task_name: its task; empty if it cannot be read.
    :ivar task_id: its id; empty if it cannot be read.
    :ivar id: names the letter among the others.
    """

    data: bytes
    reason: str
    error: str = ""
    deliveries: int | None = None
    queue: str = ""
    time: float = 0.0
    task_name: str = ""
    task_id: str = ""
    id: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def labels(self) -> dict[str, str]:
        """Give what is said of it, as the labels it travels with."""
        told: dict[str, Any] = {
            "reason": self.reason,
            "error": self.error,
            "deliveries": "" if self.deliveries is None else self.deliveries,
            "queue": self.queue,
            "time": f"{self.time:.3f}",
            "task": self.task_name,
            "task-id": self.task_id,
            "id": self.id,
        }
        return {f"{PREFIX}{name}": _header(str(each)) for name, each in told.items()}

    def as_json(self) -> dict[str, Any]:
        """Give it as what `json` writes, without its bytes."""
        moment = datetime.fromtimestamp(self.time, timezone.utc)
        return {
            "id": self.id,
            "task_name": self.task_name,
            "task_id": self.task_id,
            "reason": self.reason,
            "error": self.error,
            "deliveries": self.deliveries,
            "queue": self.queue,
            "time": moment.isoformat(timespec="milliseconds"),
            "size": len(self.data),
        }


def letter_of(data: bytes, labels: Mapping[Any, Any], own_id: str = "") -> DeadLetter:
    """Make a letter of what a server gives; what somebody else put there is kept, too.

    :param labels: by name, as text or bytes.
    :param own_id: names it where its server does so.
    """
    told = {_text(name): _text(each) for name, each in labels.items()}
    reason, error, queue, task, task_id, letter_id = (
        told.get(f"{PREFIX}{name}", "") for name in _TEXTS
    )
    count = told.get(f"{PREFIX}deliveries", "")
    return DeadLetter(
        data=data,
        reason=reason,
        error=error,
        deliveries=int(count) if count.isdecimal() else None,
        queue=queue,
        time=_seconds(told.get(f"{PREFIX}time", "")),
        task_name=task,
        task_id=task_id,
        id=own_id or letter_id,
    )


def _header(text: str) -> str:
    """Write a label on one line that can be encoded, as headers of messages must be."""
    escaped = text[:_MOST].encode("utf-8", "backslashreplace").decode()
    return " ".join(escaped[:_MOST].split())


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
