"""Plain tables that fit a terminal."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

#: What stands for a value that nobody can say.
UNKNOWN: Final = "not known"

_GAP: Final = "  "
_CUT: Final = "…"

#: Least width of a column that is cut.
_NARROWEST: Final = 6

_UNITS: Final = (["s"], ["min"], ["h"], ["d"])
_MINUTE: Final = 60
_HOUR: Final = 60 * _MINUTE
_DAY: Final = 24 * _HOUR


def table(
    titles: Sequence[str],
    rows: Sequence[Sequence[str]],
    width: int | None,
    spare: Sequence[str] = (),
    whole: Sequence[str] = (),
) -> list[str]:
    """Lay out rows under their titles, in lines.

    Columns of numbers are aligned on the right. When all is too wide for the terminal,
    spare columns are left out, and then texts are cut, the widest first. Numbers are
    not: half of one is another one.

    :param width: of the terminal, in characters; `None` for no limit.
    :param spare: titles of the columns to leave out, the first one first.
    :param whole: titles of the columns that are not cut either, as they are copied.
    """
    columns = [_Column(list(each)) for each in zip(titles, *rows, strict=True)]
    if width is not None:
        left_out = iter(spare)
        while _total(columns) > width and (title := next(left_out, None)) is not None:
            columns = [each for each in columns if each.cells[0] != title]
        texts = [
            each
            for each in columns
            if not each.is_number and each.cells[0] not in whole
        ]
        while _total(columns) > width and any(each.is_wide for each in texts):
            max(texts, key=lambda each: each.width).width -= 1
    return [
        _GAP.join(each.cell(number) for each in columns).rstrip()
        for number in range(len(rows) + 1)
    ]


class _Column:
    """The cells of one column, the title first."""

    def __init__(self, cells: list[str]) -> None:
        self.cells = cells
        self.width = max(map(len, cells))
        self.is_number = any(map(_has_number, cells[1:]))

    @property
    def is_wide(self) -> bool:
        return self.width > _NARROWEST

    def cell(self, number: int) -> str:
        text = _fit(self.cells[number], self.width)
        return text.rjust(self.width) if self.is_number else text.ljust(self.width)


def _total(columns: Sequence[_Column]) -> int:
    return sum(each.width for each in columns) + len(_GAP) * (len(columns) - 1)


def _fit(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - len(_CUT)] + _CUT


def _has_number(text: str) -> bool:
    first, *unit = text.split() or [""]
    return first.replace(".", "", 1).isdigit() and unit in ([], *_UNITS)


def prose(text: str, width: int | None) -> list[str]:
    """Break a text into lines that fit."""
    return [text] if width is None else textwrap.wrap(text, width)


def warning(text: str, width: int | None) -> list[str]:
    """Give a warning in lines, apart from what is before it."""
    return ["", *prose(f"Warning: {text}", width)]


def seconds(value: float | None, none: str = "-") -> str:
    """Write a time so that it is read at a glance: `0.05 s`, `12.3 s`, `4 min`.

    :param value: in seconds.
    :param none: what to write for `None`.
    """
    if value is None:
        return none
    for limit, text in (
        (9.995, f"{value:.2f} s"),
        (99.95, f"{value:.1f} s"),
        (10 * _MINUTE, f"{value:.0f} s"),
        (10 * _HOUR, f"{value / _MINUTE:.0f} min"),
        (3 * _DAY, f"{value / _HOUR:.0f} h"),
    ):
        if value < limit:
            return text
    return f"{value / _DAY:.0f} d"


def number(value: int | None) -> str:
    """Write a count that may not be known."""
    return UNKNOWN if value is None else str(value)
