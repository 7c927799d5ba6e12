"""What the type checkers accept in the files beside this one is accepted at run time.

What they say of those files is looked at by `pytest tests/checkers`.
"""

from __future__ import annotations

import importlib

import pytest

from taskiq import AsyncBroker


@pytest.mark.parametrize(
    "module",
    [
        "batch_tasks",
        "contexts",
        "control_refused",
        "dependencies",
        "many",
        "many_refused",
        "plain_tasks",
        "refused",
    ],
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
