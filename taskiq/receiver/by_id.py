"""Finding what is held by the ids of its messages: for those who abort."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_T = TypeVar("_T")


class ById(Generic[_T]):
    """What is held, by id: a look costs as much as it finds, however much is held.

    To keep it costs something for each message, and most processes never abort one: it
    is made where somebody looks for the first time.

    :param ids_of: gives the ids that something is found by, the same ones each time.
    :param held: what is held already.
    """

    __slots__ = ("_found", "_ids_of")

    def __init__(self, ids_of: Callable[[_T], Iterable[str]], held: Iterable[_T]):
        self._ids_of = ids_of
        # Several may have one id: a message that was delivered twice, items of a chunk.
        self._found: dict[str, dict[_T, None]] = {}
        for each in held:
            self.add(each)

    def __len__(self) -> int:
        """Count the ids that something is found by."""
        return len(self._found)

    def add(self, held: _T) -> None:
        """Note that something is held from now on."""
        for each in self._ids_of(held):
            self._found.setdefault(each, {})[held] = None

    def discard(self, held: _T) -> None:
        """Note that something is not held any more; it need not have been noted."""
        for each in self._ids_of(held):
            found = self._found.get(each)
            if found is not None:
                found.pop(held, None)
                if not found:
                    del self._found[each]

    def find(self, ids: Iterable[str]) -> list[_T]:
        """List what has one of these ids, each once."""
        found: dict[_T, None] = {}
        for each in ids:
            found.update(self._found.get(each, {}))
        return list(found)
