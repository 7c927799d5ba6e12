"""Pickle."""

import pickle
from typing import Any

from taskiq.abc.serializer import TaskiqSerializer


class PickleSerializer(TaskiqSerializer):
    """Pickle; only for bytes that nobody else can write, as loading runs code.

    What JSON can hold is JSON data before it comes here, as with every serializer: a
    set or a tuple arrives as a list, NaN as `None`, a datetime as text, unless the
    annotation of the argument casts it back. Objects of your own are pickled.
    """

    def dumpb(self, value: Any) -> bytes:
        """Serialise a value.

        :param value: a value that can be pickled.
        :returns: its pickle.
        """
        return pickle.dumps(value)

    def loadb(self, value: bytes) -> Any:
        """Read a pickle.

        :param value: a pickle from a trusted place.
        :returns: the value.
        """
        return pickle.loads(value)  # noqa: S301 - this is what the class is for
