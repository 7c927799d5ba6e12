"""`taskiq dead` on letters that are kept in memory."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import anyio
import pytest

from taskiq.cli.dead.cmd import DeadCMD
from taskiq.dead_letters import DeadLetter, InMemoryDeadLetters
from tests.support.brokers import QueueBroker

WIRE = (
    b'{"task_id":"%d","task_name":"t","labels":{"X-Taskiq-deliveries":"4"},'
    b'"labels_types":null,"args":[1],"kwargs":{}}'
)


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Iterator[QueueBroker]:
    # Its commands refuse what only another process could see; here it is this one.
    monkeypatch.setattr("taskiq.cli.dead.cmd._store", lambda app: app.dead_letter_store)
    module: Any = ModuleType("dead_app_in_memory")
    module.broker = broker = QueueBroker()
    sys.modules["dead_app_in_memory"] = module
    broker.dead_letter_store = store = InMemoryDeadLetters()
    for each in range(3):
        letter = DeadLetter(
            WIRE % each, "error", "boom", task_name=f"t{each}", task_id=f"{each}"
        )
        anyio.run(store.put, letter)
    yield broker
    del sys.modules["dead_app_in_memory"]


def call(capsys: pytest.CaptureFixture[str], what: str, *others: str) -> Any:
    status = DeadCMD().exec([what, "dead_app_in_memory:broker", *others, "--json"])
    seen = capsys.readouterr()
    assert status is None, seen.err
    return json.loads(seen.out)


@pytest.mark.usefixtures("broker")
def test_letters_are_listed_shown_and_dropped(
    capsys: pytest.CaptureFixture[str],
) -> None:
    page = call(capsys, "list", "--limit=2")
    assert [each["task_name"] for each in page["letters"]] == ["t0", "t1"]
    rest = call(capsys, "list", "--after", page["next"])
    assert [each["task_name"] for each in rest["letters"]] == ["t2"]
    assert call(capsys, "show", page["letters"][0]["id"])["args"] == [1]
    assert call(capsys, "drop", "--task=t1")["dropped"] == 1
    assert DeadCMD().exec(["list", "dead_app_in_memory:broker"]) is None
    assert "boom" in capsys.readouterr().out


@pytest.mark.usefixtures("broker")
def test_all_letters_are_changed_only_for_who_says_all(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert DeadCMD().exec(["drop", "dead_app_in_memory:broker"]) == 2
    assert "say --all" in capsys.readouterr().err
    assert call(capsys, "drop", "--all")["dropped"] == 3
    assert call(capsys, "list")["letters"] == []
