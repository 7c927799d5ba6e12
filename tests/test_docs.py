"""What the README and the guides show is what happens."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


def _blocks() -> list[tuple[str, str]]:
    return [
        (f"{page.relative_to(ROOT)}:{number}", block)
        for page in PAGES
        for number, block in enumerate(BLOCK.findall(page.read_text()), start=1)
    ]


@pytest.mark.parametrize(("where", "block"), _blocks(), ids=[w for w, _ in _blocks()])
def test_every_python_block_runs(where: str, block: str, tmp_path: Path) -> None:
    script = tmp_path / "block.py"
    script.write_text(block)
    _run(script)


def test_the_bulk_insert_example_shows_fewer_calls_with_the_same_results() -> None:
    shown = _run(ROOT / "docs" / "examples" / "batching" / "bulk_insert.py")
    assert re.search(r"one by one +10,000 ", shown)
    assert re.search(r"in batches +20 ", shown)


def _run(script: Path) -> str:
    done = subprocess.run(  # noqa: S603 - our own files
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=600,  # ten thousand commits on a busy disk
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
