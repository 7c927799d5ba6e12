"""Both type checkers say of the files beside this one what those files expect."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from taskiq import AsyncBroker

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


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
    assert_passes("mypy", "--strict", "--cache-dir", own_cache, HERE)


def test_pyright_infers_the_pinned_types_and_refuses_what_is_wrong() -> None:
    assert_passes("pyright", "--project", HERE, "--pythonpath", sys.executable)


@pytest.mark.parametrize(
    "module", ["batch_tasks", "control_refused", "plain_tasks", "refused"]
)
def test_what_the_checkers_accept_is_registered_without_an_error(
    module: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Tasks of the shared broker would be found by the brokers of every other test.
    monkeypatch.setattr(AsyncBroker, "global_task_registry", {})
    names = vars(importlib.import_module(f"{__package__}.{module}"))
    tasks = [each for each in names.values() if hasattr(each, "original_func")]
    assert tasks
    assert all(names["broker"].find_task(task.task_name) is task for task in tasks)
