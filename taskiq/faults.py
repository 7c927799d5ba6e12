"""Which part of a value cannot be serialised, as a path that its author recognises."""

from __future__ import annotations

import dataclasses
import json
import reprlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, TypeAlias

from pydantic import BaseModel

#: Raises for a value that cannot be serialised; what it returns does not matter.
Dump: TypeAlias = Callable[[Any], object]

_MOST_STEPS_SHOWN: Final = 20
_MOST_CHARACTERS: Final = 200

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 60


@dataclasses.dataclass(frozen=True, slots=True)
class Fault:
    """A part of a value that cannot be serialised.

    :ivar path: where it stands, as one would write it in Python.
    :ivar kind: its type, with the module unless it is built in.
    :ivar error: what serialising it raised.
    """

    path: str
    kind: str
    error: Exception


@dataclasses.dataclass(frozen=True, slots=True)
class _Part:
    step: str
    value: Any
    #: What to dump in its place: a key can only be dumped in a dict.
    probe: Any


def find_fault(root: Any, path: str, dump: Dump) -> Fault | None:
    """Find the innermost part of a value that cannot be dumped.

    Each level is dumped once more, so this takes the time of as many dumps as the part
    is deep. Iterators are read by that, as they are by any serialiser.

    :param path: how to call the value itself.
    :param dump: raises for what it cannot dump, and holds for a part if and only if it
        would for the whole.
    :returns: `None` if the value can be dumped.
    """
    error = error_of(dump, root)
    if error is None:
        return None
    steps, value, above = [path], root, {id(root)}
    while (found := _bad_part(value, dump, above)) is not None:
        part, error = found
        steps.append(part.step)
        value = part.value
        above.add(id(value))
    return Fault(_joined(steps), kind_of(value), error)


def largest_part(root: Any, path: str) -> tuple[str, str]:
    """Find the part that makes a value large: the innermost with most of its bulk.

    :param path: how to call the value itself.
    :returns: path and type of the part.
    """
    steps, value, above = [path], root, {id(root)}
    bulk = _bulk_of(root)
    while True:
        parts = [part for part in _parts_of(value) if id(part.value) not in above]
        largest = max(parts, key=lambda part: _bulk_of(part.value), default=None)
        if largest is None or 2 * _bulk_of(largest.value) < bulk:
            return _joined(steps), kind_of(value)
        steps.append(largest.step)
        value, bulk = largest.value, _bulk_of(largest.value)
        above.add(id(value))


def kind_of(value: object) -> str:
    """Name the type of a value; a class is named itself, as it was hardly meant."""
    # Not by `isinstance`, which asks the value: a proxy of nothing would raise.
    if issubclass(type(value), type):
        named: Any = value
        return f"the class {_name_of(named)}"
    return _name_of(type(value))


def reason_of(error: BaseException) -> str:
    """Put the text of an error into one line that every serialiser can write."""
    try:
        text = " ".join(str(error).split())
    except Exception:  # noqa: BLE001 - it may come from the hooks of a user's value
        text = ""
    text = text or type(error).__name__
    if len(text) > _MOST_CHARACTERS:
        text = f"{text[:_MOST_CHARACTERS]}..."
    return text.encode("utf-8", "backslashreplace").decode()


def error_of(dump: Dump, value: Any) -> Exception | None:
    """Give what dumping a value raises, `None` if it can be dumped."""
    try:
        dump(value)
    except Exception as exc:  # noqa: BLE001 - serialisers and users' hooks raise anything
        return exc
    return None


def _name_of(cls: type) -> str:
    is_built_in = cls.__module__ == "builtins"
    return cls.__qualname__ if is_built_in else f"{cls.__module__}.{cls.__qualname__}"


def _bad_part(
    value: Any, dump: Dump, above: set[int]
) -> tuple[_Part, Exception] | None:
    for part in _parts_of(value):
        # What contains itself is at fault by that, and going on would not end.
        if id(part.value) in above:
            continue
        error = error_of(dump, part.probe)
        if error is not None:
            return part, error
    return None


def _parts_of(value: Any) -> Iterator[_Part]:
    """Walk the parts of a value, up to where it fails to show them."""
    try:
        yield from _shown_parts_of(value)
    except Exception:  # noqa: BLE001 - a closed shelf, a proxy of nothing: hooks of users
        return


def _shown_parts_of(value: Any) -> Iterator[_Part]:
    whole: Any = value  # for the type checkers, to which a list is one of unknowns
    if isinstance(value, Mapping):
        for key, item in whole.items():
            yield _Part(f"[{_shown(key)}]", item, item)
            # No serialiser refuses the usual keys.
            if type(key) is not str or not key.isascii():
                yield _Part(f" (the key {_shown(key)})", key, {key: None})
    elif isinstance(value, (list, tuple, set, frozenset, deque)):
        for index, item in enumerate(whole):
            yield _Part(f"[{index}]", item, item)
    elif isinstance(value, BaseModel):
        for name, item in vars(value).items():
            yield _Part(f".{name}", item, item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            item = getattr(value, field.name, None)
            yield _Part(f".{field.name}", item, item)


def _bulk_of(value: Any) -> int:
    """Estimate how much a value takes when it is written, in characters."""
    waiting: list[Any] = [value]
    met: set[int] = set()
    bulk = 0
    while waiting:
        each = waiting.pop()
        if isinstance(each, (str, bytes, bytearray)):
            bulk += len(each)
        elif id(each) not in met:
            met.add(id(each))  # a container that contains itself is looked at once
            waiting.extend(part.value for part in _parts_of(each))
            bulk += 1
    return bulk


def _shown(key: object) -> str:
    text = key if type(key) is str else None
    if text is None:
        return _short.repr(key)
    # In ASCII, and with the quotes that stand out in a text.
    return json.dumps(text if len(text) <= _short.maxstring else f"{text[:57]}...")


def _joined(steps: list[str]) -> str:
    if len(steps) > _MOST_STEPS_SHOWN:
        half = _MOST_STEPS_SHOWN // 2
        steps = [*steps[:half], "[...]", *steps[-half:]]
    return "".join(steps)
