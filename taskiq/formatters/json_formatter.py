"""Compact JSON, whatever the broker's serializer is."""

from taskiq.abc.formatter import TaskiqFormatter
from taskiq.message import BrokerMessage, TaskiqMessage


class JSONFormatter(TaskiqFormatter):
    """Writes messages as compact JSON, independent of the broker's serializer."""

    def dumps(self, message: TaskiqMessage) -> BrokerMessage:
        """Make a message ready to be sent.

        :param message: the message.
        :returns: what the broker's `kick` receives.
        """
        return BrokerMessage(
            task_id=message.task_id,
            task_name=message.task_name,
            message=message.model_dump_json().encode(),
            labels=message.labels,
        )

    def loads(self, message: bytes) -> TaskiqMessage:
        """Read a received message.

        :param message: JSON as it came from the broker.
        :returns: the message, its labels not parsed yet.
        :raises pydantic.ValidationError: if the bytes are no JSON or no message.
        """
        return TaskiqMessage.model_validate_json(message)
