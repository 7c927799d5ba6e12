"""How a message becomes what a broker sends."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from taskiq.message import BrokerMessage, TaskiqMessage


class TaskiqFormatter(ABC):
    """Turns messages into broker messages, and received bytes into messages."""

    @abstractmethod
    def dumps(self, message: TaskiqMessage) -> BrokerMessage:
        """Make a message ready to be sent.

        :param message: the message.
        :returns: what the broker's `kick` receives.
        """

    @abstractmethod
    def loads(self, message: bytes) -> TaskiqMessage:
        """Read a received message.

        :param message: bytes as they came from the broker.
        :returns: the message, its labels not parsed yet.
        """
