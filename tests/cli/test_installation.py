"""A worker does not start with files of another taskiq among its own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import taskiq
from taskiq.cli.installation import MARKS, VERSION, check_installation
from tests.support.environments import EnvironmentNotMadeError, released_python

HOME_PAGE = Path(__file__).parents[2] / "docs" / "install.md"


ENTRY_POINTS = """
[taskiq_cli]
scheduler = taskiq.cli.scheduler.cmd:SchedulerCMD
worker = taskiq.cli.worker.cmd:WorkerCMD
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A directory like those that packages are installed in."""
    site = tmp_path / "site"
    package = Path(taskiq.__file__).parent
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(package, site / "taskiq", ignore=ignored)
    add_distribution(site, VERSION)
    return site


def add_distribution(site: Path, number: str) -> None:
    info = site / f"taskiq-{number}.dist-info"
    info.mkdir()
    text = f"Metadata-Version: 2.1\nName: taskiq\nVersion: {number}\n"
    (info / "METADATA").write_text(text)
    (info / "entry_points.txt").write_text(ENTRY_POINTS)


def run(site: Path, command: str) -> tuple[int, str]:
    done = subprocess.run(  # noqa: S603 - our own command
        [sys.executable, "-m", "taskiq", command, "no_such_app:thing"],
        cwd=site.parent,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr


def test_the_version_in_the_code_is_that_of_the_package() -> None:
    assert version("taskiq") == VERSION
    check_installation()


@pytest.mark.parametrize("command", ["worker", "scheduler"])
def test_a_released_version_in_the_same_directory_is_refused(
    site: Path,
    command: str,
) -> None:
    add_distribution(site, "0.13.0")
    status, told = run(site, command)
    assert status == 2
    lines = [line for line in told.splitlines() if "Another distribution" in line]
    assert len(lines) == 1
    assert f"version 0.13.0 is installed in {site}" in lines[0]
    shown = re.search("Another distribution.*guide", HOME_PAGE.read_text("utf-8"))
    assert shown is not None
    assert shown[0].replace("/app/lib", str(site)) in lines[0]


def test_a_file_without_our_mark_is_refused(site: Path) -> None:
    kicker = site / "taskiq" / "kicker.py"
    text = kicker.read_text("utf-8").replace("ManySender[_FuncParams, _ReturnType]", "")
    kicker.write_text(text.replace("class AsyncKicker()", GENERIC), "utf-8")
    status, told = run(site, "worker")
    assert status == 2
    assert "taskiq.kicker is not of this package" in told
    assert "Traceback" not in told


@pytest.fixture
def released() -> Path:
    """The files of the released package."""
    try:
        python = released_python()
    except EnvironmentNotMadeError as error:
        pytest.skip(f"there is no released taskiq: {error}")
    found = subprocess.run(  # noqa: S603 - our own environment
        [python, "-I", "-c", "import taskiq; print(taskiq.__path__[0])"],
        capture_output=True,
        text=True,
        check=True,
    )
    return Path(found.stdout.strip())


@pytest.mark.parametrize("is_mixed", [True, False], ids=["over ours", "alone"])
def test_with_all_files_of_the_released_package_the_import_that_we_advise_fails(
    released: Path,
    site: Path,
    is_mixed: bool,
) -> None:
    """Then it is its worker that starts, and nothing of ours is asked."""
    if not is_mixed:
        shutil.rmtree(site / "taskiq")
    shutil.copytree(released, site / "taskiq", dirs_exist_ok=True)
    advice = re.search(r"^import taskiq\S*", HOME_PAGE.read_text("utf-8"), re.MULTILINE)
    assert advice is not None
    done = subprocess.run(  # noqa: S603 - our own command
        [sys.executable, "-c", advice[0]],
        env={**os.environ, "PYTHONPATH": str(site)},
        cwd=site,
        capture_output=True,
        text=True,
        check=False,
    )
    error = r"^(ModuleNotFound|Import)Error: .*'taskiq\."
    assert re.search(error, done.stderr, re.MULTILINE)


GENERIC = "import typing\nclass AsyncKicker(typing.Generic[_FuncParams, _ReturnType])"


def test_without_either_it_is_the_application_that_is_looked_for(site: Path) -> None:
    status, told = run(site, "worker")
    assert status == 2
    assert "there is no module 'no_such_app'" in told


def test_what_is_looked_for_is_of_modules_that_there_are() -> None:
    for module, _, _ in MARKS:
        path = module.replace(".", "/") + ".py"
        assert (Path(taskiq.__file__).parents[1] / path).is_file()
