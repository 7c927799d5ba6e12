"""Draw the table `pacing` of docs/performance.md: python docs/pacing.py

Writes docs/images/pacing.svg; `tests/test_batch_rules.py` compares it with the table.
A row for each trace and target, a dot for each rule: how many times the calls of the
best fixed pair it needs. Where no pair holds the target the dot is hollow, and stands
for the 99th percentile instead.
"""

from __future__ import annotations

import math
import re
import runpy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

DOCS: Final = Path(__file__).parent
TARGET: Final = DOCS / "images" / "pacing.svg"
PICTURES: Final[dict[str, Any]] = runpy.run_path(str(DOCS / "pictures.py"))

#: Pixels: the names of the rows, a row, the place of a rule's name, a factor of ten.
LEFT, LINE, NAME, DECADE = 150, 18, 165, 200
#: The ratios at both ends, and those that have a line.
LOW, HIGH, LINES = 0.7, 130, (1, 2, 5, 10, 20, 50, 100)
#: Pixels: where the rows begin.
TOP: Final = 70
RULES: Final = {
    "ours": "waits for the target",
    "sketch": "as proposed",
    "mean": "mean wait",
}

STYLE: Final = """
.label { font: 11px sans-serif; fill: #7a7a7a; text-anchor: end }
.axis { font: 11px sans-serif; fill: #7a7a7a; text-anchor: middle }
.title { font: 600 14px sans-serif; fill: #7a7a7a }
.line { stroke: #7a7a7a; stroke-width: 0.4 }
.one { stroke: #7a7a7a; stroke-width: 1.2 }
.ours { fill: #3d6b8f; stroke: #3d6b8f }
.sketch { fill: #b0643c; stroke: #b0643c }
.mean { fill: #6f8f3d; stroke: #6f8f3d }
.hollow { fill: none }
.rule { font: 600 12px sans-serif; stroke: none }
"""


@dataclass(frozen=True)
class Row:
    """One trace and target, and the ratio of each rule; hollow ones are percentiles."""

    label: str
    ratios: tuple[float, ...]
    is_hollow: bool


def rows() -> list[Row]:
    """Read the first table between the comments."""
    page = (DOCS / "performance.md").read_text(encoding="utf-8")
    table = page.partition("<!-- table: pacing -->")[2].partition("<!-- end:")[0]
    found = []
    for line in re.findall(r"^\| (.+, \d+ ms \|.*) \|$", table, re.MULTILINE):
        label, *cells = (cell.strip() for cell in line.split("|"))
        ratios = [cell.partition(",")[0] for cell in cells[4:]]
        found.append(
            Row(
                label,
                tuple(float(ratio.rstrip("*")) for ratio in ratios),
                is_hollow=ratios[0].endswith("*"),
            ),
        )
    return found


def place(ratio: float) -> float:
    """Give the x of a ratio."""
    return LEFT + DECADE * math.log10(ratio / LOW)


def draw() -> str:
    """Give the picture."""
    found = rows()
    bottom, right = TOP + LINE * len(found), place(HIGH)
    parts = [
        '<text class="title" x="20" y="20">'
        "Calls to those of the best fixed pair (hollow: none holds the target)</text>",
    ]
    for number, (kind, name) in enumerate(RULES.items()):
        x = LEFT + NAME * number
        parts.append(f'<circle class="{kind}" cx="{x + 4}" cy="40" r="4"/>')
        parts.append(f'<text class="rule {kind}" x="{x + 14}" y="44">{name}</text>')
    for ratio in LINES:
        x, kind = place(ratio), "one" if ratio == 1 else "line"
        parts.append(
            f'<line class="{kind}" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 10}" '
            f'y2="{bottom}"/>',
        )
        parts.append(
            f'<text class="axis" x="{x:.1f}" y="{bottom + 16}">{ratio}</text>',
        )
    for number, row in enumerate(found):
        y = TOP + LINE * number
        parts.append(
            f'<text class="label" x="{LEFT - 8}" y="{y + 4}">{row.label}</text>',
        )
        hollow = " hollow" if row.is_hollow else ""
        for kind, ratio in zip(reversed(RULES), reversed(row.ratios), strict=True):
            parts.append(
                f'<circle class="{kind}{hollow}" cx="{place(ratio):.1f}" cy="{y}" '
                f'r="4"/>',
            )
    title = "Calls of each rule to those of the best fixed pair"
    width, height = round(right + 10), bottom + 30
    return PICTURES["picture"](title, width, height, parts, style=STYLE)


if __name__ == "__main__":
    TARGET.write_text(draw(), encoding="utf-8")
