"""MessagePack."""

from collections.abc import Callable
from typing import Any

from taskiq.abc.serializer import TaskiqSerializer
from taskiq.serializers._optional import import_optional

#: msgpack's code for: read timestamps as aware datetimes in UTC.
_TIMESTAMP_AS_DATETIME = 3


class MSGPackSerializer(TaskiqSerializer):
    """MessagePack; the arguments are the ones of `msgpack.packb`.

    :param default: makes a known value of an object msgpack does not know.
    :param use_single_float: whether to write floats with 32 bits.
    :param use_bin_type: whether bytes and str are told apart.
    :param datetime: whether aware datetimes are written as timestamps.
    :raises ImportError: if msgpack is not installed.
    """

    def __init__(
        self,
        default: Callable[[Any], Any] | None = None,
        use_single_float: bool = False,
        use_bin_type: bool = True,
        datetime: bool = True,
    ) -> None:
        msgpack = import_optional("msgpack", extra="msgpack")
        self._packb: Callable[..., bytes] = msgpack.packb
        self._unpackb: Callable[..., Any] = msgpack.unpackb
        self.default = default
        self.use_single_float = use_single_float
        self.use_bin_type = use_bin_type
        self.datetime = datetime

    def dumpb(self, value: Any) -> bytes:
        """Serialise a value.

        :param value: a value msgpack knows, or `default` can handle.
        :returns: MessagePack.
        """
        return self._packb(
            value,
            default=self.default,
            use_single_float=self.use_single_float,
            use_bin_type=self.use_bin_type,
            datetime=self.datetime,
        )

    def loadb(self, value: bytes) -> Any:
        """Read MessagePack.

        :param value: MessagePack.
        :returns: the value; timestamps as aware datetimes in UTC.
        """
        return self._unpackb(value, timestamp=_TIMESTAMP_AS_DATETIME)
