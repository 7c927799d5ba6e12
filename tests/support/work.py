"""How much work something is, counted."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import FrameType


class Work:
    """Counts the lines that run inside of it: a measure that no clock disturbs."""

    def __init__(self) -> None:
        self.lines = 0
        self._before: Any = None

    def _ran(self, _frame: FrameType, _event: str, _argument: object) -> Any:
        self.lines += 1
        return self._ran

    def __enter__(self) -> None:
        self._before = sys.gettrace()
        sys.settrace(self._ran)

    def __exit__(self, *_error: object) -> None:
        sys.settrace(self._before)
