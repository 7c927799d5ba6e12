"""CBOR."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from taskiq.abc.serializer import TaskiqSerializer
from taskiq.serializers._optional import import_optional

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Callable

    from cbor2 import CBORDecoder


class CBORSerializer(TaskiqSerializer):
    """CBOR; the arguments are the ones of `cbor2.dumps` and `cbor2.loads`.

    :param datetime_as_timestamp: whether datetimes are written as numbers.
    :param timezone: what a datetime without a time zone is taken to be in.
    :param value_sharing: whether an object met twice is written once.
    :param default: writes an object cbor2 does not know to the encoder.
    :param canonical: whether equal values always give equal bytes.
    :param date_as_datetime: whether dates are written as datetimes at midnight.
    :param string_referencing: whether a repeated string is written once.
    :param tag_hook: makes a value of a tag cbor2 does not know.
    :param object_hook: makes a value of every map.
    :raises ImportError: if cbor2 is not installed.
    """

    def __init__(
        self,
        datetime_as_timestamp: bool = True,
        timezone: dt.tzinfo | None = None,
        value_sharing: bool = False,
        default: Callable[[Any, Any], Any] | None = None,
        canonical: bool = False,
        date_as_datetime: bool = True,
        string_referencing: bool = True,
        tag_hook: Callable[[CBORDecoder, Any], Any] | None = None,
        object_hook: Callable[[CBORDecoder, dict[Any, Any]], Any] | None = None,
    ) -> None:
        cbor2 = import_optional("cbor2", extra="cbor")
        self._dumps: Callable[..., bytes] = cbor2.dumps
        self._loads: Callable[..., Any] = cbor2.loads
        self.datetime_as_timestamp = datetime_as_timestamp
        self.timezone = timezone
        self.value_sharing = value_sharing
        self.default = default
        self.canonical = canonical
        self.date_as_datetime = date_as_datetime
        self.string_referencing = string_referencing
        self.tag_hook = tag_hook
        self.object_hook = object_hook

    def dumpb(self, value: Any) -> bytes:
        """Serialise a value.

        :param value: a value cbor2 knows, or `default` can handle.
        :returns: CBOR.
        """
        return self._dumps(
            value,
            datetime_as_timestamp=self.datetime_as_timestamp,
            timezone=self.timezone,
            value_sharing=self.value_sharing,
            default=self.default,
            canonical=self.canonical,
            date_as_datetime=self.date_as_datetime,
            string_referencing=self.string_referencing,
        )

    def loadb(self, value: bytes) -> Any:
        """Read CBOR.

        :param value: CBOR.
        :returns: the value.
        """
        return self._loads(
            value,
            tag_hook=self.tag_hook,
            object_hook=self.object_hook,
        )
