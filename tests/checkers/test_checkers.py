"""Both type checkers say of the files of `tests/typing` what those files expect.

The examples of the documentation are right to both of them, and need no plugin.

Apart from the default suite, as each run takes seconds: `pytest tests/checkers`.
"""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from taskiq import AsyncBroker, async_shared_broker

ROOT = Path(__file__).parent.parent.parent
TYPING = ROOT / "tests" / "typing"
PLUGIN = Path(__file__).parent / "plugin"
EXAMPLES = ROOT / "docs" / "examples"


def assert_passes(
    checker: str,
    *arguments: str | Path,
    directory: Path = ROOT,
) -> None:
    """Run a checker, by default where the project's settings are."""
    run = subprocess.run(  # noqa: S603 - our own command
        [sys.executable, "-m", checker, *arguments],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
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


def test_every_example_is_right_to_mypy(cache: pytest.Cache) -> None:
    own_cache = cache.mkdir("mypy-examples")
    assert_passes("mypy", "--strict", "--cache-dir", own_cache, EXAMPLES)


def test_every_example_is_right_to_pyright() -> None:
    # Some of the libraries they use have no types: that is left out of account.
    settings = Path(__file__).parent / "examples" / "pyrightconfig.json"
    assert_passes("pyright", "--project", settings, "--pythonpath", sys.executable)


def assert_mypy_with_the_plugin_passes(
    checked: Path,
    cache: Path,
    directory: Path = ROOT,
) -> None:
    settings = PLUGIN / "mypy.ini"
    assert_passes(
        "mypy",
        *("--config-file", settings, "--cache-dir", cache, checked),
        directory=directory,
    )


def test_mypy_with_the_plugin_takes_every_dependency_out(tmp_path: Path) -> None:
    package = shutil.copytree(PLUGIN, tmp_path / "plugin")
    assert_mypy_with_the_plugin_passes(package, tmp_path / "cache", tmp_path)

    # Now the functions of the other module, and its aliases, come out of the cache.
    with (package / "dependencies.py").open("a", encoding="utf-8") as file:
        file.write("# changed\n")
    assert_mypy_with_the_plugin_passes(package, tmp_path / "cache", tmp_path)


def test_mypy_with_the_plugin_says_the_same_of_what_needs_none(
    cache: pytest.Cache,
) -> None:
    assert_mypy_with_the_plugin_passes(TYPING, cache.mkdir("mypy-plugin"))


async def test_what_mypy_with_the_plugin_accepts_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(AsyncBroker, "global_task_registry", {})
    tasks: Any = importlib.import_module("tests.checkers.plugin.dependencies")

    monkeypatch.setattr(async_shared_broker, "_default_broker", tasks.broker)
    await tasks.marks_are_found()
    await tasks.the_item_of_a_batch_is_the_first_argument()
    await tasks.the_item_may_be_given_by_the_name_of_the_list()
    await tasks.it_is_the_same_for_every_way_to_register()
    await tasks.what_is_left_of_a_partial_is_sent()
    await tasks.broker.wait_all()

    results = tasks.broker.result_backend.results.values()
    assert len(results) == 58
    assert not [each.error for each in results if each.is_err]
