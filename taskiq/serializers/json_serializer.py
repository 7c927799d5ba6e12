"""JSON with the standard library."""

import json
from collections.abc import Callable
from json import encoder
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
        if self.default is None and self.ensure_ascii:
            return _dumps(value).encode()
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


def _refuse(value: object) -> Any:
    raise TypeError(f"{value!r} is no JSON value")


def _make_dumps() -> Callable[[Any], str]:
    """Make a `json.dumps` without options that takes half of its time.

    That one makes an encoder in C for each value; here is one for all. It keeps no
    track of what it is in, so what contains itself ends at the limit of recursion.
    """
    make_encoder = getattr(encoder, "c_make_encoder", None)
    if make_encoder is None:  # pragma: no cover - a Python without it
        return json.dumps
    chunks_of = make_encoder(
        None,  # no track of what it is in
        _refuse,
        encoder.encode_basestring_ascii,
        None,  # no indentation
        ": ",
        ", ",
        False,  # keys in their order
        False,  # keys of other types are an error
        True,  # NaN is written
    )

    def dumps(value: Any) -> str:
        try:
            return "".join(chunks_of(value, 0))
        except (TypeError, ValueError, RecursionError):
            return json.dumps(value)  # which says what is wrong

    return dumps


_dumps = _make_dumps()
