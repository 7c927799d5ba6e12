"""JSON with the standard library."""

import json
from collections.abc import Callable
from typing import Any

from taskiq.abc.serializer import TaskiqSerializer


class JSONSerializer(TaskiqSerializer):
    """JSON with the standard library; the serializer brokers start with.

    :param default: makes a JSON value of an object `json` does not know.
    :param ensure_ascii: whether to escape what is not ASCII.
    """

    def __init__(
        self,
        default: Callable[..., None] | None = None,
        ensure_ascii: bool = True,
    ) -> None:
        self.default = default
        self.ensure_ascii = ensure_ascii

    def dumpb(self, value: Any) -> bytes:
        """Serialise a value.

        :param value: a value JSON knows, or `default` can handle.
        :returns: JSON in UTF-8.
        """
        return json.dumps(
            value,
            default=self.default,
            ensure_ascii=self.ensure_ascii,
        ).encode()

    def loadb(self, value: bytes) -> Any:
        """Read a JSON document.

        :param value: JSON in UTF-8.
        :returns: the value.
        """
        return json.loads(value.decode())
