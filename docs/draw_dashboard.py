"""Draw the dashboard from what a Prometheus answered: python docs/draw_dashboard.py

Writes docs/images/dashboard.svg. The panels, their places, units and legends are those
of the dashboard; the numbers were written by `docs/check_dashboard.py`. It is not what
Grafana draws, which has a style of its own. `tests/test_docs.py` compares the three.
"""

from __future__ import annotations

import json
import re
import runpy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

DOCS: Final = Path(__file__).parent
DASHBOARD: Final = DOCS / "guide" / "batching" / "taskiq-batches.json"
ANSWERS: Final = DASHBOARD.with_name("taskiq-batches-answers.json")
TARGET: Final = DOCS / "images" / "dashboard.svg"
PICTURES: Final[dict[str, Any]] = runpy.run_path(str(DOCS / "pictures.py"))

#: Pixels of a unit of Grafana's grid, and of what is around the lines of a panel.
COLUMN, ROW = 46, 24
LEFT, TOP, RIGHT, BOTTOM = 52, 28, 20, 62
#: Most pixels of a line of a legend, by the letters in it.
LETTER = 6.0
COLOURS: Final = ("#3d6b8f", "#b0643c", "#6f8f3d", "#8a5a9e", "#3f8f86", "#a08a2e")
STYLE: Final = """
.panel { fill: none; stroke: #7a7a7a; stroke-width: 0.6 }
.title { font: 600 13px sans-serif; fill: #7a7a7a }
.axis { font: 10px sans-serif; fill: #7a7a7a; text-anchor: end }
.time { font: 10px sans-serif; fill: #7a7a7a; text-anchor: middle }
.grid { stroke: #7a7a7a; stroke-width: 0.3 }
.legend { font: 10px sans-serif; fill: #7a7a7a }
.stat { font: 600 44px sans-serif; fill: #3d6b8f; text-anchor: middle }
.line { fill: none; stroke-width: 1.6; stroke-linejoin: round }
.area { fill-opacity: 0.5; stroke-width: 1 }
"""


@dataclass(frozen=True)
class Line:
    """A series: its name in the legend, and its values by seconds."""

    name: str
    values: dict[int, float]


def lines_of(panel: dict[str, Any], answers: dict[str, Any]) -> list[Line]:
    """Give what a panel shows."""
    return [
        Line(
            legend(target["legendFormat"], series["labels"]),
            {int(at): float(value) for at, value in series["values"]},
        )
        for target in panel["targets"]
        for series in answers[target["expr"]]
    ]


def legend(pattern: str, labels: dict[str, str]) -> str:
    """Name a series by its labels."""
    return re.sub(r"{{(\w+)}}", lambda found: labels[found[1]], pattern)


def stacked(lines: list[Line]) -> list[tuple[Line, dict[int, float]]]:
    """Put each series on those before it; give what is under it, too."""
    found: list[tuple[Line, dict[int, float]]] = []
    under = dict.fromkeys((at for line in lines for at in line.values), 0.0)
    for line in lines:
        top = {at: base + line.values.get(at, 0.0) for at, base in under.items()}
        found.append((Line(line.name, dict(sorted(top.items()))), under))
        under = top
    return found


def shown(value: float, unit: str) -> str:
    """Write a value with its unit."""
    if unit == "percentunit":
        return f"{100 * value:.3g} %"
    return f"{value:.3g}{ {'s': ' s', 'ops': '/s'}.get(unit, '') }".replace(" /", "/")


class Panel:
    """One panel, in its place."""

    def __init__(self, panel: dict[str, Any], lines: list[Line]) -> None:
        place = panel["gridPos"]
        self.title: str = panel["title"]
        defaults = panel["fieldConfig"]["defaults"]
        self.unit: str = defaults["unit"]
        self.is_stat = panel["type"] == "stat"
        stacking = defaults.get("custom", {}).get("stacking", {"mode": "none"})
        self.is_stacked = stacking["mode"] == "normal"
        self.x, self.y = COLUMN * place["x"] + 4, ROW * place["y"] + 4
        self.width, self.height = COLUMN * place["w"] - 8, ROW * place["h"] - 8
        self.lines = lines
        self.tops: list[tuple[Line, dict[int, float]]] = (
            stacked(lines) if self.is_stacked else [(line, {}) for line in lines]
        )
        self.end = max(at for line, _ in self.tops for at in line.values)
        values = (value for line, _ in self.tops for value in line.values.values())
        self.most = max(values, default=0) or 1.0

    def point(self, at: int, value: float) -> str:
        """Give where a value is."""
        across = self.width - LEFT - RIGHT
        down = self.height - TOP - BOTTOM
        x = self.x + LEFT + across * at / self.end
        y = self.y + TOP + down * (1 - value / self.most)
        return f"{x:.1f},{y:.1f}"

    def draw(self) -> list[str]:
        """Draw it."""
        frame = [
            f'<rect class="panel" x="{self.x}" y="{self.y}" width="{self.width}" '
            f'height="{self.height}" rx="4"/>',
            f'<text class="title" x="{self.x + 10}" y="{self.y + 18}">'
            f"{self.title}</text>",
        ]
        if not self.is_stat:
            return [*frame, *self.draw_axes(), *self.draw_lines(), *self.draw_legend()]
        *_, last = self.lines[0].values.values()
        x, y = self.x + self.width / 2, self.y + self.height / 2 + 20
        return [
            *frame,
            f'<text class="stat" x="{x:.0f}" y="{y:.0f}">{shown(last, self.unit)}'
            "</text>",
        ]

    def draw_axes(self) -> list[str]:
        """Draw three levels and three moments."""
        parts: list[str] = []
        for part in (0.0, 0.5, 1.0):
            value = self.most * part
            x, y = self.point(0, value).split(",")
            right = self.point(self.end, value).split(",")[0]
            parts += [
                f'<line class="grid" x1="{x}" x2="{right}" y1="{y}" y2="{y}"/>',
                f'<text class="axis" x="{float(x) - 5:.1f}" y="{float(y) + 3:.1f}">'
                f"{shown(value, self.unit)}</text>",
            ]
            at = round(self.end * part)
            x, y = self.point(at, 0).split(",")
            parts.append(
                f'<text class="time" x="{x}" y="{float(y) + 13:.1f}">{at} s</text>',
            )
        return parts

    def draw_lines(self) -> list[str]:
        """Draw the series, those that are stacked as areas."""
        parts: list[str] = []
        for number, (line, under) in enumerate(self.tops):
            colour = COLOURS[number % len(COLOURS)]
            top = [self.point(at, value) for at, value in line.values.items()]
            if self.is_stacked:
                base = [self.point(at, under[at]) for at in reversed(line.values)]
                shape = f'<polygon class="area" fill="{colour}"'
                points = " ".join([*top, *base])
            else:
                shape, points = '<polyline class="line"', " ".join(top)
            parts.append(f'{shape} stroke="{colour}" points="{points}"/>')
        return parts

    def draw_legend(self) -> list[str]:
        """Name the series, in lines below."""
        parts: list[str] = []
        left = x = self.x + LEFT - 30.0
        y = self.y + self.height - BOTTOM + 30
        for number, line in enumerate(self.lines):
            colour = COLOURS[number % len(COLOURS)]
            wide = 16 + LETTER * len(line.name)
            if x > left and x + wide > self.x + self.width:
                x, y = left, y + 13
            parts += [
                f'<rect x="{x:.0f}" y="{y - 7}" width="9" height="7" fill="{colour}"/>',
                f'<text class="legend" x="{x + 13:.0f}" y="{y}">{line.name}</text>',
            ]
            x += wide + 8
        return parts


def draw() -> str:
    """Give the picture."""
    dashboard = json.loads(DASHBOARD.read_text("utf-8"))
    answers = {
        each["query"]: each["series"] for each in json.loads(ANSWERS.read_text("utf-8"))
    }
    panels = [Panel(each, lines_of(each, answers)) for each in dashboard["panels"]]
    width, height = 24 * COLUMN, max(each.y + each.height for each in panels) + 4
    title = "The panels of the dashboard, with the numbers of a worker"
    parts = (part for panel in panels for part in panel.draw())
    return PICTURES["picture"](title, width, height, parts, style=STYLE)


if __name__ == "__main__":
    TARGET.write_text(draw(), encoding="utf-8")
