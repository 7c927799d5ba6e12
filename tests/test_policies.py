"""What becomes of failed messages: the decisions, and the arguments they come from."""

from __future__ import annotations

import math
import runpy
from pathlib import Path
from typing import Any

import pytest

from taskiq import InMemoryBroker
from taskiq.exceptions import TaskiqFailurePolicyError, TaskiqLabelError
from taskiq.policies import (
    Action,
    FailurePolicy,
    Reason,
    combined,
    count,
    decide,
    for_refused,
    is_over,
)

ACK, BACK, DEAD = Action.ACK, Action.GIVE_BACK, Action.DEAD_LETTER

NOTHING = None
LIMIT = FailurePolicy(3)
ACKED = FailurePolicy(3, "ack")
AGAIN = FailurePolicy(3, "requeue")
ASIDE = FailurePolicy(None, "dead_letter")


@pytest.mark.parametrize(
    ("reason", "deliveries", "expected"),
    [
        # What becomes of it under:   NOTHING LIMIT ACKED AGAIN ASIDE
        (Reason.ERROR, 1, (ACK, ACK, ACK, BACK, DEAD)),
        (Reason.ERROR, None, (ACK, ACK, ACK, BACK, DEAD)),
        (Reason.ERROR, 3, (ACK, ACK, ACK, DEAD, DEAD)),
        (Reason.BAD_LABEL, 1, (ACK, ACK, ACK, DEAD, DEAD)),
        (Reason.UNKNOWN_TASK, 1, (ACK, ACK, ACK, DEAD, DEAD)),
        (Reason.UNPARSABLE, 1, (ACK, ACK, ACK, DEAD, DEAD)),
        (Reason.MAX_DELIVERIES, 4, (ACK, DEAD, ACK, DEAD, DEAD)),
        (Reason.REQUESTED, 1, (DEAD, DEAD, DEAD, DEAD, DEAD)),
    ],
)
def test_what_becomes_of_a_message_that_failed(
    reason: Reason,
    deliveries: int | None,
    expected: tuple[Action, ...],
) -> None:
    policies = (NOTHING, LIMIT, ACKED, AGAIN, ASIDE)
    decided = tuple(decide(policy, reason, deliveries) for policy in policies)
    assert decided == expected


def test_what_a_task_does_not_say_its_broker_does() -> None:
    assert combined(LIMIT, ASIDE) == FailurePolicy(3, "dead_letter")
    assert combined(ACKED, ASIDE) == ACKED
    assert combined(None, ASIDE) is ASIDE
    assert combined(None, None) is None
    # What nobody can run is put aside, also where failures are not.
    assert for_refused(None, ACKED) == FailurePolicy(3, "dead_letter")
    assert for_refused(None, None) is None


@pytest.mark.parametrize(
    ("told", "label", "counted"),
    [
        (None, None, None),
        (2, None, 2),
        (1, "3", 4),
        (None, "3", 4),
        (1, "x", 1),
        (1, math.inf, 1),
    ],
)
def test_deliveries_are_counted_on_when_a_message_is_sent_again(
    told: int | None, label: Any, counted: int | None
) -> None:
    assert count(told, {"X-Taskiq-deliveries": label}) == counted
    assert is_over(2, counted) is (counted is not None and counted > 2)


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        ({"max_deliveries": 0}, "max_deliveries=0 is not allowed: it must be an int"),
        ({"max_deliveries": True}, "max_deliveries=True is not allowed"),
        ({"on_failure": "drop"}, "one of 'ack', 'requeue', 'dead_letter'"),
        ({"on_failure": "requeue"}, "it needs max_deliveries="),
    ],
)
@pytest.mark.parametrize("batch", [False, True])
def test_a_policy_that_cannot_work_is_refused_where_it_is_written(
    arguments: dict[str, Any], wrong: str, batch: bool
) -> None:
    broker = InMemoryBroker()
    options: dict[str, Any] = {**arguments, "batch": batch}
    with pytest.raises(TaskiqFailurePolicyError, match=wrong) as raised:
        broker.task("name", **options)(_take)
    assert "Cannot register task name" in str(raised.value)
    with pytest.raises(TaskiqFailurePolicyError, match=wrong):
        broker.with_dead_letters(**arguments)


def test_a_policy_is_no_label_and_stays_with_its_task() -> None:
    broker = InMemoryBroker()
    task: Any = broker.task("name", max_deliveries=5, on_failure="ack", own=1)(_take)
    assert task.labels == {"own": 1}
    assert task.failure_policy == FailurePolicy(5, "ack")
    again: Any = InMemoryBroker().task(task)
    assert again.failure_policy == task.failure_policy
    with pytest.raises(TaskiqLabelError, match="did you mean max_deliveries="):
        broker.task("other", max_deliverie=5)(_take)


def _take(items: list[int]) -> None:
    """Take items."""


def test_the_picture_of_all_endings_is_drawn_from_what_decides_them() -> None:
    path = Path(__file__).parents[1] / "docs" / "endings.py"
    drawing = runpy.run_path(str(path))
    drawn = drawing["TARGET"].read_text(encoding="utf-8")
    assert drawn == drawing["draw"](), "run: python docs/endings.py"
    for each in (*Reason, *Action):
        assert each.value.replace("_", " ") in drawn.replace("_", " ")
