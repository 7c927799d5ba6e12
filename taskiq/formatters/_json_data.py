"""JSON data of values, except for the parts that JSON cannot hold."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any, Final

from pydantic import TypeAdapter

_ANYTHING: Final = TypeAdapter[Any](Any)

#: What becomes an object or an array, whatever is in it.
_CONTAINERS: Final = (dict, list, tuple, set, frozenset, deque)


def json_data_or_itself(value: Any) -> Any:
    """Turn a value into JSON data, and leave the parts that JSON cannot hold.

    Bytes that are text count as text, other bytes are left. So are iterators: the
    attempt to write them has read them already.

    :raises RecursionError: if it is nested deeper than Python can go.
    """
    return _converted(value, set())


def _converted(value: Any, above: set[int]) -> Any:
    container: Any = value  # for the type checkers, to which a list is one of unknowns
    if not isinstance(value, _CONTAINERS):
        return container if isinstance(value, Iterator) else _leaf(container)
    if id(container) in above:
        return container  # contains itself, which some serializers can write
    above.add(id(container))
    converted: Any
    if isinstance(value, dict):
        converted = {
            _key(key): _converted(item, above) for key, item in container.items()
        }
    else:
        converted = [_converted(item, above) for item in container]
    above.remove(id(container))
    return converted


def _key(key: Any) -> Any:
    if isinstance(key, str):
        return key
    written = _leaf({key: None})
    return next(iter(written))


def _leaf(value: Any) -> Any:
    try:
        return _ANYTHING.dump_python(value, mode="json")
    except Exception:  # noqa: BLE001 - the hooks of a value raise anything
        return value
