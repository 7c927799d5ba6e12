"""The formatter brokers start with: it leaves the bytes to the serializer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

from taskiq.abc.formatter import TaskiqFormatter
from taskiq.formatters._json_data import json_data_or_itself
from taskiq.message import BrokerMessage, TaskiqMessage
from taskiq.serializers.json_serializer import JSONSerializer

if TYPE_CHECKING:
    from collections.abc import Callable

    from taskiq.abc.serializer import TaskiqSerializer

#: `BrokerMessage(...)` in half the time: it goes straight to the validator.
_broker_message_of: Final[Callable[[dict[str, Any]], BrokerMessage]] = (
    BrokerMessage.__pydantic_validator__.validate_python
)

#: `TaskiqMessage.model_validate_json` without the options nobody passes here.
_parse_json: Final[Callable[[bytes], TaskiqMessage]] = (
    TaskiqMessage.__pydantic_validator__.validate_json
)

#: Which fields of a message were given: every one that there is.
_FIELDS: Final = set(TaskiqMessage.model_fields)
_set_attribute: Final = object.__setattr__


class HasSerializer(Protocol):
    """What a formatter needs of a broker."""

    @property
    def serializer(self) -> TaskiqSerializer:
        """What messages are serialised with now."""
        ...


class ProxyFormatter(TaskiqFormatter):
    """Writes and reads messages with the serializer its broker has at that moment.

    :param broker: the broker whose serializer is used.
    """

    def __init__(self, broker: HasSerializer) -> None:
        self.broker = broker

    def dumps(self, message: TaskiqMessage) -> BrokerMessage:
        """Make a message ready to be sent.

        What JSON can hold becomes JSON data; anything else is left to the serializer.

        :param message: the message.
        :returns: what the broker's `kick` receives.
        :raises Exception: what the serializer raises for what it cannot write.
        """
        serializer = self.broker.serializer
        try:
            # JSON mode for every serializer, because workers and clients of every
            # version read each other's messages: a datetime travels as text in CBOR
            # too.
            payload = message.__pydantic_serializer__.to_python(message, mode="json")
        except Exception:  # noqa: BLE001 - values and their hooks raise anything
            # Not the last word: the serializer may know what JSON does not.
            payload = _with_foreign_values(message)
        return _broker_message_of(
            {
                "task_id": message.task_id,
                "task_name": message.task_name,
                "message": serializer.dumpb(payload),
                "labels": message.labels,
            },
        )

    def loads(self, message: bytes) -> TaskiqMessage:
        """Read a received message.

        :param message: bytes as they came from the broker.
        :returns: the message, its labels not parsed yet.
        :raises pydantic.ValidationError: if the bytes hold no message.
        """
        serializer = self.broker.serializer
        if type(serializer) is JSONSerializer:
            try:
                # Parsed and validated in one pass, a third of the time of two.
                parsed = _parse_json(message)
            except ValueError:
                # The serializer has the last word: it takes what this parser does not
                # (lone surrogates, deep nesting), and says what is wrong otherwise.
                pass
            else:
                # A set for each is a third of what a message that waits takes, and one
                # more object for the garbage collector to walk.
                _set_attribute(parsed, "__pydantic_fields_set__", _FIELDS)
                return parsed
        return TaskiqMessage.model_validate(serializer.loadb(message))


def _with_foreign_values(message: TaskiqMessage) -> dict[str, Any]:
    fields: dict[str, Any] = {"labels": {}, "args": [], "kwargs": {}}
    payload = message.model_copy(update=fields).model_dump(mode="json")
    for name in fields:
        payload[name] = json_data_or_itself(getattr(message, name))
    return payload
