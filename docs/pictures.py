"""Draw the picture of a batch, the logo and the icon: python docs/pictures.py

Writes the files in TARGETS. `tests/test_site.py` compares them with what is drawn here,
and looks at the contrast of every text.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

DOCS: Final = Path(__file__).parent

#: The batch of the first example: what is sent, and the result of each.
WORDS: Final = ("many", "small", "calls", "become", "one")

#: The colours of the project; docs/assets/extra.css has them, too.
INK, PAPER, BLUE, COPPER, MIST = "#12283a", "#f2f6f9", "#7cc4ee", "#f0a171", "#b9cad6"
#: Behind a text of the picture.
CARD, PILL = INK, "#1e3b53"

#: Pixels: the picture, a pill and the distance of two, the top of the first.
WIDTH, HEIGHT = 640, 316
PILL_HEIGHT, STEP, TOP = 34, 46, 62
#: Pixels: left edge and width of the columns.
SENDS, CALL, RESULTS = (24, 172), (266, 166), (502, 114)

STYLE: Final = f"""
.card {{ fill: {CARD} }}
.pill {{ fill: {PILL} }}
.call {{ fill: {PILL}; stroke: {COPPER}; stroke-width: 2 }}
.line {{ fill: none; stroke: {BLUE}; stroke-width: 2 }}
.title {{ font: 600 17px system-ui, sans-serif; fill: {COPPER}; text-anchor: middle }}
.code {{ font: 16px ui-monospace, Menlo, Consolas, monospace; fill: {PAPER} }}
.value {{ fill: {BLUE} }}
.note {{ font: 14px system-ui, sans-serif; fill: {MIST}; text-anchor: middle }}
"""


def picture(
    title: str,
    width: float,
    height: float,
    parts: Iterable[str],
    *,
    style: str = "",
    is_sized: bool = False,
) -> str:
    """Put what is drawn into the frame that all pictures of the documentation have.

    :param is_sized: whether it is as wide on the page as it is drawn; else it is as
        wide as there is room.
    """
    size = f' width="{width:g}" height="{height:g}"' if is_sized else ""
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}"'
        f"{size}>",
        f"<title>{title}</title>",
        *([f"<style>{style}</style>"] if style else []),
        *parts,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def middle(column: tuple[int, int]) -> int:
    """Give the middle of a column."""
    return column[0] + column[1] // 2


def text(kind: str, x: int, y: int, content: str) -> str:
    """Draw a line of text."""
    return f'<text class="{kind}" x="{x}" y="{y}" xml:space="preserve">{content}</text>'


def value(content: object) -> str:
    """Mark a value within a line of code."""
    return f'<tspan class="value">{content}</tspan>'


def pill(column: tuple[int, int], number: int, content: str) -> list[str]:
    """Draw a rounded box with a line of code in it."""
    x, width = column
    y = TOP + STEP * number
    return [
        f'<rect class="pill" x="{x}" y="{y}" width="{width}" height="{PILL_HEIGHT}" '
        'rx="17"/>',
        text("code", x + 16, y + 22, content),
    ]


def link(start: int, end: int, number: int, *, is_out: bool) -> str:
    """Draw the way of one message into the call, or out of it."""
    outer = TOP + STEP * number + PILL_HEIGHT // 2
    inner = outer - 6 * (number - len(WORDS) // 2)
    y1, y2 = (inner, outer) if is_out else (outer, inner)
    bend = (start + end) // 2
    return (
        f'<path class="line" marker-end="url(#head)" '
        f'd="M{start} {y1} C{bend} {y1}, {bend} {y2}, {end} {y2}"/>'
    )


def draw_batch() -> str:
    """Draw many sends, one call and many results."""
    count = len(WORDS)
    bottom = TOP + STEP * (count - 1) + PILL_HEIGHT
    x, width = CALL
    parts = [
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="5" '
        f'markerHeight="5" orient="auto"><path d="M0 0 L8 4 L0 8 z" fill="{BLUE}"/>'
        "</marker></defs>",
        f'<rect class="card" width="{WIDTH}" height="{HEIGHT}" rx="14"/>',
        text("title", middle(SENDS), 40, f"{count} messages"),
        text("title", middle(CALL), 40, "1 call"),
        text("title", middle(RESULTS), 40, f"{count} results"),
        f'<rect class="call" x="{x}" y="{TOP}" width="{width}" '
        f'height="{bottom - TOP}" rx="14"/>',
        text("code", x + 20, TOP + 30, "lengths(["),
        text("code", x + 20, bottom - 18, "])"),
    ]
    for number, word in enumerate(WORDS):
        y = TOP + 30 + 28 * (number + 1)
        quoted = value(f"&quot;{word}&quot;")
        parts += [
            *pill(SENDS, number, f".kiq({quoted})"),
            link(SENDS[0] + SENDS[1] + 4, x - 5, number, is_out=False),
            text("code", x + 40, y, f"{quoted},"),
            link(x + width + 4, RESULTS[0] - 5, number, is_out=True),
            *pill(RESULTS, number, f"result {value(len(word))}"),
        ]
    parts += [
        text("note", middle(SENDS), HEIGHT - 14, "an id for each"),
        text("note", middle(CALL), HEIGHT - 14, "one list"),
        text("note", middle(RESULTS), HEIGHT - 14, "one for each"),
    ]
    title = "Many sends, one call, many results"
    return picture(title, WIDTH, HEIGHT, parts, style=STYLE, is_sized=True)


def mark(message: str, call: str) -> list[str]:
    """Draw three messages that become one call, 32 pixels wide."""
    rows = (6, 16, 26)
    ways = [
        f'<path d="M7 {y} C13 {y}, 13 16, 19 16" fill="none" stroke="{message}" '
        'stroke-width="2.5"/>'
        for y in rows
    ]
    dots = [f'<circle cx="5.5" cy="{y}" r="3.5" fill="{message}"/>' for y in rows]
    box = f'<rect x="18" y="8" width="12" height="16" rx="3.5" fill="{call}"/>'
    return [*ways, *dots, box]


def draw_mark(*background: str) -> Callable[[], str]:
    """Give what draws the logo, on a background if there is one."""

    def draw() -> str:
        parts = [*background, *mark(BLUE, COPPER)]
        return picture("taskiq with batching", 32, 32, parts)

    return draw


TARGETS: Final = {
    DOCS / "images" / "batch.svg": draw_batch,
    DOCS / "assets" / "logo.svg": draw_mark(),
    DOCS / "assets" / "favicon.svg": draw_mark(
        f'<rect x="-4" y="-4" width="40" height="40" fill="{INK}"/>',
    ),
}


if __name__ == "__main__":
    for target, draw in TARGETS.items():
        target.write_text(draw(), encoding="utf-8")
