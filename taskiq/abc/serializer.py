"""How messages and results become bytes."""

from abc import ABC, abstractmethod
from typing import Any


class TaskiqSerializer(ABC):
    """Turns plain values into bytes and back."""

    @abstractmethod
    def dumpb(self, value: Any) -> bytes:
        """Serialise a value.

        :param value: a value of the types the format knows.
        :returns: its bytes.
        """

    @abstractmethod
    def loadb(self, value: bytes) -> Any:
        """Read back what `dumpb` wrote.

        :param value: serialised bytes.
        :returns: the value.
        """
