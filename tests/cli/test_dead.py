"""`taskiq dead` on letters that are kept in memory."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import anyio
import pytest

from taskiq import BrokerMessage
from taskiq.cli.dead.cmd import DeadCMD
from taskiq.dead_letters import DeadLetter, InMemoryDeadLetters
from tests.support.brokers import QueueBroker

WIRE = (
    b'{"task_id":"%d","task_name":"t","labels":{"X-Taskiq-deliveries":"4"},'
    b'"labels_types":null,"args":[1],"kwargs":{}}'
)


class SharedLetters(InMemoryDeadLetters):
    """Letters that others see: commands of this process, in place of a server."""

    is_shared = True


class RefusingBroker(QueueBroker):
    """Sends all but the messages of some ids."""

    refused: frozenset[str] = frozenset()

    async def kick(self, message: BrokerMessage) -> None:
        if message.task_id in self.refused:
            raise ConnectionError("the server is away")
        await super().kick(message)


@pytest.fixture
def broker() -> Iterator[RefusingBroker]:
    module: Any = ModuleType("dead_app_in_memory")
    module.broker = broker = RefusingBroker()
    sys.modules["dead_app_in_memory"] = module
    store = SharedLetters()
    broker.with_dead_letters(store=store)
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
def test_nobody_reads_on_behind_a_letter_that_is_gone(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert DeadCMD().exec(["list", "dead_app_in_memory:broker", "--after=gone"]) == 1
    assert "no dead letter gone in memory, or no more: begin without --after" in (
        capsys.readouterr().err
    )


@pytest.mark.usefixtures("broker")
def test_all_letters_are_changed_only_for_who_says_all(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert DeadCMD().exec(["drop", "dead_app_in_memory:broker"]) == 2
    assert "say --all" in capsys.readouterr().err
    assert call(capsys, "drop", "--all")["dropped"] == 3
    assert call(capsys, "list")["letters"] == []


def test_a_retry_sends_what_is_meant_and_keeps_the_others(
    broker: RefusingBroker, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(capsys, "retry", "--task=t1")["retried"] == 1
    assert [each.task_id for each in broker.take_all()] == ["1"]
    left = call(capsys, "list")["letters"]
    assert [each["task_name"] for each in left] == ["t0", "t2"]


def test_what_cannot_be_sent_again_stays(
    broker: RefusingBroker, capsys: pytest.CaptureFixture[str]
) -> None:
    broker.refused = frozenset({"1"})
    assert DeadCMD().exec(["retry", "dead_app_in_memory:broker", "--all"]) == 1
    assert "the server is away" in capsys.readouterr().err
    assert [each.task_id for each in broker.take_all()] == ["0", "2"]
    left = call(capsys, "list")["letters"]
    assert [each["task_name"] for each in left] == ["t1"]


@pytest.mark.parametrize(
    ("store", "why"),
    [(None, "has no queue"), (InMemoryDeadLetters(), "in the memory of its own")],
)
def test_letters_that_nobody_else_sees_are_refused(
    broker: RefusingBroker,
    capsys: pytest.CaptureFixture[str],
    store: InMemoryDeadLetters | None,
    why: str,
) -> None:
    broker.dead_letter_store = store
    assert DeadCMD().exec(["list", "dead_app_in_memory:broker"]) == 2
    assert why in capsys.readouterr().err


@pytest.mark.usefixtures("broker")
def test_one_letter_is_not_called_letters(capsys: pytest.CaptureFixture[str]) -> None:
    DeadCMD().exec(["drop", "dead_app_in_memory:broker", "--task=t1"])
    assert "Dropped 1 dead letter of" in capsys.readouterr().out
    DeadCMD().exec(["drop", "dead_app_in_memory:broker", "--all"])
    assert "Dropped 2 dead letters of" in capsys.readouterr().out
