"""Both type checkers say of the files of `tests/typing` what those files expect.

Apart from the default suite, as each run takes seconds: `pytest tests/checkers`.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
TYPING = ROOT / "tests" / "typing"


def assert_passes(checker: str, *arguments: str | Path) -> None:
    """Run a checker where the project's settings are."""
    run = subprocess.run(  # noqa: S603 - our own command
        [sys.executable, "-m", checker, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_mypy_infers_the_pinned_types_and_refuses_what_is_wrong(
    cache: pytest.Cache,
) -> None:
    # A cache of its own: another mypy may be at work in the checkout.
    own_cache = cache.mkdir("mypy")
    assert_passes("mypy", "--strict", "--cache-dir", own_cache, TYPING)


def test_pyright_infers_the_pinned_types_and_refuses_what_is_wrong() -> None:
    assert_passes("pyright", "--project", TYPING, "--pythonpath", sys.executable)
