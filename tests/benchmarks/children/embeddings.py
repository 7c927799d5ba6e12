"""Child script: sentence embeddings, by the example that the documentation shows.

`embeddings WAY TEXTS`, where the ways are those of the example. Loading the model is
not measured.
"""

from __future__ import annotations

import asyncio
import runpy
import sys
from pathlib import Path

from tests.benchmarks.children.clocks import report

DOCS = Path(__file__).resolve().parents[3] / "docs"
EXAMPLE = DOCS / "examples" / "batching" / "sentence_embeddings.py"


def main(way: str, count: int) -> None:
    """Run a way and report it."""
    example = runpy.run_path(str(EXAMPLE))
    model, texts = example["warm_model"](), example["make_texts"](count)
    outcome = asyncio.run(example["run"](model, way, texts))
    assert len(outcome.vectors) == count
    report({"wall": outcome.wall, "cpu": outcome.cpu})


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
