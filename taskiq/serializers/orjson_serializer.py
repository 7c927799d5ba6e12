"""JSON with orjson."""

from collections.abc import Callable
from typing import Any

from taskiq.abc.serializer import TaskiqSerializer
from taskiq.serializers._optional import import_optional


class ORJSONSerializer(TaskiqSerializer):
    """JSON with orjson, which is faster and knows datetimes, UUIDs and dataclasses.

    :param default: makes a JSON value of an object orjson does not know.
    :param option: orjson's `OPT_...` flags.
    :raises ImportError: if orjson is not installed.
    """

    def __init__(
        self,
        default: Callable[[Any], Any] | None = None,
        option: int | None = None,
    ) -> None:
        orjson = import_optional("orjson", extra="orjson")
        self._dumps: Callable[..., bytes] = orjson.dumps
        self._loads: Callable[..., Any] = orjson.loads
        self.default = default
        self.option = option

    def dumpb(self, value: Any) -> bytes:
        """Serialise a value.

        :param value: a value orjson knows, or `default` can handle.
        :returns: JSON in UTF-8.
        """
        return self._dumps(value, default=self.default, option=self.option)

    def loadb(self, value: bytes) -> Any:
        """Read a JSON document.

        :param value: JSON in UTF-8.
        :returns: the value.
        """
        return self._loads(value)
