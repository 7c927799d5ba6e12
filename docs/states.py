"""Draw the tables of `taskiq/receiver/states.py`: python docs/states.py

Writes docs/images/states.svg, which `tests/receiver/test_states.py` compares with the
tables. States stand in a row, in the order of their table; an arc above it is a way
on, one below it a way out. Under each state: what it holds.
"""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from taskiq.receiver.states import HOLDS, MOVES, BatchState, MessageState

if TYPE_CHECKING:
    from enum import Enum

DOCS: Final = Path(__file__).parent
TARGET: Final = DOCS / "images" / "states.svg"
PICTURES: Final[dict[str, Any]] = runpy.run_path(str(DOCS / "pictures.py"))

#: Pixels: the distance of two states, the size of their boxes, a line of text.
STEP, WIDTH, HEIGHT, LINE = 112, 96, 30, 15
#: Pixels: the margin, and how high the arc to the next state but `n` rises.
MARGIN, RISE = 60, 26
#: States that nothing leads to but giving up: the arcs to them run below.
WAYS_OUT: Final = frozenset({MessageState.LEFT})

STYLE: Final = """
.box { fill: none; stroke: #3d6b8f; stroke-width: 1.5 }
.name { font: 600 12px sans-serif; fill: #3d6b8f; text-anchor: middle }
.held { font: 11px sans-serif; fill: #7a7a7a; text-anchor: middle }
.on { fill: none; stroke: #3d6b8f; stroke-width: 1.2 }
.out { fill: none; stroke: #b0643c; stroke-width: 1.2; stroke-dasharray: 4 3 }
.title { font: 600 14px sans-serif; fill: #7a7a7a }
"""


def arc(start: int, end: int, y: int, *, is_out: bool) -> str:
    """Draw a move from one place in the row to another."""
    x1, x2 = (MARGIN + STEP * place + WIDTH // 2 for place in (start, end))
    rise = RISE * abs(end - start) + 8
    edge = y + HEIGHT if is_out else y
    top = edge + rise if is_out else edge - rise
    kind = "out" if is_out else "on"
    return (
        f'<path class="{kind}" marker-end="url(#{kind}-head)" '
        f'd="M{x1 + 10} {edge} C{x1 + 20} {top}, {x2 - 20} {top}, {x2 - 10} {edge}"/>'
    )


def row(states: type[Enum], title: str, y: int) -> list[str]:
    """Draw one table."""
    places = {state: place for place, state in enumerate(states)}
    drawn = [f'<text class="title" x="{MARGIN}" y="{y - 190}">{title}</text>']
    for state, place in places.items():
        x = MARGIN + STEP * place
        drawn.append(
            f'<rect class="box" x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" '
            f'rx="6"/>',
        )
        middle = x + WIDTH // 2
        drawn.append(
            f'<text class="name" x="{middle}" y="{y + 19}">{state.name}</text>',
        )
        for number, unit in enumerate(sorted(unit.name for unit in HOLDS[state])):
            below = y + HEIGHT + LINE * (number + 1)
            drawn.append(
                f'<text class="held" x="{middle}" y="{below}">{unit.lower()}</text>',
            )
        following = sorted(MOVES[state], key=places.__getitem__)
        drawn += [
            arc(place, places[each], y, is_out=each in WAYS_OUT) for each in following
        ]
    return drawn


def head(kind: str, colour: str) -> str:
    """Draw the point of an arrow."""
    return (
        f'<marker id="{kind}-head" viewBox="0 0 8 8" refX="6" refY="4" '
        f'markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0 L8 4 L0 8 z" fill="{colour}"/></marker>'
    )


def draw() -> str:
    """Give the picture of both tables."""
    width = 2 * MARGIN + STEP * (len(MessageState) - 1) + WIDTH
    parts = [
        f"<defs>{head('on', '#3d6b8f')}{head('out', '#b0643c')}</defs>",
        *row(MessageState, "A message, and what it holds", 210),
        *row(BatchState, "A batch, and what it holds", 700),
    ]
    title = "States of a message and of a batch"
    return PICTURES["picture"](title, width, 800, parts, style=STYLE)


if __name__ == "__main__":
    TARGET.write_text(draw(), encoding="utf-8")
