"""Child script: draw a plot as SVG.

`plot FILE JSON`, where the JSON has the fields of `report.Plot`. The same values make
the same file, byte by byte.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt

from tests.benchmarks.children.clocks import report

INK = "#57606a"  # readable on a light page and on a dark one
COLOURS = ["#8c959f", "#0969da"]


def draw(file: str, plot: dict[str, Any]) -> None:
    """Draw it and write the file."""
    mpl.rcParams.update(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": plot["name"],
            "text.color": INK,
            "axes.labelcolor": INK,
            "axes.edgecolor": INK,
            "xtick.color": INK,
            "ytick.color": INK,
            "axes.spines.top": False,
            "axes.spines.right": False,
        },
    )
    height = 3.2 if plot["kind"] == "lines" else 1.2 + 0.42 * len(plot["x"])
    figure, axes = plt.subplots(figsize=(7, height), layout="constrained")
    if plot["kind"] == "lines":
        draw_lines(axes, plot)
    else:
        draw_bars(axes, plot)
    axes.set_title(plot["title"], loc="left", fontsize=11)
    axes.set_xlabel(plot["x_label"])
    axes.set_ylabel(plot["y_label"])
    if len(plot["series"]) > 1:
        axes.legend(frameon=False)
    figure.savefig(file, transparent=True, metadata={"Date": None})


def draw_lines(axes: Any, plot: dict[str, Any]) -> None:
    """Values over a scale of powers of ten."""
    for values, colour in zip(plot["series"].values(), COLOURS[1:], strict=True):
        axes.plot(plot["x"], values, marker="o", color=colour)
        for x, value in zip(plot["x"], values, strict=True):
            axes.annotate(
                f"{value:.0f}",
                (x, value),
                textcoords="offset points",
                xytext=(0, 6),
                ha="center",
                fontsize=8,
            )
    axes.set_xscale("log")
    axes.set_ylim(bottom=0, top=1.2 * max(map(max, plot["series"].values())))


def draw_bars(axes: Any, plot: dict[str, Any]) -> None:
    """A horizontal bar for each value, labelled with it."""
    series = list(plot["series"].items())
    width = 0.8 / len(series)
    colours = COLOURS if len(series) > 1 else COLOURS[1:]
    for number, ((label, values), colour) in enumerate(
        zip(series, colours, strict=True),
    ):
        places = [place + number * width for place in range(len(values))]
        bars = axes.barh(places, values, width * 0.92, label=label, color=colour)
        axes.bar_label(bars, fmt="{:,.4g}", padding=3, fontsize=8)
    middle = width * (len(series) - 1) / 2
    axes.set_yticks([place + middle for place in range(len(plot["x"]))], plot["x"])
    axes.invert_yaxis()
    axes.margins(x=0.12)


if __name__ == "__main__":
    draw(sys.argv[1], json.loads(sys.argv[2]))
    report({})
