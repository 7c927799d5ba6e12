"""The rule of `conftest.py`: where CI is set, nothing may be skipped."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

SUITE = {
    "test_module.py": """
        import pytest
        pytest.importorskip("a_module_that_is_not_there")
    """,
    "test_functions.py": """
        import pytest

        @pytest.fixture
        def server():
            pytest.skip("no server")

        @pytest.mark.skip(reason="marked")
        def test_mark(): pass

        def test_fixture(server): pass

        def test_body(): pytest.skip("from the body")

        @pytest.mark.xfail(reason="known")
        def test_expected_failure(): assert False

        def test_passing(): pass
    """,
}


def run_suite(directory: Path, ci: str) -> str:
    """What pytest prints for the suite above, under a copy of our conftest."""
    shutil.copy(Path(__file__).with_name("conftest.py"), directory)
    for name, text in SUITE.items():
        lines = [line.removeprefix(" " * 8) for line in text.splitlines()]
        (directory / name).write_text("\n".join(lines), encoding="utf-8")
    (directory / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rA"]
    done = subprocess.run(  # noqa: S603 - our own command
        [*command, "--continue-on-collection-errors"],
        capture_output=True,
        check=False,
        cwd=directory,
        encoding="utf-8",
        env={**os.environ, "CI": ci, "PYTHONIOENCODING": "utf-8"},
    )
    return done.stdout


def test_without_ci_a_skip_stays_a_skip(tmp_path: Path) -> None:
    assert "1 passed, 4 skipped, 1 xfailed" in run_suite(tmp_path, "false")


def test_with_ci_every_kind_of_skip_is_a_failure_that_names_its_reason(
    tmp_path: Path,
) -> None:
    output = run_suite(tmp_path, "true")

    # Plugins of the machine may warn about what is not tested here.
    assert re.search(
        r"1 failed, 1 passed, 1 xfailed,( \d+ warnings?,)? 3 errors", output
    )
    for reason in (
        "a_module_that_is_not_there",
        "no server",
        "marked",
        "from the body",
    ):
        assert f"which CI forbids: Skipped: {reason}" in output or (
            f"Skipped: could not import '{reason}'" in output
        )
