"""Putting tables and plots into the documentation."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from typing import TYPE_CHECKING

from tests.support.environments import say

if TYPE_CHECKING:
    from pathlib import Path

    from tests.benchmarks.environments import Interpreter
    from tests.benchmarks.report import Page, Plot


def publish(docs: Path, name: str, page: Page, plotter: Interpreter) -> None:
    """Replace a table in `performance.md` of the directory, and write its plots.

    The table stands between two comments, `<!-- table: NAME -->` and
    `<!-- end: NAME -->`; what is around them was written by people.

    :param plotter: an interpreter with matplotlib.
    :raises ValueError: when the comments are not there.
    """
    for plot in page.plots:
        draw(docs / "images", plot, plotter)
    images = [f"![{plot.title}](images/{plot.name}.svg)" for plot in page.plots]
    path = docs / "performance.md"
    text = replace_table(
        path.read_text(encoding="utf-8"),
        name,
        "\n\n".join([page.text, *images]),
    )
    path.write_text(text, encoding="utf-8")
    say(f"{path}: {name}")


def draw(directory: Path, plot: Plot, plotter: Interpreter) -> None:
    """Write one plot as SVG."""
    directory.mkdir(exist_ok=True)
    file = directory / f"{plot.name}.svg"
    plotter.run("plot", file, json.dumps(asdict(plot)))


def replace_table(text: str, name: str, table: str) -> str:
    """Put a table between its two comments."""
    begin, end = f"<!-- table: {name} -->", f"<!-- end: {name} -->"
    between = re.compile(f"(?<={re.escape(begin)}).*?(?={re.escape(end)})", re.DOTALL)
    if not between.search(text):
        raise ValueError(f"there is no place for the table: {begin} ... {end}")
    return between.sub(lambda _: f"\n\n{table}\n\n", text)
