"""Showing something once, or again and again in its place."""

from __future__ import annotations

import os
import shutil
import sys
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

#: Goes to the upper left corner; clears what is behind it on the line, and below it.
_HOME: Final = "\x1b[H"
_CLEAR_LINE: Final = "\x1b[K"
_CLEAR_REST: Final = "\x1b[J"


def width_of_terminal() -> int | None:
    """Give the width that lines have to fit in; `None` where they go elsewhere."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def watch(paint: Callable[[], list[str]], interval: float) -> None:
    """Paint a screen again and again, until Ctrl-C.

    What does not fit below the edge of a terminal is left out. Where the output is no
    terminal one screen follows the other, with an empty line between.

    :param paint: gives the lines.
    :param interval: seconds from one to the next.
    """
    is_terminal = sys.stdout.isatty()
    if is_terminal:
        if sys.platform == "win32":
            os.system("")  # noqa: S605, S607 - makes old consoles understand the rest
        sys.stdout.write(f"{_HOME}{_CLEAR_REST}")
    try:
        while True:
            sys.stdout.write(_screen(paint()) if is_terminal else _block(paint()))
            sys.stdout.flush()
            time.sleep(interval)
    except KeyboardInterrupt:
        sys.stdout.write("\n")
    except BrokenPipeError:
        # Who read it has gone. The interpreter would try to write the rest at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _screen(lines: list[str]) -> str:
    height = shutil.get_terminal_size().lines - 1
    shown = "".join(f"{line}{_CLEAR_LINE}\n" for line in lines[:height])
    return f"{_HOME}{shown}{_CLEAR_REST}"


def _block(lines: list[str]) -> str:
    return "".join(f"{line}\n" for line in [*lines, ""])
