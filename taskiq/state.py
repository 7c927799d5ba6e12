"""Application state that a broker carries around."""

from collections import UserDict
from typing import Any


class TaskiqState(UserDict[str, Any]):
    """A dict whose items are attributes too: `state.x` is `state["x"]`.

    A missing attribute raises `AttributeError`, a missing item `KeyError`.
    """

    def __init__(self) -> None:
        # Attribute assignment writes items, and those need this dict first.
        self.__dict__["data"] = {}

    def __getattr__(self, name: str) -> Any:
        try:
            # copy and pickle ask for attributes before there is any data.
            return self.__dict__["data"][name]
        except KeyError:
            raise self._no_attribute(name) from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __delattr__(self, name: str) -> None:
        try:
            del self[name]
        except KeyError:
            raise self._no_attribute(name) from None

    def __str__(self) -> str:
        return f"TaskiqState({self.data!r})"

    @staticmethod
    def _no_attribute(name: str) -> AttributeError:
        return AttributeError(f"'TaskiqState' object has no attribute '{name}'")
