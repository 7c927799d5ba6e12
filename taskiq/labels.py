"""Labels travel as text; this module turns values into it and back."""

import base64
import enum
from collections.abc import Callable
from typing import Any, Final

from taskiq.acks import AcknowledgeType


class LabelType(enum.IntEnum):
    """Codes of the label types, as they are written to messages."""

    ANY = 1
    INT = 2
    STR = 3
    FLOAT = 4
    BOOL = 5
    BYTES = 6


def _parse_any(value: Any) -> Any:
    return value


def _parse_bool(value: Any) -> bool:
    return str(value).lower() == "true"


_LABEL_PARSERS: Final[dict[int, Callable[[Any], Any]]] = {
    LabelType.ANY: _parse_any,
    LabelType.INT: int,
    LabelType.STR: str,
    LabelType.FLOAT: float,
    LabelType.BOOL: _parse_bool,
    LabelType.BYTES: base64.b64decode,
}


def _bytes_to_text(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _value_of_member(member: AcknowledgeType) -> str:
    return member.value


#: Looked up by exact type: a bool is no int here, and an enum member is neither.
_LABEL_PREPARERS: Final[dict[type, tuple[Callable[[Any], str], int]]] = {
    int: (str, LabelType.INT.value),
    str: (str, LabelType.STR.value),
    float: (str, LabelType.FLOAT.value),
    bool: (str, LabelType.BOOL.value),
    bytes: (_bytes_to_text, LabelType.BYTES.value),
    # Its `str()` is the name of the member, and workers only know the value.
    AcknowledgeType: (_value_of_member, LabelType.STR.value),
}
_ANY_PREPARER: Final = (str, LabelType.ANY.value)


def prepare_label(label_value: object) -> tuple[str, int]:
    """Turn a label's value into text for a message.

    :param label_value: any value; what is not exactly an int, str, float, bool or
        bytes comes back on the other side as its `str()`.
    :returns: the text and the code of its `LabelType`.
    """
    to_text, code = _LABEL_PREPARERS.get(type(label_value), _ANY_PREPARER)
    return to_text(label_value), code


def parse_label(label_value: Any, label_type: int | None = None) -> Any:
    """Turn a label of a message into the value it was made from.

    :param label_value: the label as it came in.
    :param label_type: code of its `LabelType`; `None` leaves the value as it is.
    :returns: the typed value.
    :raises ValueError: if the code is unknown or the value does not fit it.
    """
    if label_type is None:
        return label_value
    parser = _LABEL_PARSERS.get(label_type)
    if parser is None:
        known = ", ".join(f"{member.value} ({member.name})" for member in LabelType)
        raise ValueError(
            f"{label_type!r} is not a valid LabelType, use one of: {known}",
        )
    return parser(label_value)
